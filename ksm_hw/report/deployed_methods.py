"""What the methods of a comparison cost on this machine: their bundles compiled, latency and switches measured."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.artifact.modes import Precision
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.report.learning_trials import LearningTrial, bundle_of
from ksm_hw.report.measure import measure_artifact
from ksm_hw.report.trials import keep, kept

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployed:
    """A task of a method, compiled for this machine; seconds.

    Attributes:
        latency, switch: medians in float32; no switch where an artifact has one task.
        int8_latency, int8_switch: likewise in int8; None where the task cannot be in int8.
    """

    latency: float
    switch: float | None
    int8_latency: float | None
    int8_switch: float | None


@dataclass(frozen=True)
class _Measured:
    """Of each task of a bundle the latency, and the switch where there are several; seconds."""

    latency: dict[str, float]
    switch: dict[str, float | None]


def deploy(
    trials: Sequence[LearningTrial], folder: Path, on_step: Callable[[str], None] = lambda step: None
) -> dict[tuple[str, str], Deployed]:
    """Compiles the bundles of trials for this machine, with switches, and measures them, or gives what was measured.

    Args:
        trials: those of one seed.
        folder: of the comparison.
        on_step: called with the name of each step as it begins.

    Returns:
        By the trial's variant and task.

    Raises:
        UserError: a bundle is missing or cannot be compiled.
    """
    found = {}
    for bundle in dict.fromkeys(bundle_of(folder, trial) for trial in trials):
        plain = _measured(bundle, folder, "float32", on_step)
        try:
            int8 = _measured(bundle, folder, "int8", on_step)
        except UserError as error:
            _log.warning("%s is not measured in int8: %s", bundle, error)
            int8 = _Measured({}, {})
        for trial in (each for each in trials if bundle_of(folder, each) == bundle):
            found[trial.variant, trial.task] = Deployed(
                plain.latency[trial.task],
                plain.switch[trial.task],
                int8.latency.get(trial.task),
                int8.switch.get(trial.task),
            )
    return found


def _measured(bundle: Path, folder: Path, precision: Precision, on_step: Callable[[str], None]) -> _Measured:
    path = folder / "deployed" / f"{bundle.name}-{precision}.json"
    if path.exists():
        return kept(path, _Measured)
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.toolchains.targets import load_target

    artifact = folder / "artifacts" / f"{bundle.name}-{precision}"

    def step(name: str) -> None:
        on_step(f"{bundle.name}, {precision}: {name}")

    compile_bundle(load_bundle(bundle), load_target("host"), artifact, precision=precision, on_step=step)
    tasks = measure_artifact(artifact, on_step=step, compare_unmasked=False).tasks
    measured = _Measured(
        {task.task: task.latency.median_seconds for task in tasks},
        {task.task: None if task.switch is None else task.switch.median_seconds for task in tasks},
    )
    keep(measured, path)
    return measured
