"""The command line. Each command parses, calls one function and prints; what is slow to import is imported in it."""

import sys

from rich.markup import escape

from ksm_hw.cli.app import app, messages
from ksm_hw.errors import UserError

# isort: off
# Importing a module adds its commands to the application, in the order of the help.
from ksm_hw.cli import train, compile, tune, run, check, profile, listings, targets, boards, opencl, relay  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line; bad input becomes one message and exit code 2."""
    try:
        app()
    except UserError as error:
        messages.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
