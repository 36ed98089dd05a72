"""The arrays that all tasks pass to the compiled functions, made ready in a file, for programs that only copy them.

The file is bytes alone: each distinct array once, in C order and little-endian, at an offset that is a multiple of 64.
Where each lies is told by the `ParameterFile` that writing it returns.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from ksm_hw.artifact.manifest import Manifest
from ksm_hw.artifact.parameters import mask_part_of, task_parameters
from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_rounding import SCALE, decoded
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.soft_mask import soft_codes
from ksm_hw.masks.task_pack import TaskPack

ALIGNMENT = 64  # Bytes; what TVM aligns tensors to.
# The names of the dtypes that parameters may have, in safetensors files and in NumPy.
_SAFETENSORS_DTYPES = {"F32": "float32", "U8": "uint8", "I32": "int32"}
# Those that a backbone's weights, which are float32, may be rounded to.
_ROUNDED_DTYPES = {"F16": "float16", "I8": "int8"}

Coding = Literal["plain", "halves", "float16", "int8"]


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies, and what it is.

    Attributes:
        file, offset: the file, and where its first byte is in there.
        dtype, shape: of the array.
        values: how many of the array's values the file holds; zeros are behind them, as in a head of fewer classes.
        coding: `plain` where the file holds the array's bytes; `halves` where it holds two of them in each of its own,
            the first in the high half; `float16` and `int8` where it holds float32 rounded (`backbone_rounding`).
        scale_offset: with `int8`, where in the file the first scale of a channel is.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    values: int
    coding: Coding = "plain"
    scale_offset: int = 0


@dataclass(frozen=True)
class ParameterFile:
    """Where the arrays of each task lie, in the order of the manifest's parameters."""

    tasks: Mapping[str, tuple[StoredArray, ...]]


Array = npt.NDArray[np.generic]
Held = dict[tuple[str, tuple[int, ...], bytes], StoredArray]  # By dtype, shape and SHA-256 of the bytes.


def write_parameter_file(
    folder: Path, file: str, manifest: Manifest, bundle: Bundle, held: Held | None = None
) -> ParameterFile:
    """Writes the arrays of all of an artifact's tasks.

    Args:
        folder, file: the file to write, by its name below a folder.
        manifest: which arrays each task passes, and in what order.
        bundle: the tasks.
        held: arrays that other files hold (`held_arrays`), which are not written again; without it every array is.
    """
    places = dict(held or {})
    tasks: dict[str, tuple[StoredArray, ...]] = {}
    with (folder / file).open("wb") as stream:
        for task, entry in manifest.tasks.items():
            pack, names = bundle.packs[task], entry.parameters
            arrays = task_parameters(names, pack, bundle.tensors, manifest.output_shape[1])
            tasks[task] = tuple(
                _held_halves(name, array, pack, places) or _place(array, stream, file, places)
                for name, array in zip(names, arrays, strict=True)
            )
    return ParameterFile(tasks)


def held_arrays(folder: Path, files: Iterable[str]) -> Held:
    """The arrays that safetensors files hold, each file by its name below a folder; rounded ones as what they mean.

    Raises:
        UserError: one has a dtype that is none of a parameter's.
    """
    held: Held = {}
    for file in files:
        content = (folder / file).read_bytes()
        # A safetensors file is the length of its header (8 bytes), the header in JSON, and the arrays.
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        places = {
            name: StoredArray(
                file, start + entry["data_offsets"][0], _numpy_dtype(entry["dtype"], folder / file),
                tuple(entry["shape"]), math.prod(entry["shape"]),
            )
            for name, entry in header.items()
        }  # fmt: skip
        for name, place in places.items():
            passed, array = _as_passed(place, places.get(name + SCALE), content)
            held[_key(array)] = passed
    return held


def _numpy_dtype(dtype: str, path: Path) -> str:
    known = {**_SAFETENSORS_DTYPES, **_ROUNDED_DTYPES}
    if dtype not in known:
        raise UserError(
            f"{path} has a tensor of dtype {dtype}; parameters of compiled functions are one of {', '.join(known)}. "
            "Convert the tensor."
        )
    return known[dtype]


def _as_passed(place: StoredArray, scale: StoredArray | None, content: bytes) -> tuple[StoredArray, Array]:
    """What lies at a place of a file's content as functions take it: what is rounded is decoded to float32."""
    array = _array_at(place, content)
    if place.dtype not in _ROUNDED_DTYPES.values():
        return place, array
    coding: Coding = "int8" if place.dtype == "int8" else "float16"
    scales, offset = (None, 0) if scale is None else (_array_at(scale, content), scale.offset)
    place = dataclasses.replace(place, dtype="float32", coding=coding, scale_offset=offset)
    return place, decoded(array, scales, place.file)


def _array_at(place: StoredArray, content: bytes) -> Array:
    return np.frombuffer(content, place.dtype, place.values, place.offset).reshape(place.shape)


def _held_halves(name: str, array: Array, pack: TaskPack, held: Held) -> StoredArray | None:
    """Where an array of soft values' codes lies, if a byte there holds two."""
    layer, part = mask_part_of(name) or ("", None)
    if part != "scale" or pack.masks[layer].scale_bits != 4:
        return None
    mask = pack.masks[layer]
    found = held.get(_key(mask.scale))
    if found is None:
        return None
    return dataclasses.replace(found, shape=array.shape, values=len(soft_codes(mask)), coding="halves")


def _place(array: Array, stream: BinaryIO, file: str, places: Held) -> StoredArray:
    """Where an array lies; it is written if it lies nowhere, but for rows of zeros at its end."""
    used = _used_rows(array)
    found = places.get(_key(array)) or places.get(_key(used))
    if found is None:
        stream.write(bytes(-stream.tell() % ALIGNMENT))
        found = StoredArray(file, stream.tell(), used.dtype.name, used.shape, used.size)
        places[_key(used)] = found
        stream.write(used.tobytes())
    return dataclasses.replace(found, shape=array.shape)


def _used_rows(array: Array) -> Array:
    """An array without the rows at its end, along the first axis, of which every bit is 0."""
    bytes_of_rows = np.frombuffer(array.tobytes(), np.uint8).reshape(len(array), -1)
    used = np.flatnonzero(bytes_of_rows.any(axis=1))
    return array[: used[-1] + 1 if len(used) else 0]


def _key(array: Array) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest()
