"""The OpenCL runtime of TVM 0.19: what it is built from, and how a process in Relay's environment loads it.

The wheel's runtime exports all that its OpenCL sources call, so they alone are compiled, with what is in this folder.
"""

import os
from pathlib import Path

from ksm_hw.runtime.opencl.build import RuntimeSources, files_version
from ksm_hw.runtime.opencl.load import check_opencl_device, load_library
from ksm_hw.runtime.relay.environment import REQUIREMENTS, check_installed, environment_folder

_FOLDER = Path(__file__).parent
_SOURCES = ("opencl_device_api.cc", "opencl_module.cc", "texture_pool.cc")


def relay_runtime_sources() -> RuntimeSources:
    """What the runtime for TVM 0.19 is built from.

    Raises:
        UserError: Relay is not installed.
    """
    check_installed()
    tvm = environment_folder() / "tvm"
    headers = [_FOLDER / "include", tvm / "include", tvm / "src/runtime"]
    headers += [tvm / "3rdparty" / name / "include" for name in ("dmlc-core", "dlpack")]
    return RuntimeSources(
        library="libtvm_relay_opencl.so",
        variable="KSM_HW_RELAY_OPENCL_RUNTIME",
        files=(_FOLDER / "additions.cc", *(tvm / "src/runtime/opencl" / name for name in _SOURCES)),
        options=(*(f"-I{folder}" for folder in headers), "-DDMLC_USE_LOGGING_LIBRARY=<tvm/runtime/logging.h>"),
        # Not TVM's own: a process has either that with the compiler or that without it, and both at once would not do.
        needed=(),
        version=files_version(_FOLDER) + REQUIREMENTS.read_text(),
    )


def load_relay_opencl_runtime() -> None:
    """Makes TVM 0.19's device `opencl` run in this process; builds the runtime where it is not built yet.

    Raises:
        UserError: as `load_opencl_runtime`.
    """
    import tvm

    load_library(relay_runtime_sources())
    if platform := os.environ.get("KSM_HW_OPENCL_PLATFORM"):
        tvm.get_global_func("ksm_hw.opencl.choose_platform")(platform)
    check_opencl_device()
