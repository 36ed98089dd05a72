"""NVRTC, NVIDIA's compiler as a library, with what joins its results into a fat binary; both from pip packages."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cuda.bindings import nvfatbin, nvrtc

from ksm_hw.runtime.cuda import toolkit_file


def version() -> str:
    """Its version, that of CUDA."""
    return ".".join(map(str, _values(nvrtc.nvrtcVersion())))


@functools.cache
def architectures() -> tuple[str, ...]:
    """The compute capabilities that it compiles for, such as `sm_80`."""
    (numbers,) = _values(nvrtc.nvrtcGetSupportedArchs())
    return tuple(f"sm_{number}" for number in numbers)


def compile_source(source: str, architectures: Sequence[str]) -> bytes:
    """Compiles CUDA source into a fat binary: machine code for each architecture, and PTX of the lowest.

    Raises:
        RuntimeError: the source is wrong; the message is the compiler's.
    """
    numbers = sorted({int(architecture.removeprefix("sm_")) for architecture in architectures})
    with ThreadPoolExecutor() as pool:
        names = [f"compute_{numbers[0]}", *(f"sm_{number}" for number in numbers)]
        ptx, *codes = pool.map(functools.partial(_compile, source), names)
    handle = nvfatbin.create([], 0)
    try:
        for number, code in zip(numbers, codes, strict=True):
            nvfatbin.add_cubin(handle, code, len(code), str(number), "kernels")
        nvfatbin.add_ptx(handle, ptx, len(ptx), str(numbers[0]), "kernels", "")
        binary = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, binary)
        return bytes(binary)
    finally:
        nvfatbin.destroy(handle)


def _compile(source: str, architecture: str) -> bytes:
    """Machine code for `sm_80`, PTX for `compute_80`."""
    headers = _headers()
    options = [f"--gpu-architecture={architecture}", f"-I{headers}", f"-I{headers / 'cccl'}", "--disable-warnings"]
    (program,) = _values(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, None, None))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            raise RuntimeError(f"NVRTC cannot compile the kernels ({status.name}):\n{log.decode(errors='replace')}")
        if architecture.startswith("sm_"):
            return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _headers() -> Path:
    headers = toolkit_file("include/cccl")
    assert headers is not None
    return headers.parent


def _text(size: Any, get: Any, program: Any) -> bytes:
    """What NVRTC writes into memory that the caller gives."""
    (length,) = _values(size(program))
    text = bytearray(length)
    _values(get(program, text))
    return bytes(text)


def _values(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {status.name}")
    return tuple(values)
