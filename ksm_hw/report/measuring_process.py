"""The process that measures an artifact, and the handle of the process that asked for it.

    python -m ksm_hw.report.measuring_process ARTIFACT

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
from typing import IO, TYPE_CHECKING, Any

from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.runtime.session import Session

WARM_UP_RUNS = 3  # Of each task in each round, not counted.


class MeasuringProcess:
    """A child process that has loaded an artifact, and measures what it is asked to; see `_serve`."""

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
def measuring_process(artifact: Path) -> Iterator[MeasuringProcess]:
    command = [sys.executable, "-m", "ksm_hw.report.measuring_process", str(artifact)]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        try:
            yield MeasuringProcess(process, errors, artifact)
        finally:
            process.kill()
            process.communicate()


def _serve(artifact: str) -> None:
    """Loads an artifact, writes the facts of it, then answers commands: a line of JSON for each line of JSON."""
    from ksm_hw.runtime.without_torch import hide_torch

    hide_torch()  # Its memory would count as the runtime's.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # What libraries print goes to the errors and not between the answers.

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        session, facts = _load(artifact)
    except UserError as error:
        answer(error=str(error))
        return
    answer(result=facts)
    for line in sys.stdin:
        answer(result=_obey(session, **json.loads(line)))


def _load(artifact: str) -> "tuple[Session, dict[str, Any]]":
    import time

    import tvm

    from ksm_hw.runtime.session import Session

    process_start_bytes = _process_peak_bytes()
    start = time.perf_counter()
    session = Session.load(artifact)
    return session, {
        "load_seconds": time.perf_counter() - start,
        "process_start_bytes": process_start_bytes,
        "tvm_version": tvm.__version__,
        "threads": tvm.get_global_func("runtime.NumThreads")(),
    }


def _obey(session: "Session", command: str, **arguments: Any) -> Any:
    match command:
        case "run":
            session.switch(arguments["task"])
            session.measure_run(WARM_UP_RUNS)
            return session.measure_run(arguments["repeats"])
        case "switch":
            return _measure_switches(session, arguments["tasks"], arguments["rounds"])
        case "copy":
            return _measure_copies(session, arguments["repeats"])
        case "memory":
            return _memory_facts(session)
    raise AssertionError(command)


def _measure_switches(session: "Session", tasks: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of the switches to each task, one after the other; none where there is one task.

    The session keeps one task's weights, so each switch finds none. An inference lies between two, as in use, for
    else the caches would hold nothing but the weights.
    """
    seconds: dict[str, list[float]] = {task: [] for task in tasks}
    if len(tasks) < 2:
        return seconds
    session.switch(tasks[-1])
    for _ in range(rounds):
        for task in tasks:
            session.measure_run(1)
            seconds[task].append(session.switch(task))
    return seconds


def _measure_copies(session: "Session", repeats: int) -> list[float]:
    """Seconds of copies of as many bytes as the live weights, inside the device's memory."""
    import time

    import numpy as np
    import tvm

    if not session.weights_bytes:
        return []
    device = tvm.runtime.device(session.manifest.device, 0)
    # The source must be written to: memory that never was is one page of zeros, which stays in the cache.
    source = tvm.runtime.tensor(np.ones(session.weights_bytes, np.uint8), device)
    destination = tvm.runtime.empty(source.shape, source.dtype, device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        source.copyto(destination)
        device.sync()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # In the first the system finds pages for the destination.


def _memory_facts(session: "Session") -> dict[str, Any]:
    from ksm_hw.runtime.task_parameters import is_shared, task_parameters

    facts: dict[str, Any] = {
        "process_peak_bytes": _process_peak_bytes(),
        "weights_bytes": session.weights_bytes,
        "parameters_bytes": session.parameters_bytes,
        "resident_bytes": {},
    }
    for task, entry in session.manifest.tasks.items():
        pack = session.packs[task]
        own = [name for name in entry.parameters if not is_shared(name, pack)]
        arrays = task_parameters(own, pack, {}, session.manifest.output_shape[1])
        facts["resident_bytes"][task] = sum(array.nbytes for array in arrays)
    return facts


def _process_peak_bytes() -> int:
    """Most memory that this process held resident so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak counts the parent's memory from before the program was started.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    _serve(sys.argv[1])
