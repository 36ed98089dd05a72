"""A child process that answers commands, seen from both sides.

Both ways a message is a line of JSON; where that has `array`, a dtype and a shape, the bytes of an array follow it. A
request has a `command` and its `arguments`, to which the array is the last. An answer is a `result`, or the array, or
an `error` for a person. Before it comes what a listener of the parent is told, under the listener's name; where that
gives something, the child gets it as a `reply`.
"""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

_TRACEBACK = "Traceback (most recent call last)"
_LAST_WORDS = 2000  # Characters of what a process that died had written.

Array = npt.NDArray[Any]
Message = tuple[dict[str, Any], Array | None]


class ChildProcess:
    """A process of this Python that answers commands. Made by `child_process`."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        errors: IO[str],
        name: str,
        advice: str,
        listeners: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        self._process, self._errors = process, errors
        self._name, self._advice = name, advice
        self._listeners = listeners

    def call(self, command: str, /, *arguments: Any, seconds: float | None = None) -> Any:
        """Sends a command and waits for its result.

        Args:
            command: its name.
            arguments: what JSON can say; the last may be an array.
            seconds: that it may take; then the process is killed.

        Raises:
            UserError: what the process says, or it died.
        """
        array = arguments[-1] if arguments and isinstance(arguments[-1], np.ndarray) else None
        with contextlib.ExitStack() as stack:
            if seconds is not None:
                late = threading.Timer(seconds, self._process.kill)
                late.start()
                stack.callback(late.cancel)
            self._send({"command": command, "arguments": arguments if array is None else arguments[:-1]}, array)
            return self._answer()

    def _send(self, content: dict[str, Any], array: Array | None = None) -> None:
        assert self._process.stdin is not None
        try:
            _write(self._process.stdin, content, array)
        except BrokenPipeError:
            raise self._death() from None

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while (message := _read(self._process.stdout)) is not None:
            content, array = message
            if "error" in content:
                raise UserError(content["error"])
            if "result" in content:
                return content["result"] if array is None else array
            ((listener, said),) = content.items()
            reply = self._listeners[listener](said)
            if reply is not None:
                self._send({"reply": reply})
        raise self._death()

    def _death(self) -> UserError:
        status = self._process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL:
            how += " (perhaps the memory ran out)"
        self._errors.seek(0)
        last_words = self._errors.read()[-_LAST_WORDS:].strip() or "It wrote nothing."
        if _TRACEBACK in last_words:
            _log.debug("%s: %s", self._name, last_words)
            last_words = last_words.splitlines()[-1]  # What was raised; where says nothing to a user.
        return UserError(f"{self._name} {how}: {self._advice} Its last words:\n{last_words}")


@contextlib.contextmanager
def child_process(
    module: str,
    name: str,
    advice: str,
    variables: Mapping[str, str] | None = None,
    listeners: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Iterator[ChildProcess]:
    """Starts a process, which ends with the block.

    Args:
        module: what it runs, which calls `ParentProcess.serve`.
        name: what the user is told it is, if it dies,
        advice: and what to do then, in sentences.
        variables: its environment; that of this process without.
        listeners: functions by their names, which take what the process tells them; see `ParentProcess`.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
        )
        _log.info("%s, %d, runs %s", name, process.pid, module)
        try:
            yield ChildProcess(process, errors, name, advice, listeners or {})
        finally:
            process.kill()
            process.communicate()


class ParentProcess:
    """The process that started this one, as this one sees it.

    From the moment that it is made, what libraries print goes to the errors and not between the answers.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def serve(self, commands: Mapping[str, Callable[..., Any]]) -> None:
        """Answers commands until there are no more. A UserError is told to the parent; others end this process."""
        while (message := _read(sys.stdin.buffer)) is not None:
            content, array = message
            arguments = content["arguments"] if array is None else [*content["arguments"], array]
            try:
                result = commands[content["command"]](*arguments)
            except UserError as error:
                _write(self._answers, {"error": str(error)})
                continue
            if isinstance(result, np.ndarray):
                _write(self._answers, {"result": None}, result)
            else:
                _write(self._answers, {"result": result})

    def tell(self, listener: str, said: Any) -> None:
        """Tells one of the parent's listeners something that it has no reply for."""
        _write(self._answers, {listener: said})

    def ask(self, listener: str, said: Any) -> Any:
        """What one of the parent's listeners says to something."""
        self.tell(listener, said)
        message = _read(sys.stdin.buffer)
        if message is None:
            raise SystemExit  # The parent is gone.
        return message[0]["reply"]


def _write(stream: IO[bytes], content: dict[str, Any], array: Array | None = None) -> None:
    if array is not None:
        content = {**content, "array": [array.dtype.name, array.shape]}
    stream.write(json.dumps(content).encode() + b"\n")
    if array is not None:
        stream.write(array.tobytes())
    stream.flush()


def _read(stream: IO[bytes]) -> Message | None:
    """A message; None at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    content: dict[str, Any] = json.loads(line)
    if "array" not in content:
        return content, None
    dtype, shape = content.pop("array")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    behind = stream.read(size)
    return None if len(behind) < size else (content, np.frombuffer(behind, dtype).reshape(shape))
