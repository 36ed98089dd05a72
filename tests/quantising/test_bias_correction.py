"""Biases are corrected layer by layer, without holding the tensors of a whole network."""

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising import bias_correction
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.scheme import Quantisation, quantise

IMAGES = np.random.default_rng(0).standard_normal((6, 3, 32, 32), np.float32)


def test_few_tensors_are_held_and_each_layer_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a residual network at most four: what is read, what a block adds, and what is being written."""
    held: list[weakref.ReferenceType[npt.NDArray[Any]]] = []
    most, largest = 0, 0

    def watched(values: npt.NDArray[np.float32], into: Quantisation) -> npt.NDArray[np.uint8]:
        nonlocal most, largest
        result = quantise(values, into)
        held.append(weakref.ref(result))
        most, largest = max(most, sum(one() is not None for one in held)), max(largest, len(values))
        return result

    monkeypatch.setattr(bias_correction, "quantise", watched)
    monkeypatch.setattr(bias_correction, "_BATCH", 3)
    told: list[tuple[int, int]] = []
    found = calibrate(
        bundle,
        bundle.packs["kernel-task"],
        [IMAGES],
        "minmax",
        correction="all",
        on_layer=lambda done, total: told.append((done, total)),
    )
    assert largest == 3 and most <= 2 * 4 < len(held) / 4
    assert told == [(done, len(found.biases)) for done in range(1, 1 + len(found.biases))]


def test_batches_change_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pack, found = bundle.packs["kernel-task"], []
    for images_at_once in (4, 6):  # A mean of batches of 4 and 2 is no mean of their means.
        monkeypatch.setattr(bias_correction, "_BATCH", images_at_once)
        found.append(calibrate(bundle, pack, [IMAGES], "minmax", correction="first").biases)
    (name,) = found[0]
    np.testing.assert_allclose(found[0][name], found[1][name], rtol=0, atol=1e-6 * np.abs(found[1][name]).max())
