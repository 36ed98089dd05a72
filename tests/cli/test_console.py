"""Names are printed as they are, whatever is in them, and obeyed by nobody; commands that are suggested work."""

import io
import os
import shlex
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import command, messages
from ksm_hw.cli.console import PlainConsole, printable

HOSTILE = "photo [copy] [/red] [bold]x[/bold] :smile: \\[a]"
ESCAPES = {"\x1b[31mred": "\\x1b[31mred", "a\rb": "a\\x0db", "\u202etxt.exe": "\\u202etxt.exe", "\x9b1m": "\\x9b1m"}


def printed(*things: object, **options: object) -> str:
    stream = io.StringIO()
    PlainConsole(file=stream, width=200, force_terminal=True, color_system=None).print(*things, **options)
    return stream.getvalue()


def test_brackets_are_brackets_wherever_they_stand() -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    assert printed(HOSTILE, soft_wrap=True) == f"{HOSTILE}\n"
    assert printed(table).count(HOSTILE) == 3
    assert printed(Text.assemble((HOSTILE, "bold"))).strip() == HOSTILE


@pytest.mark.parametrize("name", ESCAPES)
def test_a_terminal_obeys_no_name(name: str) -> None:
    assert printable(name) == ESCAPES[name]
    table = Table()
    table.add_row(name, Text(name, "red"))
    for shown in (printed(name), printed(Text(name)), printed(table)):
        assert not set("\x1b\r\u202e\x9b") & set(shown)
    assert printable("Grüße\t漢\n") == "Grüße\t漢\n"


def test_bytes_that_are_no_utf_8_are_shown() -> None:
    assert printed(os.fsdecode(b"caf\xe9.jpg")) == "caf\\xe9.jpg\n"


def test_a_status_shows_names_too(capsys: pytest.CaptureFixture[str]) -> None:
    with messages.status(HOSTILE) as status:
        status.update(f"{HOSTILE} again")
        assert status.renderable.text.plain == f"{HOSTILE} again"  # type: ignore[union-attr]


def test_commands_are_quoted_for_the_shell() -> None:
    names = ["my tasks/$(x)", "a'b", Path("photo [copy].jpg")]
    assert shlex.split(command("verify", *names)) == ["ksm-hw", "verify", *map(str, names)]
