"""A console that prints texts as they are: names of files, classes and tasks hold whatever somebody wrote."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

# What moves a terminal's cursor, turns the direction of a line, or is half of a character: bytes that are no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FIRST_BYTE = 0xDC00  # Python's stand-in for a byte 0 that is no UTF-8.


class PlainConsole(Console):
    """A console without markup: brackets are brackets, and what has a style is a `Text`.

    Characters that a terminal would obey are printed as escapes, and so are bytes of file names that are no UTF-8.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `Console.render`: everything that is printed comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        """As `Console.status`."""
        return _PlainStatus(_unstyled(status), console=self, **options)


class _PlainStatus(Status):
    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        super().update(_unstyled(status), **options)


def printable(text: str) -> str:
    """A text with escapes in the place of characters that a terminal would obey, or that cannot be encoded."""
    return _UNPRINTABLE.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    byte = code - _FIRST_BYTE if 0x80 <= code - _FIRST_BYTE <= 0xFF else code
    return f"\\x{byte:02x}" if byte <= 0xFF else f"\\u{code:04x}"


def _unstyled(status: Any) -> Any:
    return Text(status) if isinstance(status, str) else status
