"""The process that measures an artifact, and the handle of the process that asked for it.

    python -m ksm_hw.measuring.process ARTIFACT [THREADS]

writes a line of JSON with the facts of the loaded artifact, then answers each line of JSON that it reads with one.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.errors import UserError


class Measured(Protocol):
    """An artifact that was loaded in a process of its own, here or on a board, and can be measured there."""

    facts: dict[str, Any]

    def ask(self, command: str, **arguments: Any) -> Any:
        """One measurement (`measuring.measure`)."""


class MeasuringProcess:
    """A child process that has loaded an artifact, and measures what it is asked to (`measuring.measure`)."""

    def __init__(self, process: "subprocess.Popen[str]", errors: IO[str], artifact: Path) -> None:
        self._process, self._errors, self._artifact = process, errors, artifact
        self.facts: dict[str, Any] = self._answer()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Sends a command and waits for what it gives."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # The process died; _answer tells how.
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last_words = self._errors.read()[-2000:].strip() or "It wrote nothing."
            raise UserError(
                f"The process that measured {self._artifact} ended with status {status}"
                + (" (killed; perhaps the memory ran out)" if status == -9 else "")
                + f". Check the artifact with `ksm-hw verify`. Its last words:\n{last_words}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]


@contextlib.contextmanager
def measuring_process(artifact: Path, threads: int | None = None) -> Iterator[MeasuringProcess]:
    variables = None
    if read_manifest(artifact).ir == "relay":
        from ksm_hw.runtime.relay.environment import process_variables

        variables = process_variables(only_runs=True)
    command = [sys.executable, "-m", "ksm_hw.measuring.process", str(artifact)]
    if threads is not None:
        command.append(str(threads))
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=variables,
        )
        try:
            yield MeasuringProcess(process, errors, artifact)
        finally:
            process.kill()
            process.communicate()


def _serve(artifact: str, threads: str | None = None) -> None:
    """Loads an artifact, writes the facts of it, then answers commands: a line of JSON for each line of JSON."""
    from ksm_hw.runtime.without_torch import hide_torch

    hide_torch()  # Its memory would count as the runtime's.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print goes to the errors and not between the answers.

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    from ksm_hw.measuring.session import load_measured, measure

    try:
        session, facts = load_measured(Path(artifact), int(threads) if threads else None)
    except UserError as error:
        answer(error=str(error))
        return
    answer(result=facts)
    for line in sys.stdin:
        answer(result=measure(session, **json.loads(line)))


if __name__ == "__main__":
    _serve(*sys.argv[1:])
