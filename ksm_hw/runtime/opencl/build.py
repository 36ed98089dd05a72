"""Builds the OpenCL runtime against the headers of the installed TVM, for this machine or for a board.

The C++ of this folder becomes `libtvm_runtime_opencl.so`, the name by which TVM knows the runtime. Nothing of OpenCL
or TVM is linked, only named: stubs take the place of the libraries, so that a desk without any of them can build for a
board that has them.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.files import written_file

LIBRARY = "libtvm_runtime_opencl.so"
_SOURCES = Path(__file__).parent
_HEADERS = Path("/usr/include/CL")
# The libraries that the loader shall find: two of TVM's wheels, and the OpenCL loader of the system.
_NEEDED = ("libtvm_ffi.so", "libtvm_runtime.so", "libOpenCL.so.1")


def build_opencl_runtime(architecture: str = "", output: Path | None = None) -> Path:
    """Builds the runtime, unless the cache has it, and returns the library's path.

    Args:
        architecture: `x86_64` or `aarch64`; this machine's without it.
        output: where to put a copy.

    Raises:
        UserError: there is no C++ compiler for the architecture, no OpenCL headers, or the compiler fails.
    """
    architecture = architecture or platform.machine()
    library = _cached_path(architecture)
    if not library.exists():
        command = _compiler(architecture)
        with written_file(library) as temporary:
            _compile(command, temporary)
    if output is None:
        return library
    with written_file(output) as temporary:
        shutil.copy(library, temporary)
    return output


def find_opencl_runtime() -> Path:
    """The library for this machine: that of `KSM_HW_OPENCL_RUNTIME`, or built.

    Raises:
        UserError: it is not where the variable says, or cannot be built.
    """
    given = os.environ.get("KSM_HW_OPENCL_RUNTIME")
    if given is None:
        return build_opencl_runtime()
    if not Path(given).is_file():
        raise UserError(f"KSM_HW_OPENCL_RUNTIME names {given}, which is no file. `ksm-hw opencl build` makes one.")
    return Path(given).absolute()


def _cached_path(architecture: str) -> Path:
    """A path of its own for each version: a loader never takes a changed library from a path that it knows."""
    digest = hashlib.sha256()
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for package in ("apache-tvm", "apache-tvm-ffi"):
        digest.update(importlib.metadata.version(package).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "ksm-hw" / "opencl" / f"{architecture}-{digest.hexdigest()[:16]}" / LIBRARY


def _compiler(architecture: str) -> list[str]:
    """A C++ compiler whose standard library is GCC's, as TVM's wheels expect; so not zig's."""
    native = architecture == platform.machine()
    programs = ("g++", "clang++") if native else (f"{architecture}-linux-gnu-g++",)
    found = next(filter(None, map(shutil.which, programs)), None)
    if found is None:
        package = "g++" if native else f"g++-{architecture}-linux-gnu"
        raise UserError(
            f"No C++ compiler for {architecture} (looked for {', '.join(programs)}). "
            f"Install one: sudo apt-get install {package}"
        )
    return [found]


def _compile(command: list[str], output: Path) -> None:
    packages = {"apache-tvm": "tvm/include", "apache-tvm-ffi": "tvm_ffi/include"}
    includes = [f"-I{importlib.metadata.distribution(name).locate_file(path)}" for name, path in packages.items()]
    with tempfile.TemporaryDirectory() as folder:
        headers = _opencl_headers(Path(folder))
        stubs = [_stub(command, Path(folder), name) for name in _NEEDED]
        _run(
            [*command, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", *includes, headers]
            + [str(source) for source in sorted(_SOURCES.glob("*.cc"))]
            + ["-o", str(output), "-Wl,--no-as-needed", *stubs, "-Wl,-rpath,$ORIGIN"]
        )


def _opencl_headers(folder: Path) -> str:
    """The option that lets a compiler find CL/cl.h, which is the same on every architecture."""
    if not _HEADERS.is_dir():
        raise UserError("OpenCL's headers are missing. Install them: sudo apt-get install opencl-headers")
    # Not all of /usr/include: a cross compiler would take this machine's C library for the board's.
    (folder / "CL").symlink_to(_HEADERS)
    return f"-I{folder}"


def _stub(command: list[str], folder: Path, name: str) -> str:
    """An empty library by the name of one that will be there when the runtime is loaded."""
    (folder / "empty.cc").write_text("")
    path = folder / name
    _run([*command, "-shared", "-fPIC", str(folder / "empty.cc"), f"-Wl,-soname,{name}", "-o", str(path)])
    return str(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise UserError(f"{command[0]} cannot build the OpenCL runtime: {errors[0] if errors else 'it says nothing'}")
