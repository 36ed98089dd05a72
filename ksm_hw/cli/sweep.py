"""`ksm-hw sweep`."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ksm_hw.artifact.modes import Precision
from ksm_hw.cli.app import (
    Batch,
    BundlePath,
    Json,
    Tracker,
    app,
    command,
    console,
    examples,
    messages,
    print_json,
    stopped_by_ctrl_c,
)


@app.command(
    epilog=examples(
        "ksm-hw sweep --targets rpi4,rk3588 --tracker 127.0.0.1:9190 --trials 2000 --jobs 2 -o swept",
        "ksm-hw sweep --targets host --bundle my-tasks --tasks first,second -o swept",
    )
)
def sweep(
    targets: Annotated[str, typer.Option(help="Names from `ksm-hw targets`, with commas.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the records; goes on if it has some.")],
    tasks: Annotated[str, typer.Option(help="Names with commas, tuned apart; or all, which one tune serves.")] = "all",
    bundle: BundlePath = None,
    trials: Annotated[int, typer.Option(min=1, max=10_000_000, help="Measurements of each target and task.")] = 1000,
    precision: Annotated[Precision, typer.Option(help="What inferences compute in; compile in the same.")] = "float32",
    batch: Batch = 1,
    tracker: Tracker = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Tunes beside each other; more than one only for several boards.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Tune tasks for several targets, each in a process of its own; resumable. A board's key is its target's name."""
    from ksm_hw.boards.address import parse_address
    from ksm_hw.masks.bundle import load_bundle, select_tasks
    from ksm_hw.report.terminal import print_table
    from ksm_hw.report.tuning_trials import TuningTrial, tune_all, tuning_table
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import check_runs_here, load_target

    loaded = load_bundle(bundle or shipped_bundle())
    named = list(dict.fromkeys(name.strip() for name in tasks.split(",")))
    for task in named:
        select_tasks(loaded, task)  # Whether there is such a task.
    chosen = list(dict.fromkeys(name.strip() for name in targets.split(",")))
    for target in map(load_target, chosen):
        if tracker is None:
            check_runs_here(target)
    if tracker is not None:
        parse_address(tracker)
    common = ["--trials", str(trials), "--batch", str(batch)]
    common += [] if precision == "float32" else ["--precision", precision]
    common += [] if bundle is None else ["--bundle", str(bundle)]

    def arguments(trial: TuningTrial) -> list[str]:
        return common if tracker is None else [*common, "--tracker", tracker, "--key", trial.target]

    every = [TuningTrial(task, target) for target in chosen for task in named]
    done = itertools.count(1)

    def on_trial(trial: TuningTrial, _found: object) -> None:
        messages.print(f"{next(done)}/{len(every)}: {trial.target}, {trial.task}", soft_wrap=True)

    with stopped_by_ctrl_c("What was measured is kept: give the same command to go on."):
        found = tune_all(every, output, arguments, jobs, on_trial)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    print_table(console, tuning_table(found))
    for each in found:
        given: dict[str, object] = {
            "--bundle": bundle,
            "--precision": None if precision == "float32" else precision,
            "--tuned": each.records,
        }
        words = [word for option, value in given.items() if value is not None for word in (option, value)]
        use = command("compile", "--target", each.target, "--task", each.task, *words)
        console.print(f"Use it: {use}", soft_wrap=True)
