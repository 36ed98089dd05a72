"""Where the time of an inference goes: each operator's time, work, traffic, and share of what the machine can do.

It is measured as `ksm-hw report` measures, in a process of its own. The virtual machine tells of every call that it
makes, before and after; in turn with these inferences others are timed that nothing watches. What the calls of
operators do not explain of those is the time between operators.
"""

import dataclasses
import json
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.measuring import measuring_at
from ksm_hw.errors import UserError
from ksm_hw.measuring.process import Measured
from ksm_hw.report.machine_peak import MachinePeak, machine_peak
from ksm_hw.report.operator_names import Shape, operator_name
from ksm_hw.report.timing import NOISE_LIMIT, Timing, timing_of
from ksm_hw.runtime.machine import Machine

if TYPE_CHECKING:
    from ksm_hw.artifact.manifest import Manifest, OperatorEntry

_log = logging.getLogger(__name__)

ROUNDS = 5  # Into which the runs are divided, watched ones and others in turn.

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class OperatorProfile:
    """The calls of one operator with the same shapes in an inference, taken together.

    Attributes:
        name: what it does, such as `conv2d 3×3 s2 + add + relu`; `symbols` its functions in the library.
        shapes: of the tensors that each call takes, the results last.
        calls: how many.
        seconds: of all of them, the sum of each call's median.
        share: that, by the time of an inference that is not watched.
        flops, bytes: of all of them; a multiply-add is two operations, and bytes are those of arguments and results,
            each once. None for a function that the manifest does not know.
        peak_share: the time in which the machine could do that at best, by `seconds`; over 1 where the data stayed in
            caches. None without a peak.
        bound: what the best time depends on: `compute` or `memory`.
    """

    name: str
    symbols: tuple[str, ...]
    shapes: tuple[Shape, ...]
    calls: int
    seconds: float
    share: float
    flops: int | None
    bytes: int | None
    peak_share: float | None
    bound: str | None

    @property
    def flops_per_second(self) -> float | None:
        """Of `flops` and `seconds`."""
        return None if self.flops is None else self.flops / self.seconds


@dataclass(frozen=True)
class ArtifactProfile:
    """Where the time of an inference goes.

    Attributes:
        artifact: the folder; `task` whose inference it is.
        backbone, target, fold, precision, input_shape: of the manifest.
        machine: what it was measured on; `threads` how many the runtime used there.
        peak: what that machine can do in float32; None for a GPU, a board or int8, whose peak is not measured.
        inference: an inference that is not watched, of the artifact's batch.
        operators: the slowest first.
        operator_seconds: their sum.
        machine_seconds: calls of the virtual machine's own functions, such as those that take memory.
        between_seconds: what the operators do not explain of the inference; less than 0 where noise exceeds it.
        flops, bytes: of all operators of which they are known.
    """

    artifact: str
    task: str
    backbone: str
    target: str
    fold: str
    precision: str
    input_shape: tuple[int, int, int, int]
    machine: Machine
    threads: int
    peak: MachinePeak | None
    inference: Timing
    operators: tuple[OperatorProfile, ...]
    operator_seconds: float
    machine_seconds: float
    between_seconds: float
    flops: int
    bytes: int


