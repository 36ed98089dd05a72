"""From scheduled loops to machine code."""

import shutil
from pathlib import Path

import tvm
from tvm import relax
from tvm.relax.pipeline import default_build_pipeline

from ksm_hw.errors import UserError

# Any of these links a shared library for the machine that it runs on.
_LINKERS = ("cc", "gcc", "g++", "clang")


def build_executable(module: tvm.IRModule, target: tvm.target.Target) -> relax.VMExecutable:
    """Compiles a module whose loops are scheduled."""
    return tvm.compile(module, target=target, relax_pipeline=default_build_pipeline())


def export_library(executable: relax.VMExecutable, path: Path) -> None:
    """Links the executable into a shared library.

    Raises:
        UserError: there is no linker, or it fails, as on a full disk.
    """
    linker = next(filter(None, map(shutil.which, _LINKERS)), None)
    if linker is None:
        raise UserError(
            f"No linker found (looked for {', '.join(_LINKERS)}). Install one: sudo apt-get install gcc libc6-dev"
        )
    try:
        executable.export_library(str(path), cc=linker)
    except RuntimeError as error:
        # TVM's message: a title, what the linker said line by line, the command.
        said = str(error).splitlines()[1:2] or [str(error)]
        raise UserError(f"{linker} cannot link {path}: {said[0]}. Nothing was left behind.") from error


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
