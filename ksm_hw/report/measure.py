"""Measuring what each task of an artifact costs: latency, switch time, memory, bytes, and what the mask adds.

Everything is measured in processes of their own, one for each artifact, in which torch is not loaded: the memory is
the runtime's, and no other thread pool fights for the cores. The network without masks runs in a second process, in
rounds that alternate with the artifact's, so that what else the machine does touches both alike.

All times are seconds and all sizes bytes; where a key of the JSON holds either, its name says so.
"""

import contextlib
import dataclasses
import datetime
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.measuring import measuring_at
from ksm_hw.errors import UserError
from ksm_hw.measuring.process import Measured
from ksm_hw.report.timing import NOISE_LIMIT, Comparison, Timing, compare_timings, timing_of
from ksm_hw.report.unmasked import compile_unmasked, why_not_comparable
from ksm_hw.runtime.machine import Machine

if TYPE_CHECKING:
    from ksm_hw.artifact.manifest import Manifest
    from ksm_hw.learning.datasets import TaskData
    from ksm_hw.masks.bundle import Bundle
    from ksm_hw.masks.task_pack import TaskPack
    from ksm_hw.report.rounding import Rounding

ROUNDS = 5  # Into which the measurements are divided; how far they differ says how noisy the machine is.
SWITCHES_A_ROUND = 4  # Of each task: 20 over the rounds.