def profile_artifact(
    artifact: str | Path,
    task: str | None = None,
    runs: int = 50,
    threads: int | None = None,
    board: BoardAddress | None = None,
    measure_peak: bool = False,
    on_step: OnStep = lambda step: None,
) -> ArtifactProfile:
    """Measures the operators of an artifact's inference, on this machine or on a board.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        task: its name; without it the artifact's first.
        runs: watched inferences, and as many that are not; a few more where the rounds do not divide them.
        threads: of the CPU; without it as many as the target has cores.
        board: where to measure; on this machine without it.
        measure_peak: measure the machine's peak again, if it was measured before.
        on_step: called with the name of each step as it begins.

    Raises:
        UserError: too few runs; there is no such task; the artifact is missing, damaged or not for the machine; or the
            board is busy or gone.
    """
    if runs < ROUNDS:
        raise UserError(f"{runs} runs are too few: the measurement has {ROUNDS} rounds. Give {ROUNDS} or more.")
    from ksm_hw.artifact.manifest import read_manifest
    from ksm_hw.masks.bundle import load_bundle, task_of

    folder = Path(artifact)
    manifest, packs = read_manifest(folder), load_bundle(folder).packs
    if manifest.ir != "relax":
        raise UserError(f"{folder} was compiled through Relay, whose operators are not told apart. Use --ir relax.")
    task = task_of(packs, task).task if task is not None else next(iter(packs))
    on_step("load")
    with measuring_at(board) as measured, measured(folder, threads) as process:
        peak = None
        if board is None and manifest.device == "cpu" and manifest.precision == "float32":
            on_step("measure the machine's peak")
            peak = machine_peak(process.facts["threads"], again=measure_peak)
        unwatched, calls = _measure_rounds(process, task, -(-runs // ROUNDS), on_step)
        return _profile(folder, task, manifest, peak, timing_of(unwatched), calls, process.facts)


def profile_as_json(profile: ArtifactProfile) -> dict[str, Any]:
    """The profile as dictionaries, lists, numbers and texts alone."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(profile)))
    for entry, operator in zip(content["operators"], profile.operators, strict=True):
        entry["flops_per_second"] = operator.flops_per_second
    return {"noise_limit": NOISE_LIMIT, **content}


@dataclass
class _Call:
    symbol: str
    shapes: tuple[Shape, ...]
    seconds: list[float]


def _measure_rounds(
    process: Measured, task: str, repeats: int, on_step: OnStep
) -> tuple[list[list[float]], list[_Call]]:
    """Seconds of unwatched inferences, by round, and the calls of a watched one, with the seconds of all rounds."""
    unwatched: list[list[float]] = []
    calls: list[_Call] = []
    for number in range(ROUNDS):
        on_step(f"measure operators, round {number + 1} of {ROUNDS}")
        unwatched.append(process.ask("run", task=task, repeats=repeats))
        found = process.ask("calls", task=task, repeats=repeats)
        if not calls:
            calls = [_Call(call["symbol"], tuple(map(tuple, call["shapes"])), []) for call in found]
        for call, more in zip(calls, found, strict=True):
            call.seconds += more["seconds"]
    return unwatched, calls


def _profile(
    folder: Path,
    task: str,
    manifest: "Manifest",
    peak: MachinePeak | None,
    inference: Timing,
    calls: list[_Call],
    facts: dict[str, Any],
) -> ArtifactProfile:
    groups: dict[tuple[str, tuple[Shape, ...]], list[_Call]] = {}
    machine_seconds = 0.0
    for call in calls:
        if call.symbol.startswith("vm."):
            machine_seconds += statistics.median(call.seconds)
        else:
            groups.setdefault((operator_name(call.symbol, call.shapes), call.shapes), []).append(call)
    operators = [
        _operator(name, group, manifest.operators, inference.median_seconds, peak)
        for (name, _), group in groups.items()
    ]
    seconds = sum(operator.seconds for operator in operators)
    return ArtifactProfile(
        artifact=str(folder),
        task=task,
        backbone=manifest.backbone,
        target=manifest.target,
        fold=manifest.fold,
        precision=manifest.precision,
        input_shape=manifest.input_shape,
        machine=Machine(**facts["machine"]),
        threads=facts["threads"],
        peak=peak,
        inference=inference,
        operators=tuple(sorted(operators, key=lambda operator: -operator.seconds)),
        operator_seconds=seconds,
        machine_seconds=machine_seconds,
        between_seconds=inference.median_seconds - seconds,
        flops=sum(operator.flops or 0 for operator in operators),
        bytes=sum(operator.bytes or 0 for operator in operators),
    )


def _operator(
    name: str,
    calls: list[_Call],
    costs: "Mapping[str, OperatorEntry]",
    inference_seconds: float,
    peak: MachinePeak | None,
) -> OperatorProfile:
    seconds = sum(statistics.median(call.seconds) for call in calls)
    known = [costs[call.symbol] for call in calls if call.symbol in costs]
    complete = len(known) == len(calls)
    if not complete:
        _log.info("%s: its work is not known, for the manifest does not hold all of its functions", name)
    flops, count = sum(cost.flops for cost in known), sum(cost.bytes for cost in known)
    limits = peak if complete else None
    return OperatorProfile(
        name=name,
        symbols=tuple(dict.fromkeys(call.symbol for call in calls)),
        shapes=calls[0].shapes,
        calls=len(calls),
        seconds=seconds,
        share=seconds / inference_seconds,
        flops=flops if complete else None,
        bytes=count if complete else None,
        peak_share=None if limits is None else limits.shortest_seconds(flops, count) / seconds,
        bound=None if limits is None else limits.bound(flops, count),
    )
