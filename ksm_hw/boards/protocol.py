"""What both ends of a board's connection agree on.

The functions that a board serves take and give texts of JSON and tensors, and a failure that a user can mend comes as
{"error": message}, a result as {"result": value}:

    ksm_hw.board.version()                      `VERSION` there, and the version of ksm-hw
    ksm_hw.board.missing(names)                 those of the files that the board does not hold; see `kept_name`
    ksm_hw.board.keep(name)                     takes the uploaded file of that name into the board's cache
    ksm_hw.board.load(manifest, threads)        loads an artifact of kept files into a session: its first task's name
    ksm_hw.board.switch(task)                   `Session.switch`: seconds
    ksm_hw.board.run(images)                    `Session.run`: a tensor
    ksm_hw.board.measure_load(manifest, threads)  loads an artifact in a process of its own: its number and its facts
    ksm_hw.board.measure(number, request)       measures it (`measuring.session.measure`)
    ksm_hw.board.time_library(name, request)    times the uploaded library, in a process of Relay (`LibraryTimer`)
    ksm_hw.board.last_crash()                   how the last session's process died, if it did
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError

# Counts up when a function comes, goes, or takes or gives something else.
VERSION = 1
FUNCTIONS = (
    "version",
    "missing",
    "keep",
    "load",
    "switch",
    "run",
    "measure_load",
    "measure",
    "time_library",
    "last_crash",
)


def function_name(function: str) -> str:
    """The name of one of these functions in TVM's table of both ends."""
    return f"ksm_hw.board.{function}"


def kept_name(file: str, sha256: str) -> str:
    """The name under which a board keeps a file: its hash, and the suffix by which TVM knows a library."""
    return sha256 + Path(file).suffix


def answered(function: Callable[..., Any]) -> Callable[..., str]:
    """A function of the board whose result becomes a text of JSON; what it raises becomes one, too."""

    @functools.wraps(function)
    def answer(*arguments: Any) -> str:
        try:
            return json.dumps({"result": function(*arguments)})
        except Exception as error:
            return failure(error)

    return answer


def failure(error: Exception) -> str:
    """What a function of the board gives in the place of a result: without it the board would seem to be gone."""
    if isinstance(error, UserError):
        return json.dumps({"error": str(error)})
    if isinstance(error, OSError):
        return json.dumps({"error": f"its system refused something: {error}. Free space there, or look at its cache."})
    return json.dumps({"error": f"this is a fault of ksm-hw there: {type(error).__name__}: {error}"})


def result_of(answer: str) -> Any:
    """What a function of the board gave.

    Raises:
        UserError: it failed; the board's message.
    """
    content = json.loads(answer)
    if "error" in content:
        raise UserError(content["error"])
    return content["result"]
