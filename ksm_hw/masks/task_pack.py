"""A task pack: all that a task owns over a shared backbone, and its file.

The file is safetensors. Its metadata holds one entry, `ksm-hw`, a JSON header; its tensors are

    mask/<layer>/bits      uint8    the binary mask, one bit a value     see `ksm_hw.masks.soft_mask.PackedMask`
    mask/<layer>/scale     float32 or uint8    the soft values
    mask/<layer>/bits-CODING, mask/<layer>/scale-CODING    uint8, instead of those: coded (`ksm_hw.masks.mask_coding`)
    batch_norm/<name>      float32  weight, bias, running mean and variance of each BatchNorm
    parameter/<name>       float32  weight and bias of a LayerNorm, a bias of a layer, or the slopes of a PReLU
    head/weight, head/bias float32  [classes, features] or, of a convolution, [classes, features, 1, 1]; [classes]
    ranges                 float32  [tensors, 2], the least and largest value of each tensor that the header names
    int8_bias/<name>       float32  what int8 takes in the place of a bias: of a BatchNorm, a layer, or `head/bias`

A layer without a mask keeps the backbone's weight; a norm, a bias or slopes that are absent are the backbone's. Layers
have the names of `ksm_hw.masks.mask_names`.

A bundle has its masks coded, and an artifact has them as they are read. Packs with masks of weights that have other
names than `<layer>.weight` are of format version 6, others with coded masks of version 5, others with biases for int8
of version 4, others with ranges of version 3, others with parameters, or with soft values of 1 bit, of version 2, and
the rest of version 1. The header is sealed (`ksm_hw.json_document.sealed`) and has a hash of the tensors, so that
damage is seen; older packs have neither.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.json_document import OtherVersion, Positive, check_seal, read_versioned_json, sealed
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.mask_coding import CODINGS, Coding, decoded, shortest
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.mask_names import has_other_name
from ksm_hw.masks.preprocessing import Preprocessing, Side
from ksm_hw.masks.safetensors_file import check_float32, read_arrays, sha256_of_tensors, write_arrays
from ksm_hw.masks.soft_mask import PackedMask, check_packed, ones_among, stored_soft_values

FORMAT_VERSIONS = (1, 2, 3, 4, 5, 6)
HEAD_BIAS = "head/bias"
_METADATA_KEY = "ksm-hw"
_INT8_BIAS = "int8_bias/"


@dataclass(frozen=True)
class TaskDescription:
    """What one has to know of a task to give it images and to name its logits; see `TaskPack`."""

    task: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class TaskPack:
    """A task.

    Attributes:
        task: its name; letters, digits, `-` and `_`.
        classes: names of the classes, in the order of the head's outputs.
        method: how it was learned: the name of a method of `ksm_hw.learning`, or of an importer.
        granularity: what shares a mask value, in every layer.
        backbone: name of the network.
        backbone_sha256: hash of the weights it was learned over (`sha256_of_tensors`).
        preprocessing: from an image to the input.
        masks: packed soft mask of each masked layer, by its name (`mask_names`).
        batch_norms: float32 [channels] each, by the name in the network's state dict.
        head_weight: float32 [classes, features]; [classes, features, 1, 1] where the network ends in a convolution.
        head_bias: float32 [classes].
        facts: how it was learned and what it reached (accuracy in 0…1, seconds, command); may be empty.
        parameters: weights and biases of LayerNorms, biases of layers and slopes of PReLUs, by the name in the
            network's state dict; may be empty.
        calibration: the ranges of the network's tensors, for int8; None where nobody calibrated the task.
    """

    task: str
    classes: tuple[str, ...]
    method: str
    granularity: Granularity
    backbone: str
    backbone_sha256: str
    preprocessing: Preprocessing
    masks: Mapping[str, PackedMask]
    batch_norms: Mapping[str, npt.NDArray[np.float32]]
    head_weight: npt.NDArray[np.float32]
    head_bias: npt.NDArray[np.float32]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    calibration: Calibration | None = None

    @property
    def description(self) -> TaskDescription:
        """The task without its tensors."""
        return TaskDescription(self.task, self.classes, self.preprocessing)

    @property
    def own_tensors(self) -> dict[str, npt.NDArray[np.float32]]:
        """What the task has instead of the backbone's tensors, by the name in the network's state dict."""
        return {**self.batch_norms, **self.parameters}

    def owns(self, name: str) -> bool:
        """Whether the task has a tensor of the network's state dict itself, or for int8; asked for every parameter."""
        of_int8 = self.calibration is not None and name in self.calibration.biases
        return name in self.batch_norms or name in self.parameters or of_int8

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors as a device reads them, without the header."""
        masks = sum(mask.nbytes for mask in self.masks.values())
        own = sum(array.nbytes for array in self.own_tensors.values())
        calibration = {} if self.calibration is None else _calibration_tensors(self.calibration)
        of_int8 = sum(array.nbytes for array in calibration.values())
        return masks + own + self.head_weight.nbytes + self.head_bias.nbytes + of_int8

    @property
    def for_int8(self) -> "TaskPack":
        """The task with the biases that int8 takes; without a calibration as it is."""
        biases = {} if self.calibration is None else dict(self.calibration.biases)
        head_bias = biases.pop(HEAD_BIAS, self.head_bias)
        norms = {name: biases.pop(name, array) for name, array in self.batch_norms.items()}
        return dataclasses.replace(
            self, head_bias=head_bias, batch_norms=norms, parameters={**self.parameters, **biases}
        )


@dataclass(frozen=True)
class _MaskEntry:
    """What the header says of a mask; see `PackedMask`."""

    shape: tuple[Positive, ...]
    scale_bits: ScaleBits
    scale_range: tuple[float, float]


@dataclass(frozen=True)
class _CalibrationEntry:
    """What the header says of a calibration; see `Calibration`. `tensors` are those of the rows of `ranges`."""

    observer: str
    images: Positive
    image_size: Side
    backbone_sha256: str
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class _Header:
    """The JSON header of a pack's file. `tensors_sha256` is known of a file alone, and not in those of older ksm-hw."""

    task: str
    classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    method: str
    granularity: Granularity
    backbone: str
    backbone_sha256: str
    preprocessing: Preprocessing
    masks: dict[str, _MaskEntry]
    facts: dict[str, Any]
    format_version: int
    calibration: _CalibrationEntry | None = None
    tensors_sha256: str | None = None


