"""What is in the masks of tasks: ones, soft values, what tasks have in common, and bytes beside the entropy."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ksm_hw.masks.soft_mask import PackedMask, binary_mask, soft_codes, soft_values
from ksm_hw.masks.task_pack import TaskPack, coded_bytes
from ksm_hw.report.terminal import TextTable, megabytes

BINS = 10  # Of the distribution of soft values.


@dataclass(frozen=True)
class LayerMask:
    """A layer's mask.

    Attributes:
        layer: its path in the network.
        values: how many mask values it has.
        ones: which part of them is 1, in 0…1.
        soft_range: the least and the largest soft value, where the binary mask is 0; (0, 0) where there is none.
        soft_counts: how many soft values lie in each of `BINS` equal parts of that range.
        stored_bytes: of the mask at rest, as a bundle has it coded.
        entropy_bytes: the fewest that a code of each bit and each soft value by itself can have, by their frequencies
            in this layer; soft values of 32 bits count as they are.
    """

    layer: str
    values: int
    ones: float
    soft_range: tuple[float, float]
    soft_counts: tuple[int, ...]
    stored_bytes: int
    entropy_bytes: float


@dataclass(frozen=True)
class TaskMasks:
    """A task's masks, layer by layer; `pack_bytes` are those of its tensors at rest, as a bundle has them coded."""

    task: str
    method: str
    granularity: str
    pack_bytes: int
    layers: tuple[LayerMask, ...]


@dataclass(frozen=True)
class Overlap:
    """What two tasks have in common.

    Attributes:
        tasks: the two.
        shared: of the places that are 1 in either the part that is 1 in both, over all layers; in 0…1.
        layers: the same of each layer by its path.
    """

    tasks: tuple[str, str]
    shared: float
    layers: Mapping[str, float]


@dataclass(frozen=True)
class Inspection:
    """All of it: `source` is the bundle or the pack."""

    source: str
    backbone: str
    tasks: tuple[TaskMasks, ...]
    overlaps: tuple[Overlap, ...]


def inspect_packs(source: str, packs: Mapping[str, TaskPack]) -> Inspection:
    """Looks into the masks of tasks over one backbone."""
    tasks = tuple(_masks(task, pack) for task, pack in packs.items())
    overlaps = tuple(
        _overlap(first, second)
        for first, second in itertools.combinations(packs.values(), 2)
        if first.masks and second.masks and first.granularity == second.granularity
    )
    backbones = {pack.backbone for pack in packs.values()}
    return Inspection(source, ", ".join(sorted(backbones)), tasks, overlaps)


def _masks(task: str, pack: TaskPack) -> TaskMasks:
    layers = tuple(_layer(layer, mask) for layer, mask in pack.masks.items())
    spared = sum(pack.masks[layer.layer].nbytes - layer.stored_bytes for layer in layers)
    return TaskMasks(task, pack.method, pack.granularity, pack.nbytes - spared, layers)


def _layer(layer: str, mask: PackedMask) -> LayerMask:
    ones = int(binary_mask(mask).sum())
    count = math.prod(mask.shape)
    soft = soft_values(mask)
    low, high = (float(soft.min()), float(soft.max())) if len(soft) else (0.0, 0.0)
    # Between two neighbours in float32 there are no limits of bins.
    counts = np.histogram(soft.astype(np.float64), BINS, (low, high))[0].tolist() if len(soft) else [0] * BINS
    bits = _entropy_bits(np.array([ones, count - ones]))
    if mask.coded:
        bits += _entropy_bits(np.bincount(soft_codes(mask), minlength=1))
    soft_bytes = 0 if mask.coded else mask.scale.nbytes
    return LayerMask(layer, count, ones / count, (low, high), tuple(counts), coded_bytes(mask), bits / 8 + soft_bytes)


def _entropy_bits(counts: npt.NDArray[np.int64]) -> float:
    """Bits of the shortest code of so many symbols of each kind."""
    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log2(some.sum() / some)).sum())


def _overlap(first: TaskPack, second: TaskPack) -> Overlap:
    layers, both, either = {}, 0, 0
    for layer in first.masks.keys() & second.masks.keys():
        left, right = binary_mask(first.masks[layer]), binary_mask(second.masks[layer])
        if left.shape != right.shape:
            continue
        shared, any_ = int((left & right).sum()), int((left | right).sum())
        layers[layer] = shared / any_ if any_ else 1.0
        both, either = both + shared, either + any_
    ordered = {layer: layers[layer] for layer in first.masks if layer in layers}
    return Overlap((first.task, second.task), both / either if either else 1.0, ordered)


def inspection_tables(inspection: Inspection) -> list[TextTable]:
    """What terminal and page show alike: the tasks, their layers, and what they have in common."""
    columns = ("task", "method", "granularity", "layers", "ones", "MB of masks", "MB entropy", "MB of pack")
    rows = []
    for task in inspection.tasks:
        values = sum(layer.values for layer in task.layers)
        ones = sum(layer.ones * layer.values for layer in task.layers) / max(values, 1)
        stored = sum(layer.stored_bytes for layer in task.layers)
        entropy = sum(layer.entropy_bytes for layer in task.layers)
        texts = (task.task, task.method, task.granularity, str(len(task.layers)), f"{ones:.1%}")
        rows.append((*texts, megabytes(stored), megabytes(entropy), megabytes(task.pack_bytes)))
    note = "Entropy: the fewest bytes of a code of each bit and soft value by itself; float32 counts as it is."
    tables = [TextTable("Masks of the tasks", columns, tuple(rows), note)]
    pairs = tuple((" and ".join(overlap.tasks), f"{overlap.shared:.1%}") for overlap in inspection.overlaps)
    if pairs:
        tables.append(TextTable("What tasks have in common", ("tasks", "ones of either that both have"), pairs))
    return [*tables, *map(_layer_table, inspection.tasks)]


def _layer_table(task: TaskMasks) -> TextTable:
    rows = tuple(
        (
            layer.layer,
            f"{layer.values:,}",
            f"{layer.ones:.1%}",
            f"{layer.soft_range[0]:.3g} … {layer.soft_range[1]:.3g}" if any(layer.soft_counts) else "",
            f"{layer.stored_bytes:,}",
            f"{layer.entropy_bytes:,.0f}",
        )
        for layer in task.layers
    )
    columns = ("layer", "values", "ones", "soft values", "stored bytes", "entropy")
    return TextTable(f"Layers of {task.task}", columns, rows)
