"""The object file in every library of a CPU that shares its loops out among threads: loop_sharing.c, compiled."""

import functools
import tempfile
from pathlib import Path

from ksm_hw.toolchains.linker import compile_c
from tvm_passes.relax.loops.share_loops import UNITS

_SOURCE = Path(__file__).with_suffix(".c")


@functools.cache  # A tuner links thousands of libraries.
def loop_sharing_object(command: tuple[str, ...]) -> bytes:
    """The object file.

    Args:
        command: of a C compiler, as `linker_command` gives it.

    Raises:
        UserError: the compiler fails, as on a full disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loop_sharing.o"
        compile_c(command, _SOURCE, path, (f"-DUNITS={UNITS}",))
        return path.read_bytes()
