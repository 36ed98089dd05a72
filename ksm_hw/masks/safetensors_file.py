"""Safetensors files of NumPy arrays: written whole, read without trust in what they hold."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ksm_hw.errors import UserError
from ksm_hw.files.written import written_file


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    """Writes arrays, of any strides; the same arrays and metadata always give the same bytes.

    Raises:
        UserError: the file cannot be written.
    """
    # The library writes the memory of an array as it lies.
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors.numpy.save(contiguous, metadata=metadata)
    with written_file(path) as temporary:
        temporary.write_bytes(content)


def read_arrays(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays of a file, which are read-only, and its metadata.

    Raises:
        UserError: the file is missing, truncated, a pickle, or no safetensors file, or has a dtype that NumPy lacks.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        return safetensors.numpy.load(content), metadata
    except safetensors.SafetensorError as error:
        # torch.save writes a zip archive (PK) around a pickle; older files are a bare pickle (0x80).
        if content[:2] == b"PK" or content[:1] == b"\x80":
            raise UserError(
                f"{path} is a pickle (torch.save), which could run code and is not opened. Expected a safetensors "
                "file, as `ksm-hw train` writes it."
            ) from error
        raise UserError(
            f"{path} is truncated or is no safetensors file ({error}). Copy it again, or learn the task again."
        ) from error
    except KeyError as error:
        raise UserError(
            f"{path} has a tensor of dtype {error.args[0]}, which ksm-hw does not know. Expected float32, and uint8 "
            "for the bits of masks; convert the tensor."
        ) from error


def sha256_of_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over names, shapes and bytes of the tensors in the order of their names, as 64 hexadecimal digits.

    It names the weights, not the file that holds them, so the same weights in another container have the same hash.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def check_float32(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """Checks that arrays are float32, their numbers finite and variances not below 0.

    Raises:
        UserError: one is not; the message names it and the file.
    """
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(
                f"{path} has '{name}' as {array.dtype}; expected float32. Learn the task again, or convert the tensor."
            )
        # By the extremes, which take no memory; what is not a number is both of them.
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)) or (low < 0 and name.endswith("running_var")):
            raise UserError(
                f"{path} has numbers in '{name}' that are not finite (NaN or infinite), or variances below 0. The file "
                "is damaged, or the training that made it diverged; copy it again, or learn the task again."
            )