def save_task_pack(pack: TaskPack, path: Path, coded: bool = False) -> None:
    """Writes the pack's file; the same pack always gives the same bytes.

    Args:
        pack: the task.
        path: of the file.
        coded: whether masks are coded in fewer bytes, where that is shorter; devices read them as they lie.

    Raises:
        UserError: the file cannot be written, or its header could not be read again: a word in it is no text, a number
            is not finite.
    """
    tensors = _stored_tensors(pack)
    if coded:
        tensors = dict(_coded(name, array) for name, array in tensors.items())
    is_coded = any(_coding_of(name) != "plain" for name in tensors)
    version = max(5, _version_of(pack)) if is_coded else _version_of(pack)
    stored = dataclasses.replace(_header(pack), format_version=version, tensors_sha256=sha256_of_tensors(tensors))
    header = json.dumps(sealed(dataclasses.asdict(stored)))
    try:
        read_versioned_json(header, _Header, *FORMAT_VERSIONS)
    except ValueError as error:
        raise UserError(
            f"Task '{pack.task}' cannot be written to {path}: {error}. Names of classes and facts are words of Unicode "
            "and finite numbers."
        ) from error
    write_arrays(path, tensors, {_METADATA_KEY: header})


def _coded(name: str, array: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
    """A tensor of a pack under the name and in the coding that it is stored in; float32 as it is."""
    if not name.startswith("mask/") or array.dtype != np.uint8:
        return name, array
    coding, content = shortest(array)
    return (name if coding == "plain" else f"{name}-{coding}"), content


def _coding_of(name: str) -> Coding:
    """The coding of a tensor by the name that it is stored under."""
    is_mask = name.startswith("mask/")
    return next((coding for coding in CODINGS if is_mask and name.endswith(f"-{coding}")), "plain")


def coded_bytes(mask: PackedMask) -> int:
    """Bytes of a mask in the pack of a bundle, without the header."""
    return sum(_coded("mask/", part)[1].nbytes for part in (mask.bits, mask.scale))


def bytes_at_rest(pack: TaskPack) -> int:
    """Bytes of a pack's tensors in a bundle, which has masks coded, without the header; devices read `nbytes`."""
    return pack.nbytes - sum(mask.nbytes - coded_bytes(mask) for mask in pack.masks.values())


def is_same_task(pack: TaskPack, other: TaskPack) -> bool:
    """Whether two packs compute the same, bit for bit, whatever their ranges and facts are."""
    left, right = (dataclasses.replace(one, calibration=None, facts={}) for one in (pack, other))
    stored, others = (
        {name: (array.dtype, array.shape, array.tobytes()) for name, array in _stored_tensors(one).items()}
        for one in (left, right)
    )
    return _header(left) == _header(right) and stored == others


def _stored_tensors(pack: TaskPack) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a pack's file."""
    tensors: dict[str, npt.NDArray[Any]] = {}
    for layer, mask in pack.masks.items():
        tensors[f"mask/{layer}/bits"] = mask.bits
        tensors[f"mask/{layer}/scale"] = mask.scale
    for name, array in pack.batch_norms.items():
        tensors[f"batch_norm/{name}"] = array
    for name, array in pack.parameters.items():
        tensors[f"parameter/{name}"] = array
    tensors["head/weight"] = pack.head_weight
    tensors["head/bias"] = pack.head_bias
    return tensors if pack.calibration is None else {**tensors, **_calibration_tensors(pack.calibration)}


def _calibration_tensors(calibration: Calibration) -> dict[str, npt.NDArray[np.float32]]:
    ranges = np.array(list(calibration.ranges.values()), np.float32).reshape(-1, 2)
    return {"ranges": ranges, **{_INT8_BIAS + name: array for name, array in calibration.biases.items()}}


def _header(pack: TaskPack) -> _Header:
    return _Header(
        task=pack.task,
        classes=pack.classes,
        method=pack.method,
        granularity=pack.granularity,
        backbone=pack.backbone,
        backbone_sha256=pack.backbone_sha256,
        preprocessing=pack.preprocessing,
        masks={layer: _MaskEntry(mask.shape, mask.scale_bits, mask.scale_range) for layer, mask in pack.masks.items()},
        facts=dict(pack.facts),
        format_version=_version_of(pack),
        calibration=_calibration_entry(pack.calibration),
    )


def _version_of(pack: TaskPack) -> int:
    """The least version that has all that a pack has, whose masks are not coded."""
    if any(map(has_other_name, pack.masks)):
        return 6
    if pack.calibration is not None:
        return 4 if pack.calibration.biases else 3
    return 2 if pack.parameters or any(mask.scale_bits == 1 for mask in pack.masks.values()) else 1


def _calibration_entry(found: Calibration | None) -> _CalibrationEntry | None:
    if found is None:
        return None
    return _CalibrationEntry(found.observer, found.images, found.image_size, found.backbone_sha256, tuple(found.ranges))


def load_task_pack(path: Path) -> TaskPack:
    """Reads a task pack and checks that its parts fit together.

    Raises:
        UserError: the file is missing, truncated, a pickle, of another program or version, or its parts do not fit.
    """
    tensors, metadata = read_arrays(path)
    header = _header_of(metadata, path)
    try:
        pack = TaskPack(
            task=header.task,
            classes=header.classes,
            method=header.method,
            granularity=header.granularity,
            backbone=header.backbone,
            backbone_sha256=header.backbone_sha256,
            preprocessing=header.preprocessing,
            masks={layer: _packed_mask(tensors, layer, entry, path) for layer, entry in header.masks.items()},
            batch_norms=_tensors_under(tensors, "batch_norm/"),
            head_weight=tensors["head/weight"],
            head_bias=tensors["head/bias"],
            facts=header.facts,
            parameters=_tensors_under(tensors, "parameter/"),
            calibration=_calibration(tensors, header.calibration, path),
        )
    except KeyError as error:
        raise UserError(
            f"{path} lacks the tensor {error}. The file is damaged; learn or copy the task again."
        ) from error
    _check_parts(pack, path)
    if header.tensors_sha256 is not None and (found := sha256_of_tensors(tensors)) != header.tensors_sha256:
        raise UserError(
            f"{path} has tensors with SHA-256 {found}, and its header expects {header.tensors_sha256}. The file is "
            "damaged; copy the task again, or learn it again."
        )
    return pack


def _header_of(metadata: Mapping[str, str], path: Path) -> _Header:
    if _METADATA_KEY not in metadata:
        raise UserError(
            f"{path} is a safetensors file, but no task pack: its metadata has no '{_METADATA_KEY}' header. "
            "Give a file that `ksm-hw train` wrote."
        )
    try:
        header = read_versioned_json(metadata[_METADATA_KEY], _Header, *FORMAT_VERSIONS)
        check_seal(metadata[_METADATA_KEY])
        return header
    except OtherVersion as error:
        known = ", ".join(map(str, FORMAT_VERSIONS))
        raise UserError(
            f"{path} has {error}; this ksm-hw reads {known}. Learn the task again, or use the ksm-hw that wrote it."
        ) from error
    except ValueError as error:
        raise UserError(
            f"The header of {path} is damaged ({error}). Learn the task again, or copy it again."
        ) from error


def _tensors_under(tensors: Mapping[str, npt.NDArray[Any]], prefix: str) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _packed_mask(tensors: Mapping[str, npt.NDArray[Any]], layer: str, entry: _MaskEntry, path: Path) -> PackedMask:
    count = math.prod(entry.shape)
    bits = _part(tensors, f"mask/{layer}/bits", -(-count // 8), path)
    is_whole = bits.dtype == np.uint8 and bits.shape == (-(-count // 8),)
    zeros = count - ones_among(bits, count) if is_whole else 0
    return PackedMask(
        shape=entry.shape,
        bits=bits,
        scale=_part(tensors, f"mask/{layer}/scale", stored_soft_values(zeros, entry.scale_bits), path),
        scale_bits=entry.scale_bits,
        scale_range=entry.scale_range,
    )


def _part(tensors: Mapping[str, npt.NDArray[Any]], name: str, count: int, path: Path) -> npt.NDArray[Any]:
    """A part of a mask, of so many values: as it lies there, or decoded."""
    for coding in CODINGS[1:]:
        content = tensors.get(f"{name}-{coding}")
        if content is not None and content.dtype == np.uint8 and content.ndim == 1:
            try:
                return decoded(coding, content, count)
            except ValueError as error:
                raise UserError(
                    f"{path}: '{name}' cannot be decoded ({error}). The file is damaged; learn or copy the task again."
                ) from error
    return tensors[name]


def _calibration(
    tensors: Mapping[str, npt.NDArray[Any]], entry: _CalibrationEntry | None, path: Path
) -> Calibration | None:
    """The calibration; whether its numbers make sense is for whoever uses them, so that a new one can replace them."""
    if entry is None:
        return None
    ranges = tensors["ranges"]
    if ranges.shape != (len(entry.tensors), 2) or ranges.dtype != np.float32:
        raise UserError(
            f"{path}: the ranges of {len(entry.tensors)} tensors are as many pairs of float32, found "
            f"{list(ranges.shape)} of {ranges.dtype}. The file is damaged; copy the task again."
        )
    pairs = {name: (float(low), float(high)) for name, (low, high) in zip(entry.tensors, ranges, strict=True)}
    biases = _tensors_under(tensors, _INT8_BIAS)
    check_float32(biases, path)
    return Calibration(entry.observer, entry.images, entry.image_size, entry.backbone_sha256, pairs, biases)


def _check_parts(pack: TaskPack, path: Path) -> None:
    for layer, mask in pack.masks.items():
        check_packed(mask, f"{path}, layer {layer}")
    check_float32({**pack.own_tensors, "head/weight": pack.head_weight, "head/bias": pack.head_bias}, path)
    classes = len(pack.classes)
    biases = {pack.head_bias.shape, pack.for_int8.head_bias.shape}
    if pack.head_weight.shape[:1] != (classes,) or biases != {(classes,)}:
        found = " and ".join(str(list(shape)) for shape in sorted(biases))
        raise UserError(
            f"{path}: {classes} classes need a head of {classes} outputs, found weight {list(pack.head_weight.shape)} "
            f"and bias {found}. The file is damaged; learn or copy the task again."
        )
