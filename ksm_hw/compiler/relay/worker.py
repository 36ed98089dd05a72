"""The process in Relay's environment that compiles and tunes; see `child_process.py`.

    compile   bundle, output, target, link, fold, batch, tuned     a list of parts (`compile_tasks.compile_tasks`)
    tune      bundle, records, tuner, target, link, batch, trials  what came of it (`tune_operators.tune_operators`)

Its listeners are told what is done now (`step`), what a tune says of itself (`progress`), and asked for the time of a
library (`measure`).
"""

import functools
import sys
from pathlib import Path
from typing import Any

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler.tuning.progress import TunerName
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.runtime.child_process import ParentProcess


def _compile(
    parent: ParentProcess,
    bundle: str,
    output: str,
    target: dict[str, Any],
    link: list[str],
    fold: FoldMode,
    batch: int,
    tuned: tuple[TunerName, str] | None,
) -> list[dict[str, Any]]:
    from ksm_hw.compiler.relay.compile_tasks import compile_tasks

    on_step = functools.partial(parent.tell, "step")
    return compile_tasks(load_bundle(Path(bundle)), Path(output), target, link, fold, batch, tuned, on_step)


def _tune(
    parent: ParentProcess,
    bundle: str,
    records: str,
    tuner: TunerName,
    target: dict[str, Any],
    link: list[str],
    batch: int,
    trials: int,
) -> dict[str, Any]:
    from ksm_hw.compiler.relay.tune_operators import tune_operators

    loaded, folder = load_bundle(Path(bundle)), Path(records)
    measure, on_progress = functools.partial(parent.ask, "measure"), functools.partial(parent.tell, "progress")
    return tune_operators(loaded, folder, tuner, target, link, batch, trials, measure, on_progress)


if __name__ == "__main__":
    sys.setrecursionlimit(100_000)  # Relay's mutators go down a network by recursion.
    parent = ParentProcess()
    compile_, tune = functools.partial(_compile, parent), functools.partial(_tune, parent)
    parent.serve({"compile": compile_, "tune": tune})
