"""Options: each that takes a number has a range, in its help and in its error, and names of options are whole."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The commands of the application with the words that call them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


COMMANDS = dict(commands(typer.main.get_command(app)))
NUMBERS = [
    (name, parameter)
    for name, command in COMMANDS.items()
    for parameter in command.params
    if re.search(r"\b(int|float)\b", parameter.display_type_rich(ctx=None) or "") and parameter.opts != ["-v"]
]


def bad_option(command: str, option: str, value: object) -> str:
    """The message of a command with one bad option; without what else it needs, for numbers are looked at first."""
    result = CliRunner().invoke(app, [*command.split(), f"{option}={value}"], terminal_width=300)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    return result.output


@pytest.mark.parametrize(("command", "parameter"), NUMBERS, ids=[f"{name} {p.opts[0]}" for name, p in NUMBERS])
def test_every_number_has_a_range(command: str, parameter: Any) -> None:
    assert parameter.min is not None and parameter.max is not None
    for value in (parameter.min - 1, parameter.max + 1, "nan", "inf", "-inf", "1" + 100 * "0", "-1" + 100 * "0"):
        assert f"Invalid value for '{parameter.opts[-1]}'" in bad_option(command, parameter.opts[-1], value)


def test_the_range_is_in_the_error_and_in_the_help() -> None:
    assert "less than or equal to 4294967295" in bad_option("train", "--seed", 2**32)
    assert "greater than or equal to 2" in bad_option("train", "--batch-size", 1)
    output = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout
    assert "[32<=x<=2048]" in output and "[0<=x<=4294967295]" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_names_of_options_are_whole_in_80_columns(command: str) -> None:
    output = CliRunner().invoke(app, [*command.split(), "--help"], env={"COLUMNS": "80"}).stdout
    for parameter in COMMANDS[command].params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert not option.startswith("-") or re.search(rf"(?<!\S){option}(?![\w…-])", output), option


def test_defaults_that_no_value_shows_are_not_eaten() -> None:
    output = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert "[default: ImageNet weights]" in output and "[default: as the data says]" in output


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "-1", "²", "x", ""])
def test_ports_have_a_range(port: str) -> None:
    result = CliRunner().invoke(app, ["board", "list", "--tracker", f"127.0.0.1:{port}"])
    assert "ports go from 1 to 65535" in str(result.exception)


def test_why_a_tracker_cannot_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for bind, reason in {"127.0.0.1": "Address already in use", "203.0.113.1": "Cannot assign requested"}.items():
            result = CliRunner().invoke(app, ["board", "tracker", "--bind", bind, "--port", port])
            assert isinstance(result.exception, UserError)
            assert str(result.exception).startswith(f"Cannot listen on {bind}:{port}: {reason}")


# Everything that is wrong about a command line is told before images are looked at: these are not there.
BEFORE_IMAGES = {
    "task": (["--task", "../evil"], "cannot name a task"),
    "network": (["--backbone", "resnet81"], "No backbone named 'resnet81'"),
    "weights": (["--weights", "nowhere.pt"], "No weights at nowhere.pt"),
    "size": (["--backbone", "inception_v3", "--image-size", "64"], r"does not take images of 64 pixels .* take 299"),
    "damaged weights": (["--weights", __file__], "Cannot read"),
    "masks": (["--mask-initial", "0.001"], "every weight begins at 0"),
}


@pytest.mark.parametrize("wrong", BEFORE_IMAGES)
def test_what_is_wrong_is_told_before_images_are_looked_at(wrong: str, tmp_path: Path) -> None:
    options, message = BEFORE_IMAGES[wrong]
    command = ["train", "--task", "cars", "--data", str(tmp_path / "nowhere"), "--bundle", str(tmp_path / "bundle")]
    assert re.search(message, str(CliRunner().invoke(app, [*command, *options]).exception))
