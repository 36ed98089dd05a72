"""The interface to Relay's environment: a process there that answers commands.

Both ways a message is a line of JSON; where that has `bytes`, so many bytes follow it. A request has `command` and its
`arguments`, an answer one of `result`, `error` (for a person) or, before those, what a listener is told: `step` (what
is done now), `progress` (of a tune) or `measure` (a library of `LibraryTimer`), for which it waits for a `reply`:

    version                                                        TVM's
    compile   bundle, output, target, link, fold, batch, tuned     a list of parts (`compile_tasks.compile_tasks`)
    tune      bundle, records, tuner, target, link, batch, trials  what came of it (`tune_operators.tune_operators`)
    time      library, tensors, limit, threads, cores              seconds or an error (`time_library.time_library`)
    load      artifact, threads                                    the first task's name
    switch    task                                                 seconds
    run       shape; the bytes are images, float32                 shape; the bytes are logits, float32
"""

import contextlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.runtime.relay.environment import process_variables

_LAST_WORDS = 2000  # Characters of what a process that died had written.


def write_message(stream: IO[bytes], content: dict[str, Any], array: npt.NDArray[np.float32] | None = None) -> None:
    """Writes a message, with the bytes of an array behind it."""
    if array is not None:
        content = {**content, "bytes": array.nbytes}
    stream.write(json.dumps(content).encode() + b"\n")
    if array is not None:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Reads a message and the bytes behind it; None at the end of the stream."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    content: dict[str, Any] = json.loads(line)
    size = content.pop("bytes", 0)
    behind = stream.read(size)
    return None if len(behind) < size else (content, behind)


class RelayProcess:
    """A process in Relay's environment. Made by `relay_process`."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", errors: IO[str], listeners: dict[str, Callable[[Any], Any]]
    ) -> None:
        self._process, self._errors, self._listeners = process, errors, listeners

    def call(self, command: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Sends a command and waits for its result.

        Args:
            command, arguments: see above.
            seconds: that it may take; then the process is killed.

        Raises:
            UserError: what the process says, or it died.
        """
        self._send({"command": command, "arguments": arguments})
        with contextlib.ExitStack() as stack:
            if seconds is not None:
                late = threading.Timer(seconds, self._process.kill)
                late.start()
                stack.callback(late.cancel)
            return self._answer()[0]

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits of a batch."""
        self._send({"command": "run", "arguments": [images.shape]}, images)
        shape, logits = self._answer()
        assert len(logits) == 4 * math.prod(shape)
        return np.frombuffer(logits, np.float32).reshape(shape)

    def _send(self, content: dict[str, Any], array: npt.NDArray[np.float32] | None = None) -> None:
        assert self._process.stdin is not None
        try:
            write_message(self._process.stdin, content, array)
        except BrokenPipeError:
            raise UserError(self._why_it_died()) from None

    def _answer(self) -> tuple[Any, bytes]:
        assert self._process.stdout is not None
        while (message := read_message(self._process.stdout)) is not None:
            content, behind = message
            if "error" in content:
                raise UserError(content["error"])
            if "result" in content:
                return content["result"], behind
            ((kind, said),) = content.items()
            reply = self._listeners[kind](said)
            if reply is not None:
                self._send({"reply": reply})
        raise UserError(self._why_it_died())

    def _why_it_died(self) -> str:
        status = self._process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._errors.seek(0)
        last_words = self._errors.read()[-_LAST_WORDS:].strip() or "It wrote nothing."
        return (
            f"Relay's process {how}: TVM 0.19 cannot compile or run this, or the memory ran out. Use --ir relax. Its "
            f"last words:\n{last_words}"
        )


@contextlib.contextmanager
def relay_process(
    only_runs: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
    on_progress: Callable[[dict[str, Any]], None] = lambda progress: None,
    measure: Callable[[dict[str, Any]], dict[str, Any]] = lambda library: {},
) -> Iterator[RelayProcess]:
    """Starts a process in Relay's environment, which ends with the block.

    Args:
        only_runs: whether it will run artifacts and compile none.
        on_step: called with the name of each step of what the process does.
        on_progress: called with what a tune says of itself after each trial.
        measure: measures a library that a tune built: its `path`, `tensors` and `limit`; gives what `time` does.

    Raises:
        UserError: Relay is not installed.
    """
    variables = process_variables(only_runs)
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "ksm_hw.compiler.relay.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=variables,
        )
        try:
            yield RelayProcess(process, errors, {"step": on_step, "progress": on_progress, "measure": measure})
        finally:
            process.kill()
            process.communicate()
