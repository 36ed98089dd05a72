"""How a command ends: its exit code, and what is said where it did not do what was asked."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.text import Text

from ksm_hw.cli.app import FAULT, NOBODY_READS, STOPPED, messages
from ksm_hw.errors import UserError
from ksm_hw.user_folders import cache_folder

_log = logging.getLogger(__name__)


def exit_code_of(command: Callable[[], object]) -> int:
    """Runs a command line; whatever happens, it becomes an exit code, and at most one message."""
    try:
        os.getcwd()  # Where there is none, relative paths mean nothing, and torch's libraries end the process.
        code = _exit_code(command)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        return _bad_input(str(error), error)
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        return NOBODY_READS
    except OSError as error:
        return _bad_input(_of_the_system(error), error)
    except Exception as error:
        if _is_lack_of_memory(error):
            return _bad_input("The memory ran out. Use a smaller batch, smaller images, or fewer tasks at once.", error)
        return _fault(error)
    finally:
        _forget_what_cannot_be_written()


def _exit_code(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):
            return NOBODY_READS  # Typer ends it with 1, which is for a verification that failed.
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _bad_input(message: str, error: Exception) -> int:
    say_error(message)
    _log.debug("it came from here", exc_info=error)
    return 2


def say_error(message: str) -> None:
    """Prints an error."""
    with contextlib.suppress(OSError):  # Where even that cannot be written the exit code says it.
        messages.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=True)


def _of_the_system(error: OSError) -> str:
    """What the system refused, in words."""
    try:
        os.getcwd()
    except OSError:
        return "The working directory is gone. Change to one that is there."
    names = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason = error.strerror or str(error) or type(error).__name__
    return f"{names}: {reason}." if names else f"{reason}. If that was on writing, free space or write elsewhere."


def _is_lack_of_memory(error: Exception) -> bool:
    # Torch has no type of its own for the memory of a CPU.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _fault(error: Exception) -> int:
    """Says that something happened that nobody foresaw, and keeps how."""
    said = (str(error).strip().splitlines() or [""])[-1]
    kept = _keep("".join(traceback.format_exception(error)))
    where = f"Its details are in {kept}: send them along where you report it." if kept else "-vv shows its details."
    say_error(f"This is a fault of ksm-hw, not of what it was given: {type(error).__name__}: {said}. {where}")
    _log.debug("the fault", exc_info=error)
    return FAULT


def _keep(details: str) -> Path | None:
    """Writes the details of the last fault into a file of the cache."""
    try:
        path = cache_folder("last-fault.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{sys.argv}\n{details}", errors="backslashreplace")
    except (OSError, UserError):
        return None
    return path


def _forget_what_cannot_be_written() -> None:
    """Python would try again at its end, and print a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
