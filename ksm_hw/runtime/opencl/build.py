"""Builds OpenCL runtimes against the headers of a TVM, for this machine or for a board.

The C++ of this folder becomes `libtvm_runtime_opencl.so`, the name by which TVM knows the runtime; that of Relay's TVM
is in `ksm_hw/runtime/relay/opencl`. Nothing of OpenCL or TVM is linked, only named: stubs take the place of the
libraries, so that a desk without any of them can build for a board that has them.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.files.locks import FOLDER_LOCK, locked
from ksm_hw.files.written import check_file, written_file
from ksm_hw.user_folders import cache_folder

LIBRARY = "libtvm_runtime_opencl.so"
_SOURCES = Path(__file__).parent
_HEADERS = Path("/usr/include/CL")
_LOADER = "libOpenCL.so.1"  # Of the system: it finds the drivers.


@dataclass(frozen=True)
class RuntimeSources:
    """What an OpenCL runtime is built from.

    Attributes:
        library: file name of the runtime.
        variable: environment variable that names a runtime that was built elsewhere.
        files: the C++ sources.
        options: for the compiler: where headers are, and what TVM's expect to be defined.
        needed: libraries that the loader shall find, besides OpenCL's.
        version: changes whenever the runtime must be built anew.
    """

    library: str
    variable: str
    files: tuple[Path, ...]
    options: tuple[str, ...]
    needed: tuple[str, ...]
    version: str


def runtime_sources() -> RuntimeSources:
    """What the runtime for the present TVM is built from."""
    packages = {"apache-tvm": "tvm/include", "apache-tvm-ffi": "tvm_ffi/include"}
    return RuntimeSources(
        library=LIBRARY,
        variable="KSM_HW_OPENCL_RUNTIME",
        files=tuple(sorted(_SOURCES.glob("*.cc"))),
        options=tuple(
            f"-I{importlib.metadata.distribution(name).locate_file(path)}" for name, path in packages.items()
        ),
        needed=("libtvm_ffi.so", "libtvm_runtime.so"),
        version=" ".join([files_version(_SOURCES), *map(importlib.metadata.version, packages)]),
    )


def files_version(folder: Path) -> str:
    """A hash of the C++ in a folder: sources and headers."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".cc", ".h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def build_opencl_runtime(
    architecture: str = "", output: Path | None = None, sources: RuntimeSources | None = None
) -> Path:
    """Builds a runtime, unless the cache has it, and returns the library's path.

    Args:
        architecture: `x86_64` or `aarch64`; this machine's without it.
        output: where to put a copy.
        sources: of which runtime; those of `runtime_sources` without it.

    Raises:
        UserError: there is no C++ compiler for the architecture, no OpenCL headers, or the compiler fails.
    """
    architecture, sources = architecture or platform.machine(), sources or runtime_sources()
    library = _cached_path(architecture, sources)
    if output is not None:
        check_file(output)
    if not library.exists():
        command = _compiler(architecture)
        with locked(library.parent / FOLDER_LOCK):
            if not library.exists():  # Nobody built it meanwhile.
                with written_file(library) as temporary:
                    _compile(command, sources, temporary)
    if output is None:
        return library
    with written_file(output) as temporary:
        shutil.copy(library, temporary)
    return output


def find_opencl_runtime(sources: RuntimeSources | None = None) -> Path:
    """The library for this machine: that of the sources' environment variable, or built.

    Raises:
        UserError: it is not where the variable says, or cannot be built.
    """
    sources = sources or runtime_sources()
    given = os.environ.get(sources.variable)
    if given is None:
        return build_opencl_runtime(sources=sources)
    if not Path(given).is_file():
        raise UserError(f"{sources.variable} names {given}, which is no file. `ksm-hw opencl build` makes one.")
    return Path(given).absolute()


def _cached_path(architecture: str, sources: RuntimeSources) -> Path:
    """A path of its own for each version: a loader never takes a changed library from a path that it knows."""
    version = hashlib.sha256(sources.version.encode()).hexdigest()[:16]
    return cache_folder("opencl") / f"{architecture}-{version}" / sources.library


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


def _compile(command: list[str], sources: RuntimeSources, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        headers = _opencl_headers(Path(folder))
        stubs = [_stub(command, Path(folder), name) for name in (*sources.needed, _LOADER)]
        _run(
            [*command, "-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", *sources.options, headers]
            + [str(source) for source in sources.files]
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
