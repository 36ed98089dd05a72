"""Loading shared libraries into this process, and why one does not load, in words."""

import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ksm_hw.errors import UserError

Loaded = TypeVar("Loaded")

# Machines of ELF files, by the names that Python gives this one.
_MACHINES = {3: "i686", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "armv7l", 62: "x86_64", 183: "aarch64"}
_MACHINES |= {243: "riscv64", 258: "loongarch64"}


def loaded_library(path: Path, load: Callable[[str], Loaded]) -> Loaded:
    """What a function makes of a library's path.

    Raises:
        UserError: the library is for another machine, lies where nothing may be run, is damaged, or needs what this
            system lacks.
    """
    check_machine(path)
    place = str(path.absolute())
    try:
        return load(place)
    except (OSError, RuntimeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [repr(error)])[-1]
        raise UserError(f"{path} does not load: {_why(path, said)}") from error


def check_machine(path: Path) -> None:
    """Checks that a library is one for this kind of machine.

    Raises:
        UserError: it is for another, or no library.
    """
    if sys.platform != "linux":
        return
    with path.open("rb") as stream:
        header = stream.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        raise UserError(
            f"{path} is no library of Linux: it is damaged, or of another system. Copy or compile it again."
        )
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    machine = _MACHINES.get(number, f"machine {number}")
    if machine != platform.machine():
        raise UserError(
            f"{path} was compiled for {machine}, and this machine is {platform.machine()}. Run it on a board of that "
            "kind (--tracker and --key, or --host), or compile the bundle for this one; `ksm-hw targets` lists targets."
        )


def _why(path: Path, said: str) -> str:
    """The reason, and what to do, from what the system's loader said."""
    if hasattr(os, "statvfs") and os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
        return "it lies on a file system from which nothing may be run (mounted `noexec`). Copy it to another folder."
    if version := re.search(r"version [`'](\w+_[\d.]+)' not found", said):
        return (
            f"it needs {version[1]}, which this system is too old for. Compile it on a system as old as this, or here."
        )
    if missing := re.search(r"(\S+\.so\S*): cannot open shared object file", said):
        return f"it needs {missing[1]}, which this system lacks. Install the package that has it."
    return f"{said}. It may be damaged: copy or compile it again."
