"""TVM's runtime for a target's architecture: this machine's own, or out of the wheels for that architecture."""

import importlib.metadata
import logging
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.files.locks import FOLDER_LOCK, locked
from ksm_hw.files.written import written_file
from ksm_hw.user_folders import cache_folder

_log = logging.getLogger(__name__)

# Each library, and the package whose wheel has it as MODULE/lib/LIBRARY.
_LIBRARIES = {"libtvm_runtime.so": ("apache-tvm", "tvm"), "libtvm_ffi.so": ("apache-tvm-ffi", "tvm_ffi")}


def runtime_libraries(architecture: str) -> list[Path]:
    """The libraries that a compiled model needs where it runs, for an architecture: `x86_64`, `aarch64`.

    Those of another architecture are downloaded with pip once, of the version that is installed here, and kept.

    Raises:
        UserError: they cannot be downloaded; the message says which files to put where.
    """
    if architecture == platform.machine():
        return [_installed(package, f"{module}/lib/{name}") for name, (package, module) in _LIBRARIES.items()]
    folder = libraries_folder(architecture)
    kept = [folder / name for name in _LIBRARIES]
    if not all(path.is_file() for path in kept):
        with locked(folder / FOLDER_LOCK):
            if not all(path.is_file() for path in kept):
                _log.info("TVM's runtime for %s is not in %s: its wheels are downloaded", architecture, folder)
                _download(architecture, folder)
    return kept


def libraries_folder(architecture: str) -> Path:
    """Where libraries of another architecture are kept."""
    return cache_folder(f"tvm-runtime-{importlib.metadata.version('apache-tvm')}-{architecture}")


def _installed(package: str, file: str) -> Path:
    return Path(str(importlib.metadata.distribution(package).locate_file(file)))


def _download(architecture: str, folder: Path) -> None:
    packages = [f"{package}=={importlib.metadata.version(package)}" for package, _ in _LIBRARIES.values()]
    platforms = [f"--platform=manylinux_2_{minor}_{architecture}" for minor in (17, 24, 27, 28)]
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary=:all:", f"--dest={temporary}", *platforms, *packages],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise UserError(
                f"TVM's runtime for {architecture} cannot be downloaded ({said}). Go online, or put "
                f"{' and '.join(_LIBRARIES)} of the wheels {' and '.join(packages)} for {architecture} into {folder}."
            )
        for name, (package, module) in _LIBRARIES.items():
            (wheel,) = Path(temporary).glob(f"{package.replace('-', '_')}-[0-9]*.whl")
            with zipfile.ZipFile(wheel) as archive, written_file(folder / name) as path:
                path.write_bytes(archive.read(f"{module}/lib/{name}"))
