"""Measuring a session from inside its process: times, memory. Answers are plain data, to be sent to another process."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tvm

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.runtime.device_session import DeviceSession
from ksm_hw.runtime.machine import process_peak_bytes, this_machine

WARM_UP_RUNS = 3  # Of each task in each round, not counted.
_SHORTEST = 1e-8  # Seconds of a call that took less than what is known of the watching; rates need more than 0.


def load_measured(artifact: Path, threads: int | None = None) -> tuple[DeviceSession, dict[str, Any]]:
    """Loads an artifact, and gives the facts of that: seconds, bytes before it, the machine.

    Raises:
        UserError: as `Session.load`.
    """
    load = _loader(artifact)
    machine, process_start_bytes = this_machine(), process_peak_bytes()
    start = time.perf_counter()
    session = load(artifact, threads=threads)
    return session, {
        "load_seconds": time.perf_counter() - start,
        "process_start_bytes": process_start_bytes,
        "tvm_version": tvm.__version__,
        "threads": tvm.get_global_func("runtime.NumThreads")(),
        "machine": dataclasses.asdict(machine),
    }


def _loader(artifact: Path) -> Callable[..., DeviceSession]:
    """What loads an artifact in this process: of Relay's only its own environment can."""
    if read_manifest(artifact).ir == "relay":
        from ksm_hw.runtime.relay.session import RelaySession

        return RelaySession.load
    from ksm_hw.runtime.session import Session

    return Session.load


def measure(session: DeviceSession, command: str, **arguments: Any) -> Any:
    """One measurement: `run` or `calls` (task, repeats), `switch` (tasks, rounds), `copy` (repeats) or `memory`.

    Returns:
        Lists of seconds, for `switch` by task; for `calls` see `_measure_calls`; for `memory` bytes by what holds them.

    Raises:
        UserError: the device fails, or for `calls` what runs the artifact tells of none.
    """
    match command:
        case "run":
            session.switch(arguments["task"])
            session.measure_run(WARM_UP_RUNS)
            return session.measure_run(arguments["repeats"])
        case "calls":
            session.switch(arguments["task"])
            session.measure_run(WARM_UP_RUNS)
            return _measure_calls(session, arguments["repeats"])
        case "switch":
            return _measure_switches(session, arguments["tasks"], arguments["rounds"])
        case "copy":
            return session.measure_copies(arguments["repeats"])
        case "memory":
            return _memory_facts(session)
    raise AssertionError(command)


def _measure_calls(session: DeviceSession, repeats: int) -> list[dict[str, Any]]:
    """Every call that an inference of the current task makes, in order.

    Returns:
        For each call `symbol`, `shapes` of the tensors that it takes, results included, and `seconds` of each repeat.
    """
    watch = _Watch(session.manifest.device)
    for _ in range(repeats):
        watch.begin()
        session.trace_run(watch)
    return watch.calls


class _Watch:
    """Takes the time of the calls that the virtual machine tells it of.

    To tell of a call the virtual machine makes Python's objects of its arguments, microseconds for a few tensors, and
    that lies inside the time of the call when it tells of the end. It does the same when it tells of the beginning,
    right after it told of the last one's end, so that time is known and taken off.
    """

    def __init__(self, device: str) -> None:
        self.calls: list[dict[str, Any]] = []
        self._device = tvm.runtime.device(device, 0) if device != "cpu" else None
        self.begin()

    def begin(self) -> None:
        """Before each inference."""
        self._position = 0
        self._left = 0.0  # When this was left the last time.
        self._begun: list[tuple[float, float]] = []  # Of calls inside calls: when, and what telling of it took.

    def __call__(self, function: Any, symbol: str, before: bool, result: Any, *arguments: Any) -> None:
        """TVM's instrument of a virtual machine."""
        if self._device is not None:
            self._device.sync()
        entered = time.perf_counter()
        if before:
            telling = entered - self._left if self._left else 0.0
            self._left = time.perf_counter()
            self._begun.append((self._left, telling))
            return
        start, telling = self._begun.pop()
        self._note(symbol, arguments, max(entered - start - telling, _SHORTEST))
        self._left = time.perf_counter()

    def _note(self, symbol: str, arguments: tuple[Any, ...], seconds: float) -> None:
        if self._position == len(self.calls):
            shapes = [list(map(int, argument.shape)) for argument in arguments if hasattr(argument, "shape")]
            self.calls.append({"symbol": str(symbol), "shapes": shapes, "seconds": []})
        self.calls[self._position]["seconds"].append(seconds)
        self._position += 1


def _measure_switches(session: DeviceSession, tasks: list[str], rounds: int) -> dict[str, list[float]]:
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


def _memory_facts(session: DeviceSession) -> dict[str, Any]:
    return {
        "process_peak_bytes": process_peak_bytes(),
        "weights_bytes": session.weights_bytes,
        "parameters_bytes": session.parameters_bytes,
        "resident_bytes": session.own_bytes,
    }