OnStep = Callable[[str], None]


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
        accuracy: share in 0…1 of a set's test images whose top class is right; None where none was measured.
        rounding: what the rounding of the backbone changes on the sample images; None where it is not rounded, its
            float32 is not known, or there are no samples.
        rounding_drop: points that it costs on the test images; None where that is not known.
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
    accuracy: float | None = None
    rounding: "Rounding | None" = None
    rounding_drop: float | None = None


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
        library_bytes: the compiled libraries; with `bake` the weights are inside.
        backbone_bytes: the backbone's file.
        bundle_bytes: that and all task packs.
        copies_bytes: what full copies would take: for each task the backbone and its own head.
    """

    library_bytes: int
    backbone_bytes: int
    bundle_bytes: int
    copies_bytes: int


@dataclass(frozen=True)
class ArtifactReport:
    """What an artifact and each of its tasks cost.

    Attributes:
        artifact: the folder.
        date: when it was measured, ISO 8601, UTC.
        backbone, target, fold, precision, backbone_precision, ir, tvm_version, input_shape: of the manifest;
            `tvm_target` the target for TVM.
        machine: what it was measured on, `threads` how many the runtime used there.
        channels_left_out: how many channels of layers the artifact lacks, for they are 0 in all of its tasks.
        load_seconds: from the folder to a session that is ready; once, not repeated.
        tasks: one entry a task.
        copy: a copy of as many bytes as the live weights, on the device; None where none are rewritten.
        memory, storage: sizes.
        not_compared: why there is no comparison with the network without masks; empty where there is, or none was
            asked for.
        noisy: whether any of the times is that is compared with another.
    """

    artifact: str
    date: str
    backbone: str
    target: str
    tvm_target: dict[str, Any]
    fold: str
    precision: str
    backbone_precision: str
    ir: str
    tvm_version: str
    input_shape: tuple[int, int, int, int]
    machine: Machine
    threads: int
    channels_left_out: int
    load_seconds: float
    tasks: tuple[TaskReport, ...]
    copy: Timing | None
    memory: Memory
    storage: Storage
    not_compared: str
    noisy: bool


def measure_artifact(
    artifact: str | Path,
    runs: int = 100,
    on_step: OnStep = lambda step: None,
    compare_unmasked: bool = True,
    tuned: Path | None = None,
    threads: int | None = None,
    board: BoardAddress | None = None,
    data: "TaskData | None" = None,
    source: Path | None = None,
) -> ArtifactReport:
    """Measures every task of an artifact, on this machine or on a board.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        runs: counted inferences of each task, spread over the rounds; a few more where the rounds do not divide them.
        on_step: called with the name of each step as it begins.
        compare_unmasked: whether to compile the network without masks as well and measure it beside the artifact.
        tuned: folder of the tuning records that the artifact was compiled with, if it was with any. Without them it is
            not compared with the network without masks.
        threads: of the CPU; without it as many as the target has cores.
        board: where to measure; on this machine without it.
        data: a set, on whose test images the accuracy of the tasks that have its classes is measured (`find_test_set`).
        source: the bundle that the artifact was compiled from, for what the rounding of its backbone costs; not needed
            where a package has these weights.

    Raises:
        UserError: the artifact is missing, damaged or not for the machine; torch, which compiling needs, is missing;
            the tuning records are others; or the board is busy or gone.
    """
    if runs < ROUNDS:
        raise UserError(f"{runs} runs are too few: the measurement has {ROUNDS} rounds. Give {ROUNDS} or more.")
    from ksm_hw.artifact.manifest import read_manifest
    from ksm_hw.masks.bundle import load_bundle

    folder = Path(artifact)
    manifest, bundle = read_manifest(folder), load_bundle(folder)
    not_compared = why_not_comparable(folder, manifest, tuned) if compare_unmasked else ""
    exact = None
    if manifest.backbone_precision != "float32":
        from ksm_hw.report.rounding import exact_bundle

        exact = exact_bundle(bundle, source)
    with contextlib.ExitStack() as stack:
        plain = None
        if compare_unmasked and not not_compared:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ksm-hw-report-")))
            plain = compile_unmasked(manifest, bundle, tuned, temporary / "unmasked", on_step)
        on_step("load")
        measured = stack.enter_context(measuring_at(board))
        masked_process = stack.enter_context(measured(folder, threads))
        plain_process = None if plain is None else stack.enter_context(measured(plain, threads))
        times = _measure_rounds(masked_process, plain_process, list(bundle.packs), runs, on_step)
        facts = masked_process.facts
    report = _report(folder, manifest, bundle, times, facts, not_compared)
    if exact is not None:
        on_step("what rounding the backbone changes")
        report = _with_rounding(report, bundle, exact)
    return report if data is None else _with_accuracy(report, data, threads, board, on_step, exact)


def _with_accuracy(
    report: ArtifactReport,
    data: "TaskData",
    threads: int | None,
    board: BoardAddress | None,
    on_step: OnStep,
    exact: "Bundle | None",
) -> ArtifactReport:
    from ksm_hw.report.accuracy import accuracies_on

    found = accuracies_on(Path(report.artifact), data, threads, board, on_step, exact)
    tasks = (
        dataclasses.replace(task, accuracy=known.compiled, rounding_drop=known.rounding_drop)
        if (known := found.get(task.task)) is not None
        else task
        for task in report.tasks
    )
    return dataclasses.replace(report, tasks=tuple(tasks))


def _with_rounding(report: ArtifactReport, bundle: "Bundle", exact: "Bundle") -> ArtifactReport:
    """With what rounding changes of each task that has sample images."""
    from ksm_hw.masks.bundle import sample_images
    from ksm_hw.report.rounding import rounding_of

    def rounded(task: TaskReport) -> TaskReport:
        if bundle.samples is None or not (bundle.samples / task.task).is_dir():
            return task
        found = rounding_of(bundle, exact, bundle.packs[task.task], sample_images(bundle, task.task))
        return dataclasses.replace(task, rounding=found)

    return dataclasses.replace(report, tasks=tuple(map(rounded, report.tasks)))


def reports_as_json(reports: Sequence[ArtifactReport]) -> dict[str, Any]:
    """The reports as dictionaries, lists, numbers and texts alone."""
    content: dict[str, Any] = json.loads(json.dumps([dataclasses.asdict(report) for report in reports]))
    return {"noise_limit": NOISE_LIMIT, "noisy": any(report.noisy for report in reports), "artifacts": content}


@dataclass(frozen=True)
class _Times:
    """Seconds of each round, by task; `copies` of each round."""

    masked: dict[str, list[list[float]]]
    plain: dict[str, list[list[float]]]
    switches: dict[str, list[list[float]]]
    copies: list[list[float]]


def _measure_rounds(masked: Measured, plain: Measured | None, tasks: list[str], runs: int, on_step: OnStep) -> _Times:
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
    folder: Path, manifest: "Manifest", bundle: "Bundle", times: _Times, facts: dict[str, Any], not_compared: str
) -> ArtifactReport:
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
        backbone_precision=manifest.backbone_precision,
        ir=manifest.ir,
        tvm_version=facts["tvm_version"],
        input_shape=manifest.input_shape,
        machine=Machine(**facts["machine"]),
        threads=facts["threads"],
        channels_left_out=manifest.channels_left_out,
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
            library_bytes=sum((folder / name).stat().st_size for name in manifest.libraries),
            backbone_bytes=backbone_bytes,
            bundle_bytes=backbone_bytes + sum(pack_bytes.values()),
            copies_bytes=len(tasks) * backbone_bytes + heads,
        ),
        not_compared=not_compared,
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
