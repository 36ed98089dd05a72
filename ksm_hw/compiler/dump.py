"""What the compiler makes of a network on its way, as files to read.

    01-lowered.py, 02-folded.py …  the module behind each phase, as TVMScript. While masks of several layouts are not
                                   joined, each has its own, 02-folded-LAYOUT.py; with `bake` each task has its own,
                                   06-kernels-TASK.py, beside those of the function that rewrites weights
    assembly/KERNEL.s              the assembler of a kernel, or of a GPU's its source (.cl, .cu); with `bake` in
                                   assembly/TASK/

They are written as they come, so a compile that fails leaves those of the phases before. `.ksm-hw-dump` lists them, a
name a line: the next dump into the folder replaces these and nothing else (`dump_folder`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm.ir.instrument import pass_instrument

from ksm_hw.compiler.assembly import kernel_texts
from ksm_hw.compiler.dump_folder import LIST, empty_dump_folder
from ksm_hw.files.written import written_file
from tvm_passes.relax.pipeline import PHASES

_ASSEMBLY = "assembly"


@dataclass(frozen=True)
class Dump:
    """What is written of one compile.

    Attributes:
        folder: where to.
        assembly: whether the kernels' assembler too.
    """

    folder: Path
    assembly: bool

    @contextlib.contextmanager
    def phases(self, task: str = "") -> Iterator[None]:
        """Writes the module behind each phase that ends inside the block; `task` is the one that is compiled there."""
        with tvm.transform.PassContext(instruments=[_PhaseWriter(self.folder, task)]):
            yield

    def write_assembly(self, executable: tvm.relax.VMExecutable, task: str = "") -> None:
        """Writes the assembler of each kernel, if it was asked for."""
        if self.assembly:
            for name, text in kernel_texts(executable).items():
                _write(self.folder, str(Path(_ASSEMBLY) / task / name), text)


def begin_dump(folder: Path, assembly: bool) -> Dump:
    """Makes a folder for a dump, or removes the files of an older one from it.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    empty_dump_folder(folder)
    return Dump(folder, assembly)


@pass_instrument
class _PhaseWriter:
    def __init__(self, folder: Path, task: str) -> None:
        self.folder, self.task = folder, task

    def run_after_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        phase, _, layout = info.name.partition(" ")
        if phase in PHASES:
            parts = [f"{PHASES.index(phase) + 1:02}", phase, *filter(None, (layout, self.task))]
            _write(self.folder, f"{'-'.join(parts)}.py", module.script(show_meta=False))


def _write(folder: Path, name: str, text: str) -> None:
    with written_file(folder / name) as temporary, (folder / LIST).open("a") as names:
        names.write(f"{name}\n")
        temporary.write_text(text)
