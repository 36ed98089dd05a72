"""From a planned module to machine code."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import tvm
from tvm import relax

from ksm_hw.toolchains.cuda import cuda_compiler
from ksm_hw.toolchains.linker import link_shared_library, linker_command
from tvm_passes.relax.pipeline import loop_pipeline


def build_executable(
    module: tvm.IRModule, target: tvm.target.Target, architectures: Sequence[str] = ()
) -> relax.VMExecutable:
    """Compiles a module whose loops are scheduled.

    Args:
        module: loops, and the functions that call them, as `plan_memory` leaves them.
        target: what to compile for.
        architectures: of a CUDA target: the compute capabilities that get machine code; without them the target's.

    Raises:
        UserError: the target is for CUDA, and no compiler for it, or none for an architecture, is there.
    """
    cuda = target.kind.name == "cuda"
    with cuda_compiler(architectures or [target.attrs["arch"]]) if cuda else contextlib.nullcontext():
        return tvm.compile(module, target=target, relax_pipeline=None, tir_pipeline=loop_pipeline())


def export_library(executable: relax.VMExecutable, path: Path, architecture: str) -> None:
    """Links the executable into a shared library for an architecture (`x86_64`, `aarch64`).

    Raises:
        UserError: there is no linker, or it fails, as on a full disk.
    """
    command = linker_command(architecture)

    def link(output: str, objects: list[str], **_options: object) -> None:
        link_shared_library(command, output, objects)

    executable.export_library(str(path), fcompile=link)
