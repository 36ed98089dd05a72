"""What the compiler makes of a network on its way, as files to read.

    01-lowered.py, 02-folded.py …  the module behind each phase, as TVMScript. While masks of several layouts are not
                                   joined, each has its own, 02-folded-LAYOUT.py; with `bake` each task has its own,
                                   06-kernels-TASK.py, beside those of the function that rewrites weights
    assembly/KERNEL.s              the assembler of a kernel, or of a GPU's its source (.cl, .cu); with `bake` in
                                   assembly/TASK/

They are written as they come, so a compile that fails leaves those of the phases before.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm.ir.instrument import pass_instrument

from ksm_hw.compiler.assembly import kernel_texts
from ksm_hw.errors import UserError
from ksm_hw.files import written_file
from tvm_passes.relax.pipeline import PHASES

_ASSEMBLY = "assembly"


@dataclass(frozen=True)
class Dump:
    """What is written of one compile.

    Attributes:
        folder: where to; None for nothing at all.
        assembly: whether the kernels' assembler too.
    """

    folder: Path | None
    assembly: bool = False

    def begin(self) -> None:
        """Removes the files of an older dump.

        Raises:
            UserError: the folder holds something else.
        """
        if self.folder is None or not self.folder.exists():
            return
        if not self.folder.is_dir() or (any(self.folder.iterdir()) and not _files(self.folder)):
            raise UserError(
                f"{self.folder} exists and holds no older dump, so nothing is written into it. Give another path, or "
                "remove it."
            )
        for file in _files(self.folder):
            file.unlink()

    @contextlib.contextmanager
    def phases(self, task: str = "") -> Iterator[None]:
        """Writes the module behind each phase that ends inside the block; `task` is the one that is compiled there."""
        if self.folder is None:
            yield
            return
        tvm_ffi.register_error("UserError", UserError)  # Or a full disk would come out of a pass as a RuntimeError.
        with tvm.transform.PassContext(instruments=[_PhaseWriter(self.folder, task)]):
            yield

    def write_assembly(self, executable: tvm.relax.VMExecutable, task: str = "") -> None:
        """Writes the assembler of each kernel, if it was asked for."""
        if self.folder is not None and self.assembly:
            for name, text in kernel_texts(executable).items():
                _write(self.folder / _ASSEMBLY / task / name, text)


@pass_instrument
class _PhaseWriter:
    def __init__(self, folder: Path, task: str) -> None:
        self.folder, self.task = folder, task

    def run_after_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        phase, _, layout = info.name.partition(" ")
        if phase in PHASES:
            parts = [f"{PHASES.index(phase) + 1:02}", phase, *filter(None, (layout, self.task))]
            _write(self.folder / f"{'-'.join(parts)}.py", module.script(show_meta=False))


def _files(folder: Path) -> list[Path]:
    """The files of an older dump."""
    phases = [file for number, phase in enumerate(PHASES, 1) for file in folder.glob(f"{number:02}-{phase}*.py")]
    return phases + [file for file in (folder / _ASSEMBLY).rglob("*") if file.suffix in (".s", ".cl", ".cu")]


def _write(path: Path, text: str) -> None:
    with written_file(path) as temporary:
        temporary.write_text(text)
