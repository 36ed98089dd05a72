"""Measuring what each task of an artifact costs: latency, switch time, memory, bytes, and what the mask adds.

Everything is measured in processes of their own, one for each artifact, in which torch is not loaded: the memory is
the runtime's, and no other thread pool fights for the cores. The network without masks runs in a second process, in
rounds that alternate with the artifact's, so that what else the machine does touches both alike.

All times are seconds and all sizes bytes; where a key of the JSON holds either, its name says so.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.masks.bundle import Bundle
    from ksm_hw.masks.task_pack import TaskPack
    from ksm_hw.runtime.artifact import Manifest
    from ksm_hw.runtime.session import Session

ROUNDS = 5  # Into which the measurements are divided; how far they differ says how noisy the machine is.
WARM_UP_RUNS = 3  # Of each task in each round, not counted.
SWITCHES_A_ROUND = 4  # Of each task: 20 over the rounds.
NOISE_LIMIT = 0.10  # Rounds that differ by more than this cannot be compared.
TOO_NOISY = "too noisy to compare"

OnStep = Callable[[str], None]
Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Timing:
    """What repeated measurements of one thing gave.

    Attributes:
        median_seconds, p90_seconds, p99_seconds, minimum_seconds: over all of them.
        count: how many.
        round_medians_seconds: median of each round.
        spread: the largest of them by the smallest, less 1.
        noisy: whether the spread is over `NOISE_LIMIT`.
    """

    median_seconds: float
    p90_seconds: float
    p99_seconds: float
    minimum_seconds: float
    count: int
    round_medians_seconds: tuple[float, ...]
    spread: float
    noisy: bool


@dataclass(frozen=True)
class Comparison:
    """A time against another that was measured in the same rounds.

    Attributes:
        ratio: median of the rounds' ratios of medians; 1.03 is 3 % slower than the other.
        lowest, highest: of the rounds' ratios.
        noisy: whether rounds of either differ by more than `NOISE_LIMIT`; then the ratio says nothing.
    """

    ratio: float
    lowest: float
    highest: float
    noisy: bool


@dataclass(frozen=True)
class TaskReport:
    """What one task costs.

    Attributes:
        task, method, granularity: of the task pack; `classes` how many it tells apart.
        latency: of one inference of the artifact's batch, on images that stay on the device.
        unmasked_latency: of the same network compiled without masks; None when it was not compiled.
        mask_overhead: the first against the second.
        switch: of a switch to this task whose weights were not kept; None where there is nothing to switch between.
        switch_against_copy: that, against a copy of as many bytes as the live weights; None where none are rewritten.
        pack_bytes: the task pack's file.
        pack_share: that, by the backbone's file.
        resident_bytes: what the task alone adds to the device's memory while the artifact is loaded.
    """

    task: str
    method: str
    granularity: str
    classes: int
    latency: Timing
    unmasked_latency: Timing | None
    mask_overhead: Comparison | None
    switch: Timing | None
    switch_against_copy: Comparison | None
    pack_bytes: int
    pack_share: float
    resident_bytes: int


@dataclass(frozen=True)
class Memory:
    """Memory of the loaded artifact, in bytes.

    Attributes:
        workspace_bytes: activations that the memory plan holds at once.
        weights_bytes: live weights of the current task; 0 where they are not rewritten.
        parameters_bytes: backbone and task packs on the device.
        shared_bytes: the part of those that all tasks share.
        process_peak_bytes: most memory that the process held resident, after inferences and switches of every task;
            a switch holds the old and the new live weights at once.
        process_start_bytes: what it held before the artifact was loaded: Python, NumPy and TVM.
    """

    workspace_bytes: int
    weights_bytes: int
    parameters_bytes: int
    shared_bytes: int
    process_peak_bytes: int
    process_start_bytes: int


@dataclass(frozen=True)
class Storage:
    """Sizes of files, in bytes.

    Attributes:
        library_bytes: the compiled library; with `bake` the weights are inside.
        backbone_bytes: the backbone's file.
        bundle_bytes: that and all task packs.
        copies_bytes: what full copies would take: for each task the backbone and its own head.
    """

    library_bytes: int
    backbone_bytes: int
    bundle_bytes: int
    copies_bytes: int


@dataclass(frozen=True)
class Machine:
    """What it was measured on.

    Attributes:
        cpu: model; `architecture` as Python names it, `system` the kernel.
        cores: that this process may use.
        threads: that the runtime used.
        memory_bytes: of the machine.
        load: how many processes wanted a core in the last minute before measuring; 0 is a quiet machine.
    """

    cpu: str
    architecture: str
    system: str
    cores: int
    threads: int
    memory_bytes: int
    load: float


@dataclass(frozen=True)
class ArtifactReport:
    """What an artifact and each of its tasks cost.

    Attributes:
        artifact: the folder.
        date: when it was measured, ISO 8601, UTC.
        backbone, target, fold, precision, tvm_version, input_shape: of the manifest; `tvm_target` the target for TVM.
        machine: what it was measured on.
        load_seconds: from the folder to a session that is ready; once, not repeated.
        tasks: one entry a task.
        copy: a copy of as many bytes as the live weights, on the device; None where none are rewritten.
        memory, storage: sizes.
        noisy: whether any of the times is that is compared with another.
    """

    artifact: str
    date: str
    backbone: str
    target: str
    tvm_target: dict[str, Any]
    fold: str
    precision: str
    tvm_version: str
    input_shape: tuple[int, int, int, int]
    machine: Machine
    load_seconds: float
    tasks: tuple[TaskReport, ...]
    copy: Timing | None
    memory: Memory
    storage: Storage
    noisy: bool


def measure_artifact(
    artifact: str | Path,
    runs: int = 100,
    on_step: OnStep = lambda step: None,
    compare_unmasked: bool = True,
) -> ArtifactReport:
    """Measures every task of an artifact on this machine.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        runs: counted inferences of each task, spread over the rounds; a few more where the rounds do not divide them.
        on_step: called with the name of each step as it begins.
        compare_unmasked: whether to compile the network without masks as well and measure it beside the artifact.

    Raises:
        UserError: the artifact is missing, damaged or not for this machine; or torch, which compiling needs, is.
    """
    if runs < ROUNDS:
        raise UserError(f"{runs} runs are too few: the measurement has {ROUNDS} rounds. Give {ROUNDS} or more.")
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.runtime.artifact import read_manifest

    folder = Path(artifact)
    manifest, bundle = read_manifest(folder), load_bundle(folder)
    with contextlib.ExitStack() as stack:
        plain = None
        if compare_unmasked:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ksm-hw-report-")))
            plain = _compile_unmasked(manifest, bundle, temporary / "unmasked", on_step)
        load = os.getloadavg()[0]
        on_step("load")
        masked_process = stack.enter_context(_measuring_process(folder))
        plain_process = None if plain is None else stack.enter_context(_measuring_process(plain))
        times = _measure_rounds(masked_process, plain_process, list(bundle.packs), runs, on_step)
        facts = masked_process.facts
    return _report(folder, manifest, bundle, times, facts, load)


def timing_of(rounds: Rounds) -> Timing:
    """Summarises the seconds of each round; every round must hold at least one."""
    together = sorted(seconds for round_ in rounds for seconds in round_)
    medians = tuple(statistics.median(round_) for round_ in rounds)
    spread = _spread(medians)
    return Timing(
        median_seconds=statistics.median(together),
        p90_seconds=_percentile(together, 0.90),
        p99_seconds=_percentile(together, 0.99),
        minimum_seconds=together[0],
        count=len(together),
        round_medians_seconds=medians,
        spread=spread,
        noisy=spread > NOISE_LIMIT,
    )


def compare_timings(ours: Timing, other: Timing) -> Comparison:
    """The first time against the second, round by round."""
    pairs = zip(ours.round_medians_seconds, other.round_medians_seconds, strict=True)
    ratios = sorted(mine / its for mine, its in pairs)
    return Comparison(
        ratio=statistics.median(ratios),
        lowest=ratios[0],
        highest=ratios[-1],
        noisy=ours.noisy or other.noisy,
    )


def reports_as_json(reports: Sequence[ArtifactReport]) -> dict[str, Any]:
    """The reports as dictionaries, lists, numbers and texts alone."""
    content: dict[str, Any] = json.loads(json.dumps([dataclasses.asdict(report) for report in reports]))
    return {"noise_limit": NOISE_LIMIT, "noisy": any(report.noisy for report in reports), "artifacts": content}


def _spread(medians: Sequence[float]) -> float:
    return max(medians) / min(medians) - 1


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the ordered values lies, between two of them where it falls between."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


# --- the network without masks -----------------------------------------------------------------------------------


def _compile_unmasked(manifest: "Manifest", bundle: "Bundle", output: Path, on_step: OnStep) -> Path:
    """Compiles the same tasks without masks: the same heads and BatchNorms over the backbone's own weights.

    Against `fused` it is compiled with `switch`: what `fused` pays on every inference is to be seen, and a plain
    network pays none of it.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "Comparing with the network without masks compiles it, and that needs torch, which is not installed. "
            "Install torch, or report with --no-unmasked."
        )
    on_step("import the compiler")
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.compiler.targets import CompileTarget

    packs = {task: dataclasses.replace(pack, masks={}) for task, pack in bundle.packs.items()}
    (folder,) = compile_bundle(
        dataclasses.replace(bundle, packs=packs, samples=None),
        CompileTarget(manifest.target, "", manifest.device, dict(manifest.tvm_target)),
        output,
        fold="bake" if manifest.fold == "bake" else "switch",
        batch=manifest.input_shape[0],
        on_step=lambda step: on_step(f"without masks: {step}"),
    )
    return folder


