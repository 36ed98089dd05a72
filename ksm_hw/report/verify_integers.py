"""An int8 artifact beside the integer model of its tasks: every tensor, bit for bit, and how far it is from float32."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.float_model import float_results
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import quantised_model
from ksm_hw.quantising.network import network_of
from ksm_hw.quantising.ranges import task_ranges
from ksm_hw.quantising.scheme import dequantise
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.device_session import DeviceSession

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of a task over all images.

    Attributes:
        tensor: its name (docs/quantisation.md).
        equal: whether the compiled model's is the integer model's, bit for bit; None where it was not seen: on boards
            the logits alone are.
        signal_to_noise: Σ x² / Σ (x - y)² in decibels, of x in float32 and y in int8; None where one of them is 0.
    """

    tensor: str
    equal: bool | None
    signal_to_noise: float | None


@dataclass(frozen=True)
class Logits:
    """Of a batch of images, each float32 [N, classes]: the compiled model's, the integer model's, and float32's."""

    compiled: Float32Array
    stated: Float32Array
    real: Float32Array


class IntegerCheck:
    """Compares the session's current task with its integer model, batch by batch.

    Raises:
        UserError: the task's ranges are missing, damaged, or of another network.
    """

    def __init__(self, session: AnySession, bundle: Bundle) -> None:
        pack = session.packs[session.task]
        self._session = session
        self._network = network_of(bundle, pack)
        self._folded = folded_weights(self._network, bundle, pack)
        self._model = quantised_model(self._network, self._folded, task_ranges(self._network, pack))
        names = [*self._network.ranged_tensors(), self._network.logits]
        # What merely moves a tensor's values may be done where they are computed, so that it alone is seen.
        self._moved: dict[str, list[str]] = {name: [] for name in names}
        for name, source in self._network.quantised_as().items():
            self._moved[source].append(name)
        self._equal: dict[str, bool | None] = dict.fromkeys(names)
        self._signal, self._noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)

    def add(self, images: Float32Array) -> Logits:
        """Compares on a batch, float32 [N, 3, H, W], and returns its logits."""
        stated = self._model.results(images)
        real = {name: tensor.numpy() for name, tensor in float_results(self._network, self._folded, images).items()}
        compiled, logits = self._session.run_all(images), self._network.logits
        seen = _seen_tensors(self._session, images)
        for name in self._equal:
            is_logits = name == logits
            if is_logits or seen:
                equal = any(_is_among(stated[moved], seen) for moved in self._moved[name])
                equal = equal or (is_logits and np.array_equal(compiled, stated[name]))
                self._equal[name] = equal and self._equal[name] is not False
            quantised = stated[name] if is_logits else dequantise(stated[name], self._model.quantisations[name])
            self._signal[name] += float(np.square(real[name], dtype=np.float64).sum())
            self._noise[name] += float(np.square(real[name] - quantised, dtype=np.float64).sum())
        return Logits(compiled, stated[logits], real[logits])

    def tensors(self) -> tuple[TensorCheck, ...]:
        """What was found of each tensor, in the order of computation; the last are the logits."""
        return tuple(
            TensorCheck(name, equal, _decibels(self._signal[name], self._noise[name]))
            for name, equal in self._equal.items()
        )


def first_difference(tensors: tuple[TensorCheck, ...]) -> str | None:
    """The first tensor that is not the integer model's; None if there is none."""
    return next((one.tensor for one in tensors if one.equal is False), None)


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal and noise else None


def _seen_tensors(session: AnySession, images: Float32Array) -> list[npt.NDArray[np.uint8]]:
    """All uint8 that an inference of these images computes, images along the first axis; none of another machine's."""
    if not isinstance(session, DeviceSession):
        return []
    batch, *one = session.manifest.input_shape
    parts: list[list[npt.NDArray[np.uint8]]] = []

    def watch(_function: Any, _symbol: str, before: bool, _result: Any, *arguments: Any) -> None:
        if not before and arguments and str(getattr(arguments[-1], "dtype", "")) == "uint8":
            parts[-1].append(arguments[-1].numpy())

    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        parts.append([])
        session.trace_run(watch, np.concatenate([part, np.zeros((batch - len(part), *one), np.float32)]))
    return [np.concatenate(tensors)[: len(images)] for tensors in zip(*parts, strict=True)]


def _is_among(expected: npt.NDArray[np.uint8], seen: list[npt.NDArray[np.uint8]]) -> bool:
    """Whether one of the tensors, whose channels are the last axis, is this one, whose channels are the second."""
    last = np.moveaxis(expected, 1, -1)
    return any(one.size == last.size and np.array_equal(one.reshape(last.shape), last) for one in seen)
