"""However a command ends: an exit code of its own, one message at most, and never a traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ksm_hw import cli
from ksm_hw.cli import endings
from ksm_hw.cli.endings import exit_code_of
from ksm_hw.errors import UserError


def ending(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    def command() -> None:
        raise error

    code = exit_code_of(command)
    output = capsys.readouterr()
    assert output.out == "" and "Traceback" not in output.err
    return code, output.err


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ksm-hw"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("No [such] thing."), 2, "error: No [such] thing.\n"),
        (SystemExit(), 0, ""),
        (SystemExit(1), 1, ""),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a [b]"), 2, "error: a [b]: No such file or dir"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device. If that was on writing"),
        (MemoryError(), 2, "error: The memory ran out."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: The memory ran out."),
    ],
)
def test_what_a_user_can_mend(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    assert ending(error, capsys)[0] == code
    assert ending(error, capsys)[1].startswith(message) and bool(message) == bool(ending(error, capsys)[1])
    assert not cache.exists()


@pytest.mark.parametrize("error", [ValueError("odd [/red] thing"), RecursionError("too deep"), AssertionError()])
def test_a_fault_of_ours_is_said_to_be_one_and_its_details_are_kept(
    error: Exception, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    code, message = ending(error, capsys)
    assert code == 3
    assert message.startswith("error: This is a fault of ksm-hw") and f"{type(error).__name__}: {error}" in message
    (kept,) = cache.iterdir()
    assert str(kept) in message and "Traceback" in kept.read_text() and str(error) in kept.read_text()


def test_a_fault_whose_details_cannot_be_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "cache_folder", lambda name: Path("/dev/null") / name)
    assert "-vv shows its details" in ending(ValueError("odd"), capsys)[1]


def test_a_working_directory_that_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    # Before anything is done: libraries that look for their own parts would end the process.
    assert endings.exit_code_of(lambda: pytest.fail("it was done")) == 2
    assert capsys.readouterr().err == "error: The working directory is gone. Change to one that is there.\n"


def test_the_help_names_the_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ksm-hw", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "3 a fault of ksm-hw" in " ".join(capsys.readouterr().out.split())


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a shell command, in which `ksm-hw` is this one."""
    program = f"ksm-hw() {{ '{sys.executable}' -m ksm_hw.cli \"$@\"; }}; {command}"
    return subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=60, env={**os.environ, **variables}
    )


def test_whom_nobody_reads_did_not_fail_to_verify() -> None:
    def printing() -> None:
        try:
            raise BrokenPipeError
        except BrokenPipeError:  # As Typer and rich do.
            sys.exit(1)

    assert exit_code_of(printing) == 141


def test_output_that_cannot_be_written() -> None:
    for option in ("", "--json"):
        full = shell(f"ksm-hw targets {option} > /dev/full")
        assert full.returncode == 2 and full.stderr.startswith("error: No space left on device"), full
        assert "Traceback" not in full.stderr and "Exception" not in full.stderr
    assert shell("ksm-hw targets --json | true; exit ${PIPESTATUS[0]}").returncode in (0, 141)  # true may be late.
    closed = shell("ksm-hw targets >&-; echo $?")
    assert closed.stderr == ""


def test_an_encoding_that_lacks_what_is_printed(photographs: Path) -> None:
    done = shell("ksm-hw targets", PYTHONIOENCODING="ascii", TERM="dumb", NO_COLOR="1", COLUMNS="junk")
    assert done.returncode == 0 and done.stderr == "" and "rpi5" in done.stdout
    assert json.loads(shell("ksm-hw targets --json", PYTHONIOENCODING="ascii").stdout)["targets"]


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_asked_to_end_leaves_nothing(asked: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import os, sys, tempfile, time; from ksm_hw import cli\n"
        "def work():\n"
        "    with tempfile.TemporaryDirectory(): os.kill(os.getpid(), int(sys.argv[1])); time.sleep(60)\n"
        "cli.app = work; cli.main()"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program, str(int(asked))], env=environment, capture_output=True)
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (130, b"", [])
