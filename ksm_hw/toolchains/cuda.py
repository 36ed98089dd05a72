"""Device code for NVIDIA GPUs: lets TVM's build compile its CUDA kernels, on machines without a GPU as well.

TVM turns the kernels into one CUDA source and hands it to a callback, and puts what the callback returns into the
library. TVM's own callback always compiles with fast mathematics when it uses NVRTC, and for one architecture. The one
here compiles with IEEE arithmetic, into a fat binary: machine code for each architecture that was asked for, and PTX of
the lowest, which the driver translates for every newer GPU. The compiler is nvcc where it is, and else NVRTC from pip
packages.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm_ffi

from ksm_hw.errors import UserError
from ksm_hw.runtime.cuda import CUDART, load_tvm_cuda, toolkit_file
from ksm_hw.runtime.tvm_import import carry_errors
from ksm_hw.toolchains.linker import link_shared_library, linker_command

_log = logging.getLogger(__name__)

_INSTALL = "pip install 'ksm-hw[cuda]'"
# What NVRTC takes: the extra `cuda` has these. (nvidia-cuda-crt and -cccl carry headers.)
_PACKAGES = (
    "cuda-bindings",
    "nvidia-cuda-cccl",
    "nvidia-cuda-crt",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-runtime",
    "nvidia-nvfatbin",
)
_CALLBACK = "tvm_callback_cuda_compile"
# All that TVM's runtime for CUDA takes from the driver. None is called while kernels are compiled.
_DRIVER_FUNCTIONS = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
_CUDA_ERROR_NO_DEVICE = 100


@dataclass(frozen=True)
class CudaCompiler:
    """A compiler of CUDA source.

    Attributes:
        name: what it is, its version, and where.
        architectures: the compute capabilities that it compiles for, such as `sm_80`.
        compile: from a source and architectures to a fat binary, with PTX of the lowest architecture.
    """

    name: str
    architectures: tuple[str, ...]
    compile: Callable[[str, Sequence[str]], bytes]

    def __str__(self) -> str:
        return self.name

    def check(self, architectures: Sequence[str]) -> None:
        """Finds an architecture that the compiler does not know.

        Raises:
            UserError: there is one.
        """
        for architecture in architectures:
            if architecture not in self.architectures:
                raise UserError(
                    f"{self.name} compiles for no compute capability '{architecture}'. "
                    f"It knows: {', '.join(self.architectures)}."
                )


@contextlib.contextmanager
def cuda_compiler(architectures: Sequence[str]) -> Iterator[CudaCompiler]:
    """What TVM builds for CUDA inside the block has device code for these architectures.

    Args:
        architectures: compute capabilities, such as `sm_80`.

    Raises:
        UserError: there is no compiler, it does not know an architecture, or, where no driver is, there is no linker.
            One that the compiler raises inside the block comes out of TVM's build as what it is.
    """
    compiler = find_cuda_compiler()
    compiler.check(architectures)
    _log.info("%s compiles kernels for %s", compiler, ", ".join(architectures))
    _load_runtime_without_gpu()
    carry_errors()
    before = tvm_ffi.get_global_func(_CALLBACK)
    tvm_ffi.register_global_func(_CALLBACK, lambda source: compiler.compile(str(source), architectures), override=True)
    try:
        yield compiler
    finally:
        tvm_ffi.register_global_func(_CALLBACK, before, override=True)


def find_cuda_compiler() -> CudaCompiler:
    """nvcc, or NVRTC.

    Raises:
        UserError: neither is there, or not all that goes with it; the message says how to install it.
    """
    # nvcc takes the host's compiler as its preprocessor.
    nvcc = toolkit_file("bin/nvcc") if shutil.which("g++") else None
    if nvcc is not None and toolkit_file(CUDART) is not None:
        return _nvcc(nvcc)
    missing = [name for name in _PACKAGES if not _is_installed(name)]
    if missing:
        raise UserError(
            f"No compiler for CUDA: nvcc of CUDA 13 with g++ is not here, and for NVRTC {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Install it: {_INSTALL}"
        )
    _log.info("nvcc of CUDA 13 with g++ is not here: NVRTC takes its place")
    from ksm_hw.toolchains import nvrtc

    return CudaCompiler(f"NVRTC {nvrtc.version()}", nvrtc.architectures(), nvrtc.compile_source)


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def _nvcc(program: Path) -> CudaCompiler:
    def ask(option: str) -> str:
        return subprocess.run([program, option], capture_output=True, text=True, check=True).stdout

    version = re.search(r"release ([\d.]+)", ask("--version"))
    return CudaCompiler(
        f"nvcc {version[1] if version else ''} ({program})",
        tuple(ask("--list-gpu-code").split()),
        functools.partial(_compile_with_nvcc, program),
    )


def _compile_with_nvcc(program: Path, source: str, architectures: Sequence[str]) -> bytes:
    numbers = sorted({int(architecture.removeprefix("sm_")) for architecture in architectures})
    codes = [f"arch=compute_{number},code=sm_{number}" for number in numbers]
    codes.append(f"arch=compute_{numbers[0]},code=compute_{numbers[0]}")
    with tempfile.TemporaryDirectory() as folder:
        kernels, binary = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        kernels.write_text(source)
        command = [str(program), "-fatbin", "--threads", "0", "--disable-warnings", "-o", str(binary), str(kernels)]
        command += [f"-gencode={code}" for code in codes]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise RuntimeError(f"nvcc cannot compile the kernels:\n{done.stdout}{done.stderr}")
        return binary.read_bytes()


def _load_runtime_without_gpu() -> None:
    """Loads TVM's runtime for CUDA: without it a library carries CUDA source, for a compiler on the device."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        _load_stand_in_driver()
    load_tvm_cuda()


@functools.cache
def _load_stand_in_driver() -> None:
    """Loads a library that has the driver's name and finds no GPU, on a machine that has no driver."""
    _log.info("no driver for NVIDIA GPUs is here (libcuda.so.1): a stand-in that finds no GPU is linked")
    lines = [f"int {function}(void) {{ return {_CUDA_ERROR_NO_DEVICE}; }}\n" for function in _DRIVER_FUNCTIONS]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "driver.c", Path(folder) / "libcuda.so.1"
        source.write_text("".join(lines))
        command = [*linker_command(platform.machine()), "-Wl,-soname,libcuda.so.1"]
        link_shared_library(command, str(library), [str(source)])
        # What is loaded stays, when its file is gone.
        ctypes.CDLL(str(library))
