"""IREE: compilation from ONNX for this machine's CPU, and its runtime with a task pool."""

import subprocess
from importlib.metadata import version as release
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peers.serve import Run

DRIVER = "local-task"


def convert(folder: Path) -> None:
    """Writes `network.vmfb`, with data tiling, which is what IREE recommends for CPUs."""
    imported = folder / "network.mlir"
    subprocess.run(["iree-import-onnx", str(folder / "network.onnx"), "-o", str(imported)], check=True)
    options = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    options += ["--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3"]
    subprocess.run(["iree-compile", str(imported), *options, "-o", str(folder / "network.vmfb")], check=True)
    imported.unlink()


def version() -> str:
    """Its release."""
    return release("iree-base-runtime")


def load(folder: Path, threads: int, variant: str) -> Run:
    """A module on the task driver with as many workers as threads."""
    import iree.runtime

    iree.runtime.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = iree.runtime.Config(DRIVER)
    module = iree.runtime.load_vm_module(
        iree.runtime.VmModule.mmap(config.vm_instance, str(folder / "network.vmfb")), config
    )
    (name,) = (name for name in module.vm_module.function_names if not name.startswith("__") and "$async" not in name)
    function = module[name]

    def run(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = function(image).to_host()
        return logits

    return run
