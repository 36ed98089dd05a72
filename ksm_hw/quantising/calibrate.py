"""Calibration: the ranges of a task's tensors, as torchao's observers see them on real images."""

import logging
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.calibration import Calibration, Range
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.quantising.bias_correction import corrected_biases
from ksm_hw.quantising.float_model import Folded, float_results
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.network import Network, network_of
from ksm_hw.quantising.observers import CORRECTED_BY, BiasCorrection, ObserverName
from ksm_hw.quantising.scheme import LARGEST, NARROWEST, WIDEST

_SHARE = 0.9999  # Of the values of a tensor, that lie in the range that `percentile` chooses.

_log = logging.getLogger(__name__)


class NoRange(UserError):
    """A network that computes values which are too large for int8, or no numbers."""


def calibrate(
    bundle: Bundle,
    pack: TaskPack,
    batches: Iterable[npt.NDArray[np.float32]],
    observer: ObserverName,
    on_images: Callable[[int], None] = lambda done: None,
    correction: BiasCorrection = "none",
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Finds the ranges of a task's tensors, and biases for int8.

    Args:
        bundle: has the backbone.
        pack: the task.
        batches: images, float32 [N, 3, H, W], preprocessed as the task's.
        observer: how a range is chosen.
        on_images: called after each batch with how many images are done.
        correction: of which layers biases are corrected, by the first `CORRECTED_BY` of the images, which should be of
            all classes.
        on_layer: called after each layer whose bias is corrected with how many are, and of how many.

    Raises:
        NotQuantisable: the network has an operator that int8 does not know.
        UserError: there are no images, or a tensor has values that are too large or not finite.
    """
    network = network_of(bundle, pack)
    images, first = 0, list[npt.NDArray[np.float32]]()

    def on_batch(batch: npt.NDArray[np.float32]) -> None:
        nonlocal images
        if images < CORRECTED_BY and correction != "none":
            first.append(batch[: CORRECTED_BY - images])
        images += len(batch)
        on_images(images)

    ranges = observed_ranges(network, folded_weights(network, bundle, pack), batches, observer, pack.task, on_batch)
    biases = (
        corrected_biases(network, bundle, pack, ranges, np.concatenate(first), correction, on_layer) if first else {}
    )
    return Calibration(observer, images, pack.preprocessing.image_size, pack.backbone_sha256, ranges, biases)


def observed_ranges(
    network: Network,
    folded: Folded,
    batches: Iterable[npt.NDArray[np.float32]],
    observer: ObserverName,
    task: str,
    on_batch: Callable[[npt.NDArray[np.float32]], None] = lambda batch: None,
) -> dict[str, Range]:
    """The ranges of a network's tensors in float32, by their names.

    Args:
        network: its operators.
        folded: its weights and biases.
        batches: images, float32 [N, 3, H, W], preprocessed.
        observer: how a range is chosen.
        task: what the network is learned for, said in errors.
        on_batch: called with each batch that was looked at.

    Raises:
        UserError: there are no images.
        NoRange: a tensor has values that are too large or not finite.
    """
    module = _import_observers()
    kind = module.MinMaxObserver if observer == "minmax" else module.HistogramObserver
    observers = {name: kind(dtype=torch.uint8, qscheme=torch.per_tensor_affine) for name in network.ranged_tensors()}
    batch = None
    for batch in batches:
        results = float_results(network, folded, batch)
        for name, watching in observers.items():
            if not results[name].abs().max() <= WIDEST / 4:  # Nor is what is no number.
                raise NoRange(
                    f"Task '{task}' computes values in '{name}' that are too large or not finite. Learn it again."
                )
            watching(results[name])
        on_batch(batch)
    if batch is None:
        raise UserError("There are no images to calibrate on.")
    return {name: _range_seen(name, watching, observer) for name, watching in observers.items()}


def _import_observers() -> ModuleType:
    """torchao's module of observers; of kernels for GPUs, which it looks for, none is wanted."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import pt2e
    finally:
        logging.disable(disabled)
    module: ModuleType = pt2e
    return module


def _range_seen(name: str, watching: Any, observer: ObserverName) -> Range:
    """The range that an observer chose, with 0.0 in it, as float32 holds it."""
    if observer == "percentile":
        low, high = _middle(watching.histogram, float(watching.min_val), float(watching.max_val))
    elif observer == "histogram":
        scale, zero_point = (float(value) for value in watching.calculate_qparams())
        low, high = -zero_point * scale, (LARGEST - zero_point) * scale
    else:
        low, high = float(watching.min_val), float(watching.max_val)
    low, high = float(np.float32(min(low, 0.0))), float(np.float32(max(high, 0.0)))
    if high - low < NARROWEST:
        _log.info("%s is 0 on all images, or nearly so: any range does", name)
        return 0.0, 1.0
    _log.debug("%s: %g … %g", name, low, high)
    return low, high


def _middle(histogram: torch.Tensor, low: float, high: float) -> Range:
    """The range that holds a share of all values; as many lie below it as above."""
    counted = torch.cumsum(histogram.double(), 0)
    outside = (1 - _SHARE) / 2 * float(counted[-1])
    first = int(torch.searchsorted(counted, outside))
    last = int(torch.searchsorted(counted, float(counted[-1]) - outside))
    step = (high - low) / len(histogram)
    return low + first * step, low + (last + 1) * step
