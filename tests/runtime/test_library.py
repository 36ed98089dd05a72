"""A library that does not load: what it is, and what to do."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_tasks import tiny_bundle, tiny_manifest

from ksm_hw.artifact.output import write_artifact
from ksm_hw.errors import UserError
from ksm_hw.runtime.library import check_machine, loaded_library
from ksm_hw.runtime.session import Session

HERE = os.uname().machine
OTHER = {"x86_64": ("aarch64", 183)}.get(HERE, ("x86_64", 62))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("library")
    (folder / "needed.c").write_text("int needed(void) { return 1; }")
    (folder / "model.c").write_text("int needed(void); int model(void) { return needed(); }")
    for name, more in (("needed", []), ("model", [f"-L{folder}", "-lneeded"])):
        output = folder / ("libneeded.so" if name == "needed" else "model.so")
        subprocess.run(["cc", "-shared", "-fPIC", folder / f"{name}.c", "-o", output, *more], check=True)
    (folder / "libneeded.so").unlink()
    return folder / "model.so"


def changed(path: Path, offset: int, content: bytes, to: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    to.write_bytes(data)
    return to


def test_a_library_of_another_machine(library: Path, tmp_path: Path) -> None:
    check_machine(library)
    name, number = OTHER
    path = changed(library, 18, number.to_bytes(2, "little"), tmp_path / "other.so")
    with pytest.raises(UserError, match=rf"was compiled for {name}, and this machine is {HERE}\..*compile the bundle"):
        check_machine(path)


@pytest.mark.parametrize("content", [b"", b"MZ", b"\x7fELF", b"\xcf\xfa\xed\xfe" + bytes(60)])
def test_no_library_at_all(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(content)
    with pytest.raises(UserError, match="is no library of Linux"):
        check_machine(tmp_path / "model.so")


def test_a_library_that_the_system_lacks(library: Path) -> None:
    with pytest.raises(UserError, match=r"needs libneeded\.so, which this system lacks\. Install"):
        loaded_library(library, ctypes.CDLL)


def test_a_damaged_library(library: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.so").write_bytes(library.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut\.so does not load: .*copy or compile it again"):
        loaded_library(tmp_path / "cut.so", ctypes.CDLL)


def test_a_system_that_is_too_old(library: Path) -> None:
    def load(path: str) -> None:
        raise OSError(f"/lib/libc.so.6: version `GLIBC_2.99' not found (required by {path})")

    with pytest.raises(UserError, match=r"needs GLIBC_2\.99, which this system is too old for"):
        loaded_library(library, load)


@pytest.fixture
def unexecutable(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "noexec"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", folder], capture_output=True).returncode != 0:
        pytest.skip("only root can mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_folder_from_which_nothing_may_be_run(library: Path, unexecutable: Path) -> None:
    path = Path(shutil.copy(library, unexecutable))
    with pytest.raises(UserError, match=r"`noexec`\)\. Copy it to another folder"):
        loaded_library(path, ctypes.CDLL)


@pytest.mark.parametrize("kind", ["another machine's", "damaged", "on a noexec mount"])
def test_a_session_says_it(kind: str, library: Path, tmp_path: Path, unexecutable: Path) -> None:
    """Of an artifact whose files are as its manifest says: how the library came to be so is another matter."""
    contents = {
        "another machine's": changed(library, 18, OTHER[1].to_bytes(2, "little"), tmp_path / "other.so").read_bytes(),
        "damaged": library.read_bytes()[:100],
        "on a noexec mount": library.read_bytes(),
    }
    messages = {"another machine's": "was compiled for", "damaged": "may be damaged", "on a noexec mount": "noexec"}
    bundle = tiny_bundle("cars")
    folder = (unexecutable if "mount" in kind else tmp_path) / "artifact"
    write_artifact(folder, tiny_manifest(bundle), lambda path: _write(path / "model.so", contents[kind]), bundle)
    with pytest.raises(UserError, match=messages[kind]):
        Session.load(folder)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
