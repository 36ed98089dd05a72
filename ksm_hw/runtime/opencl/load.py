"""Loads the OpenCL runtime into this process."""

import ctypes

from ksm_hw.errors import UserError
from ksm_hw.runtime.library import loaded_library
from ksm_hw.runtime.opencl.build import RuntimeSources, find_opencl_runtime, runtime_sources


def load_opencl_runtime() -> None:
    """Makes TVM's device `opencl` run in this process; builds the runtime where it is not built yet.

    Raises:
        UserError: it cannot be built or loaded, or no driver offers a device.
    """
    load_library(runtime_sources())
    check_opencl_device()


def load_library(sources: RuntimeSources) -> None:
    """Loads what is built from sources, unless this process has an OpenCL runtime.

    Raises:
        UserError: it cannot be built or loaded.
    """
    import tvm

    if tvm.get_global_func("device_api.opencl", allow_missing=True) is None:
        try:
            loaded_library(find_opencl_runtime(sources), lambda path: ctypes.CDLL(path, ctypes.RTLD_GLOBAL))
        except UserError as error:
            if "libOpenCL" not in str(error):
                raise
            raise UserError(f"{error} sudo apt-get install ocl-icd-libopencl1") from error


def check_opencl_device() -> None:
    """Checks that the loaded runtime has a device.

    Raises:
        UserError: no driver offers one.
    """
    import tvm

    if not tvm.runtime.device("opencl", 0).exist:
        raise UserError(
            "No OpenCL device found. Install the driver of this machine's GPU, or one that runs on the CPU: "
            "sudo apt-get install pocl-opencl-icd. `clinfo -l` lists what there is; KSM_HW_OPENCL_PLATFORM, if set, "
            "must be part of a platform's name."
        )
