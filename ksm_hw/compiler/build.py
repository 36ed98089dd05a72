"""From a planned module to machine code."""

import contextlib
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir.transform import PassContext

from ksm_hw.compiler.loop_sharing import loop_sharing_object
from ksm_hw.runtime.machine import available_cores
from ksm_hw.toolchains.cuda import cuda_compiler
from ksm_hw.toolchains.linker import link_shared_library, linker_command
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.pipeline import loop_pipeline

# The same on every machine, and so the library too: more of them would share the work out no better among few cores.
_PARTS = 8


@dataclass(frozen=True)
class Built:
    """Machine code that is not linked yet.

    Attributes:
        executable: the functions that call loops, and one of the loops.
        objects: object files of the other loops.
        for_cpu: whether it runs on a CPU, whose threads share its loops out.
    """

    executable: relax.VMExecutable
    objects: tuple[bytes, ...] = ()
    for_cpu: bool = True


@dataclass(frozen=True)
class Builder:
    """Compiles modules for one target, each operator that several of them have once.

    Attributes:
        target: what to compile for.
        architectures: of a CUDA target: the compute capabilities that get machine code; without them the target's.
    """

    target: tvm.target.Target
    architectures: Sequence[str] = ()
    # Object files and what was compiled, by its structural hash.
    _known: dict[int, tuple[tvm.IRModule, bytes]] = field(default_factory=dict)

    def build(self, module: tvm.IRModule) -> Built:
        """Compiles a module as `plan_memory` leaves it; for a CPU in parts, which all of this machine's cores share.

        Raises:
            UserError: as `build_executable`.
        """
        # An instrument sees the passes of its own thread alone.
        for_cpu = "cpu" in self.target.keys
        if not for_cpu or PassContext.current().instruments:
            return Built(build_executable(module, self.target, self.architectures), for_cpu=for_cpu)
        first, *others = _parts(module)
        pool = ThreadPoolExecutor(available_cores())
        try:
            objects = pool.map(self._object, others)
            return Built(build_executable(first, self.target), tuple(objects))
        finally:
            # After Ctrl-C the parts that have not begun are given up.
            pool.shutdown(cancel_futures=True)

    def _object(self, loops: tvm.IRModule) -> bytes:
        """An object file. TVM and LLVM hold no lock of Python's, so threads make them at once."""
        key = tvm_ffi.structural_hash(loops)
        known, content = self._known.get(key, (None, b""))
        if known is None or not tvm_ffi.structural_equal(known, loops):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "loops.o"
                tvm.tirx.build(loops, target=by_tables(self.target), pipeline=loop_pipeline()).write_to_file(str(path))
                content = path.read_bytes()
                self._known[key] = loops, content
        return content


def _parts(module: tvm.IRModule) -> list[tvm.IRModule]:
    """A module with one of the loops and all functions that call them, and the other loops, in parts alike."""
    loops = sorted(
        (variable for variable, function in module.functions.items() if isinstance(function, tirx.PrimFunc)),
        key=lambda variable: str(variable.name_hint),
    )
    others = [part for start in range(_PARTS) if (part := loops[1 + start :: _PARTS])]
    apart = {variable for part in others for variable in part}
    first = {variable: function for variable, function in module.functions.items() if variable not in apart}
    return [
        tvm.IRModule(first, attrs=module.attrs),
        *(tvm.IRModule({variable: module[variable] for variable in part}) for part in others),
    ]


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
        return tvm.compile(module, target=by_tables(target), relax_pipeline=None, tir_pipeline=loop_pipeline())


def export_library(built: Built, path: Path, architecture: str) -> None:
    """Links machine code, and for a CPU what shares its loops out, into a shared library.

    Args:
        built: the machine code.
        path: of the library.
        architecture: `x86_64`, `aarch64`.

    Raises:
        UserError: there is no linker, or it fails, as on a full disk.
    """
    command = linker_command(architecture)

    with tempfile.TemporaryDirectory() as folder:
        contents = [*built.objects, *([loop_sharing_object(tuple(command))] if built.for_cpu else [])]
        others = [Path(folder) / f"part{number}.o" for number in range(len(contents))]
        for other, content in zip(others, contents, strict=True):
            other.write_bytes(content)

        def link(output: str, objects: list[str], **_options: object) -> None:
            link_shared_library(command, output, [*objects, *map(str, others)])

        built.executable.export_library(str(path), fcompile=link)
