"""From scheduled loops to machine code."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import tvm
from tvm import relax
from tvm.relax.pipeline import default_build_pipeline

from ksm_hw.toolchains.cuda import cuda_compiler
from ksm_hw.toolchains.linker import link_shared_library, linker_command
from tvm_passes.relax.loops.cpu_pipeline import CPU_PIPELINE


def build_executable(
    module: tvm.IRModule, target: tvm.target.Target, architectures: Sequence[str] = ()
) -> relax.VMExecutable:
    """Compiles a module whose loops are scheduled.

    Args:
        module: loops and the functions that call them.
        target: what to compile for.
        architectures: of a CUDA target: the compute capabilities that get machine code; without them the target's.

    Raises:
        UserError: the target is for CUDA, and no compiler for it, or none for an architecture, is there.
    """
    cuda = target.kind.name == "cuda"
    with cuda_compiler(architectures or [target.attrs["arch"]]) if cuda else contextlib.nullcontext():
        return tvm.compile(
            module,
            target=target,
            relax_pipeline=default_build_pipeline(),
            tir_pipeline=CPU_PIPELINE if "cpu" in target.keys else "default",
        )


def export_library(executable: relax.VMExecutable, path: Path, architecture: str) -> None:
    """Links the executable into a shared library for an architecture (`x86_64`, `aarch64`).

    Raises:
        UserError: there is no linker, or it fails, as on a full disk.
    """
    command = linker_command(architecture)

    def link(output: str, objects: list[str], **_options: object) -> None:
        link_shared_library(command, output, objects)

    executable.export_library(str(path), fcompile=link)


def workspace_bytes(module: tvm.IRModule) -> int:
    """Bytes of activations that the memory plan of the largest `main` holds at once."""
    planned = tvm.transform.Sequential(
        [
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
        ]
    )(module)
    return max(
        _storage_bytes(function)
        for variable, function in planned.functions.items()
        if isinstance(function, relax.Function) and variable.name_hint.startswith("main")
    )


def _storage_bytes(function: relax.Function) -> int:
    total = 0

    def visit(expression: relax.Expr) -> None:
        nonlocal total
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.memory.alloc_storage"):
            total += int(expression.args[0].values[0])

    relax.analysis.post_order_visit(function, visit)
    return total