# --- the rounds, in this process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Times:
    """Seconds of each round, by task; `copies` of each round."""

    masked: dict[str, list[list[float]]]
    plain: dict[str, list[list[float]]]
    switches: dict[str, list[list[float]]]
    copies: list[list[float]]


class _MeasuringProcess:
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
def _measuring_process(artifact: Path) -> Iterator[_MeasuringProcess]:
    command = [sys.executable, "-m", "ksm_hw.report.measure", str(artifact)]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        try:
            yield _MeasuringProcess(process, errors, artifact)
        finally:
            process.kill()
            process.communicate()


def _measure_rounds(
    masked: _MeasuringProcess, plain: _MeasuringProcess | None, tasks: list[str], runs: int, on_step: OnStep
) -> _Times:
    """The rounds of all; the peak of memory is asked for between inferences and copies, which need memory too."""
    repeats = -(-runs // ROUNDS)
    times = _Times({task: [] for task in tasks}, {task: [] for task in tasks}, {task: [] for task in tasks}, [])
    for number in range(ROUNDS):
        on_step(f"measure latency, round {number + 1} of {ROUNDS}")
        for task in tasks:
            order = [(masked, times.masked), (plain, times.plain)]
            # Each comes first in turn, so that neither always finds the machine as the other left it.
            for process, seconds in order if number % 2 == 0 else reversed(order):
                if process is not None:
                    seconds[task].append(process.ask("run", task=task, repeats=repeats))
    on_step("measure switches")
    masked.ask("switch", tasks=tasks, rounds=1)  # Warm-up.
    masked.facts.update(masked.ask("memory"))
    for _ in range(ROUNDS):
        for task, seconds_ in masked.ask("switch", tasks=tasks, rounds=SWITCHES_A_ROUND).items():
            times.switches[task].append(seconds_)
        times.copies.append(masked.ask("copy", repeats=SWITCHES_A_ROUND))
    return times


def _report(
    folder: Path, manifest: "Manifest", bundle: "Bundle", times: _Times, facts: dict[str, Any], load: float
) -> ArtifactReport:
    from ksm_hw.runtime.artifact import LIBRARY

    backbone_bytes = (folder / "backbone.safetensors").stat().st_size
    pack_bytes = {task: (folder / "tasks" / f"{task}.safetensors").stat().st_size for task in bundle.packs}
    copy = timing_of(times.copies) if all(times.copies) else None
    tasks = tuple(
        _task_report(pack, times, copy, pack_bytes[task], backbone_bytes, facts["resident_bytes"][task])
        for task, pack in bundle.packs.items()
    )
    compared = [timing for task in tasks for timing in (task.latency, task.unmasked_latency)]
    if copy is not None:
        # Without a copy to compare with, a switch is a look-up in a table: microseconds, whose spread says nothing.
        compared += [copy, *(task.switch for task in tasks)]
    heads = sum(pack.head_weight.nbytes + pack.head_bias.nbytes for pack in bundle.packs.values())
    return ArtifactReport(
        artifact=str(folder),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        backbone=manifest.backbone,
        target=manifest.target,
        tvm_target=dict(manifest.tvm_target),
        fold=manifest.fold,
        precision=manifest.precision,
        tvm_version=facts["tvm_version"],
        input_shape=manifest.input_shape,
        machine=_machine(facts["threads"], load),
        load_seconds=facts["load_seconds"],
        tasks=tasks,
        copy=copy,
        memory=Memory(
            workspace_bytes=manifest.workspace_bytes,
            weights_bytes=facts["weights_bytes"],
            parameters_bytes=facts["parameters_bytes"],
            shared_bytes=facts["parameters_bytes"] - sum(facts["resident_bytes"].values()),
            process_peak_bytes=facts["process_peak_bytes"],
            process_start_bytes=facts["process_start_bytes"],
        ),
        storage=Storage(
            library_bytes=(folder / LIBRARY).stat().st_size,
            backbone_bytes=backbone_bytes,
            bundle_bytes=backbone_bytes + sum(pack_bytes.values()),
            copies_bytes=len(tasks) * backbone_bytes + heads,
        ),
        noisy=any(timing is not None and timing.noisy for timing in compared),
    )


def _task_report(
    pack: "TaskPack", times: _Times, copy: Timing | None, pack_bytes: int, backbone_bytes: int, resident_bytes: int
) -> TaskReport:
    latency = timing_of(times.masked[pack.task])
    unmasked = timing_of(times.plain[pack.task]) if times.plain[pack.task] else None
    switch = timing_of(times.switches[pack.task]) if all(times.switches[pack.task]) else None
    return TaskReport(
        task=pack.task,
        method=pack.method,
        granularity=pack.granularity,
        classes=len(pack.classes),
        latency=latency,
        unmasked_latency=unmasked,
        mask_overhead=None if unmasked is None else compare_timings(latency, unmasked),
        switch=switch,
        switch_against_copy=None if switch is None or copy is None else compare_timings(switch, copy),
        pack_bytes=pack_bytes,
        pack_share=pack_bytes / backbone_bytes,
        resident_bytes=resident_bytes,
    )


def _machine(threads: int, load: float) -> Machine:
    import psutil

    return Machine(
        cpu=_cpu_model(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=threads,
        memory_bytes=psutil.virtual_memory().total,
        load=load,
    )


def _cpu_model() -> str:
    """The processor's name; an ARM board names itself in the device tree and its processor nowhere."""
    cpuinfo, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if board.exists():
        return board.read_text().strip("\0\n ")
    return platform.processor() or platform.machine()


# --- the measuring process ---------------------------------------------------------------------------------------


def _serve(artifact: str) -> None:
    """Loads an artifact, writes the facts of it, then answers commands: a line of JSON for each line of JSON."""
    # TVM imports torch wherever it is installed. A board has none, and its memory would count as the runtime's.
    sys.modules["torch"] = None  # type: ignore[assignment]
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
