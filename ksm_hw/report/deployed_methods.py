"""What the methods of a comparison cost on this machine: their bundles compiled, latency and switches measured."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.artifact.modes import PRECISIONS, Precision
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.task_pack import is_same_task
from ksm_hw.report.learning_trials import LearningTrial, bundle_of
from ksm_hw.report.measure import measure_artifact
from ksm_hw.report.terminal import counted_threads
from ksm_hw.report.trials import keep, kept

_log = logging.getLogger(__name__)

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Deployed:
    """A task of a method, compiled for this machine; seconds.

    Attributes:
        latency, switch: medians in float32; no switch where an artifact has one task.
        int8_latency, int8_switch: likewise in int8; None where the task cannot be in int8.
        machine: that it was measured on, the CPU that the code is for, and threads.
        noisy: whether rounds of a time of its artifacts differ by more than `NOISE_LIMIT`.
    """

    latency: float
    switch: float | None
    int8_latency: float | None
    int8_switch: float | None
    machine: str
    noisy: bool


@dataclass(frozen=True)
class _Measured:
    """As `Deployed`: of each task of an artifact."""

    latency: dict[str, float]
    switch: dict[str, float | None]
    machine: str
    noisy: bool


@dataclass(frozen=True)
class _Part:
    """A bundle in a precision, and its files in the folder of a comparison."""

    bundle: Path
    precision: Precision
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.bundle.name}-{self.precision}"

    @property
    def artifact(self) -> Path:
        return self.folder / "artifacts" / self.name

    @property
    def measured(self) -> Path:
        return self.folder / "deployed" / f"{self.name}.json"


def deploy(
    trials: Sequence[LearningTrial], folder: Path, on_step: OnStep = lambda step: None
) -> dict[tuple[str, str], Deployed]:
    """Compiles the bundles of trials for this machine, with switches, then measures them.

    What an earlier call measured is taken as it is, and an artifact that it left is not compiled again.

    Args:
        trials: those of one seed.
        folder: of the comparison.
        on_step: called with the name of each step as it begins.

    Returns:
        By the trial's variant and task.

    Raises:
        UserError: a bundle is missing or cannot be compiled.
    """
    bundles = dict.fromkeys(bundle_of(folder, trial) for trial in trials)
    parts = [_Part(bundle, precision, folder) for bundle in bundles for precision in PRECISIONS]
    # All are compiled before one is measured: then the machine can be left alone for all that is.
    there = [part for part in parts if _is_compiled(part, on_step)]
    found = {(part.bundle, part.precision): _measured(part, on_step) for part in there}
    return {(trial.variant, trial.task): _deployed(trial.task, bundle_of(folder, trial), found) for trial in trials}


def _deployed(task: str, bundle: Path, found: dict[tuple[Path, Precision], _Measured]) -> Deployed:
    plain, int8 = found[bundle, "float32"], found.get((bundle, "int8"))
    return Deployed(
        plain.latency[task],
        plain.switch[task],
        None if int8 is None else int8.latency[task],
        None if int8 is None else int8.switch[task],
        plain.machine,
        plain.noisy or (int8 is not None and int8.noisy),
    )


def _is_compiled(part: _Part, on_step: OnStep) -> bool:
    """Whether a part can be measured, or is; compiles it where it must be."""
    if part.measured.exists():
        return True
    bundle = load_bundle(part.bundle)
    if _is_of(part.artifact, bundle):
        return True
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.toolchains.targets import load_target

    target, steps = load_target("host"), _steps_of(part, on_step)
    try:
        compile_bundle(bundle, target, part.artifact, precision=part.precision, on_step=steps)
    except UserError as error:
        if part.precision == "float32":
            raise
        _log.warning("%s is not measured in %s: %s", part.bundle, part.precision, error)
        return False
    return True


def _steps_of(part: _Part, on_step: OnStep) -> OnStep:
    """Tells of a part's steps under its name."""
    return lambda step: on_step(f"{part.name}: {step}")


def _is_of(artifact: Path, bundle: Bundle) -> bool:
    """Whether an artifact is there whole, with the backbone and the tasks of a bundle as they are."""
    from ksm_hw.compiler.zero_channels import narrowed_as

    try:
        read_manifest(artifact)
        found = load_bundle(artifact)
    except UserError:
        return False
    if found.packs.keys() != bundle.packs.keys():
        return False
    narrowed = narrowed_as(found, bundle)
    return found.backbone_sha256 == narrowed.backbone_sha256 and all(
        is_same_task(pack, narrowed.packs[task]) for task, pack in found.packs.items()
    )


def _measured(part: _Part, on_step: OnStep) -> _Measured:
    if part.measured.exists():
        return kept(part.measured, _Measured)
    report = measure_artifact(part.artifact, on_step=_steps_of(part, on_step), compare_unmasked=False)
    measured = _Measured(
        {task.task: task.latency.median_seconds for task in report.tasks},
        {task.task: None if task.switch is None else task.switch.median_seconds for task in report.tasks},
        f"{report.machine.cpu} ({report.tvm_target['mcpu']}), {counted_threads(report.threads)}",
        report.noisy,
    )
    keep(measured, part.measured)
    return measured
