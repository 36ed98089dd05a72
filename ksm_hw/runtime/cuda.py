"""CUDA's files on this machine, and TVM's runtime for CUDA, which needs two of them."""

import ctypes
import functools
import importlib.util
import shutil
from pathlib import Path

import tvm

from ksm_hw.errors import UserError

# TVM's wheel is linked against this major version.
CUDART = "lib*/libcudart.so.13"


def toolkit_file(pattern: str) -> Path | None:
    """A file of CUDA's toolkit: of the one whose nvcc is called here, of /usr/local/cuda, or of pip packages.

    Args:
        pattern: path inside the toolkit, such as `bin/nvcc`; a star stands for any part of a name.
    """
    nvcc = shutil.which("nvcc")
    folders = [Path(nvcc).resolve().parent.parent] if nvcc else []
    folders.append(Path("/usr/local/cuda"))
    packages = importlib.util.find_spec("nvidia")
    if packages is not None and packages.submodule_search_locations is not None:
        folders += [Path(folder) / "cu13" for folder in packages.submodule_search_locations]
    return next((path for folder in folders for path in sorted(folder.glob(pattern))), None)


@functools.cache
def load_tvm_cuda() -> None:
    """Loads TVM's runtime for CUDA into this process; it finds a driver there, or its stand-in.

    TVM does so itself where the loader finds libcudart, but not where that is in a pip package.

    Raises:
        UserError: libcudart is missing.
    """
    cudart = toolkit_file(CUDART)
    if cudart is None:
        raise UserError("libcudart.so.13 of CUDA 13 is missing. Install it: pip install 'ksm-hw[cuda]'")
    ctypes.CDLL(str(cudart))
    ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"))


def require_cuda_gpu() -> None:
    """Loads what TVM needs to run on this machine's NVIDIA GPU.

    Raises:
        UserError: there is no driver, no GPU, or no libcudart.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise UserError(
            "The artifact is for an NVIDIA GPU, and this machine has no driver for one (libcuda.so.1). "
            "Run it on a machine that has one."
        ) from error
    load_tvm_cuda()
    if not tvm.cuda(0).exist:
        raise UserError(
            "The artifact is for an NVIDIA GPU, and the driver finds none, or is older than CUDA 13 (580). "
            "`nvidia-smi` says which."
        )
