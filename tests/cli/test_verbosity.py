"""`-v` and `-vv`: every command takes them; they show the toolkit's decisions on stderr, and nobody else's."""

import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.masks.bundle import Bundle

PACKAGES = ("ksm_hw", "tvm_passes")


@pytest.fixture(autouse=True)
def quiet_afterwards() -> Iterator[None]:
    """After the test the loggers are as quiet as before."""
    yield
    for package in PACKAGES:
        logging.getLogger(package).handlers.clear()
        logging.getLogger(package).setLevel(logging.NOTSET)


def commands_of(group: object, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The words of each command, and the options that it takes; of a group that does something alone too."""
    options = [name for parameter in group.params for name in parameter.opts]  # type: ignore[attr-defined]
    if not hasattr(group, "commands") or group.invoke_without_command:  # type: ignore[attr-defined]
        yield words, options
    for name, command in getattr(group, "commands", {}).items():
        yield from commands_of(command, (*words, name))


def test_every_command_takes_it() -> None:
    found = dict(commands_of(typer.main.get_command(app)))
    assert {(), ("compile",), ("targets",), ("targets", "show"), ("board", "list")} <= found.keys()
    assert [words for words, options in found.items() if "-v" not in options] == []


@pytest.mark.parametrize(
    "arguments",
    [["doctor", "host", "-v"], ["-v", "doctor", "host"], ["-v", "doctor", "host", "-v"]],
    ids=["behind", "before", "both"],
)
def test_the_linker_is_named_once(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    (line,) = (line for line in result.stderr.splitlines() if "ksm_hw.toolchains.linker" in line)
    assert line.rstrip().endswith(f"links for {platform.machine()}")


def test_what_detect_found_is_named() -> None:
    shown = CliRunner().invoke(app, ["targets", "show", "host", "-v", "--json"])
    tvm_target = json.loads(shown.stdout)["tvm"]
    assert f"target host: mcpu of this machine is {tvm_target['mcpu']}" in shown.stderr


def test_a_terminal_shows_it_too() -> None:
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "ksm_hw.cli", "doctor", "host", "-v"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=end, check=True, env={**os.environ, "COLUMNS": "200"})
    os.close(end)
    assert b"ksm_hw.toolchains.linker: " in os.read(terminal, 1 << 16)


def test_it_is_quiet_without() -> None:
    result = CliRunner().invoke(app, ["doctor", "host"])
    assert result.stderr == ""


def test_json_stays_json_and_twice_shows_more(bundle_folder: Path, tmp_path: Path) -> None:
    command = ["compile", "--bundle", str(bundle_folder), "--target", "host", "--task", "kernel-task", "--json"]
    once = CliRunner().invoke(app, [*command, "-v", "-o", str(tmp_path / "once")])
    twice = CliRunner().invoke(app, [*command, "-vv", "-o", str(tmp_path / "twice")])
    for result, folder in ((once, tmp_path / "once"), (twice, tmp_path / "twice")):
        ((artifact,),) = json.loads(result.stdout).values()
        assert artifact["path"] == str(folder)
        assert f"links for {platform.machine()}" in result.stderr
        assert "fused_conv2d_add_relu: Convolution: Tiling(" in result.stderr
    # The command of the linker.
    assert " -shared " in twice.stderr and " -shared " not in once.stderr


def test_others_stay_quiet(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """Torch's loggers, and whichever library's: none gets a handler or a level."""
    other = logging.getLogger("torch.some.module")
    monkeypatch.setattr("ksm_hw.toolchains.doctor.examine", lambda names: other.info("noise") or [])
    result = CliRunner().invoke(app, ["doctor", "-vv"])
    assert "noise" not in result.stderr and not logging.getLogger().isEnabledFor(logging.INFO)
