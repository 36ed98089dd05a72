"""The handle of a child process that speaks lines of JSON, such as an engine's."""

import contextlib
import json
import selectors
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from peers.catalogue import Engine, Precision
from peers.children import end_child, start_child
from peers.environments import python_of, variables_of
from peers.failures import EngineError, last_words

SECONDS_TO_LOAD = 900  # torch.compile of a deep network takes minutes on a small machine.
SECONDS_TO_ANSWER = 300


class EngineProcess:
    """A child process, which has so many seconds for its first answer; `facts` is that."""

    def __init__(self, process: "subprocess.Popen[bytes]", errors: IO[str], seconds: float = SECONDS_TO_LOAD) -> None:
        self._process, self._errors = process, errors
        self._system = psutil.Process(process.pid)
        self.facts = self._answer(seconds)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Sends a line and waits for the answer.

        Raises:
            EngineError: the process failed, ended or does not answer.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # The process died; _answer tells how.
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(SECONDS_TO_ANSWER)

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far, over all its threads."""
        times = self._system.cpu_times()
        return float(times.user + times.system)

    def _answer(self, timeout: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                raise EngineError(f"it did not answer within {timeout:.0f} s")
        line = stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise EngineError(f"its process ended with status {status}: {last_words(self._errors.read())}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer


@contextlib.contextmanager
def answering_process(command: Sequence[str], variables: Mapping[str, str]) -> Iterator[EngineProcess]:
    """A program that answers as `EngineProcess` wants it, with these variables; it is killed when the block ends.

    Raises:
        EngineError: it fails before its first answer.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = start_child(command, variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        try:
            yield EngineProcess(process, errors)
        finally:
            end_child(process)


def engine_process(
    environment: str, module: str, *arguments: str | Path, variables: Mapping[str, str] | None = None
) -> contextlib.AbstractContextManager[EngineProcess]:
    """A module of this package, run in an environment's Python, as `answering_process`."""
    command = [str(python_of(environment)), "-m", module, *map(str, arguments)]
    return answering_process(command, {**variables_of(environment), **(variables or {})})


def serving_process(
    engine: Engine, task_folder: Path, threads: int, precision: Precision = "float32"
) -> contextlib.AbstractContextManager[EngineProcess]:
    """An engine that has loaded a network and measures it (`peers.serve`), as `engine_process`."""
    arguments = (engine.module, engine.variant, task_folder, str(threads), precision)
    return engine_process(engine.environment, "peers.serve", *arguments, variables=engine.variables)
