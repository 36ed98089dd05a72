"""The linker that makes a shared library for a target's CPU: this machine's own, or a cross linker."""

import importlib.util
import logging
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

# Any of these links and compiles for the machine that it runs on.
_NATIVE = ("cc", "gcc", "clang")
_INSTALL = {
    "x86_64": "gcc libc6-dev",
    "aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
}


def architecture_of(cpu: Mapping[str, Any]) -> str:
    """The architecture of a CPU's TVM dictionary, as `platform.machine` names it: `x86_64`, `aarch64`."""
    return str(cpu["mtriple"]).partition("-")[0] if "mtriple" in cpu else platform.machine()


def linker_command(architecture: str) -> list[str]:
    """The command of a C compiler that links shared libraries for an architecture under Linux.

    This machine's own, or GCC's cross compiler, or `zig cc` of the package ziglang.

    Raises:
        UserError: none is there; the message says how to install one.
    """
    cross = f"{architecture}-linux-gnu-gcc"
    programs = _NATIVE if architecture == platform.machine() else (cross,)
    if found := next(filter(None, map(shutil.which, programs)), None):
        _log.info("%s links for %s", found, architecture)
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        _log.info("zig links for %s: there is no %s", architecture, " or ".join(programs))
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu"]
    package = _INSTALL.get(architecture, f"gcc-{architecture}-linux-gnu")
    raise UserError(
        f"No linker for {architecture} found (looked for {', '.join(programs)}, and zig). Install one: "
        f"sudo apt-get install {package}, or: pip install ziglang"
    )


def link_shared_library(command: Sequence[str], output: str, objects: Sequence[str]) -> None:
    """Links object files into a shared library, with functions' names.

    Notes for debuggers, which LLVM makes a third of a task's library, are left out, but by zig: it would leave out the
    names as well, by which `profile` finds code.

    Raises:
        UserError: the linker fails, as on a full disk.
    """
    options = [] if "ziglang" in command else ["-Wl,--strip-debug"]
    _run(command, ["-shared", "-fPIC", *options, "-o", output, *objects], f"link {output}")


def compile_c(command: Sequence[str], source: Path, output: Path, options: Sequence[str] = ()) -> None:
    """Compiles a C file that includes no header into an object file for a shared library.

    Raises:
        UserError: the compiler fails, as on a full disk.
    """
    _run(command, ["-O2", "-g0", "-fPIC", *options, "-c", "-o", str(output), str(source)], f"compile {source}")


def _run(command: Sequence[str], arguments: Sequence[str], what: str) -> None:
    whole = [*command, *arguments]
    _log.debug("%s", " ".join(whole))
    done = subprocess.run(whole, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise UserError(f"{' '.join(command)} cannot {what}: {said}. Nothing was left behind.")
