"""`ksm-hw compare`."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ksm_hw.cli.app import Json, app, console, examples, messages, print_json, stopped_by_ctrl_c
from ksm_hw.cli.learning_options import (
    AllImages,
    BackboneName,
    BackboneWeights,
    BatchSize,
    Epochs,
    HeadRate,
    ImageSize,
    MaskRate,
)
from ksm_hw.errors import UserError
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.masks.mask_format import GRANULARITIES, LEARNED_BITS

Value = TypeVar("Value")

_LEFT = "Whole epochs and finished trials are kept: give the same command to go on."


@app.command(
    epilog=examples(
        "ksm-hw compare --methods ksm,piggyback,head --tasks mnist,cars=photos/cars --seeds 3 -o compared",
        "ksm-hw compare --methods all --tasks all --seeds 3 --image-size 96 --epochs 5 --jobs 8 --deploy",
        "ksm-hw compare --methods all --tasks all --cluster auto -o /shared/compared",
        "ksm-hw compare --methods ksm,binary --tasks mnist --granularities kernel,channel --scale-bits 8,4",
    )
)
def compare(
    methods: Annotated[str, typer.Option(help="Names of methods with commas, or all.")] = "all",
    tasks: Annotated[
        str, typer.Option(help="DATA or TASK=DATA of each, with commas, or all: the sets that are installed.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How often each is learned.")] = 3,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of bundles, trials and the page.")] = Path(
        "compared"
    ),
    backbone: BackboneName = "efficientnet-lite0",
    weights: BackboneWeights = None,
    epochs: Epochs = 30,
    batch_size: BatchSize = 32,
    image_size: ImageSize = 224,
    mask_rate: MaskRate = 2e-4,
    head_rate: HeadRate = 2e-4,
    rate: Annotated[
        list[str] | None, typer.Option(help="METHOD=RATE: another --mask-rate for a method; repeat.")
    ] = None,
    granularities: Annotated[
        str | None, typer.Option(help="Several granularities of masks, with commas: each method in those it can have.")
    ] = None,
    scale_bits: Annotated[
        str | None, typer.Option(help="Several numbers of bits of a stored soft value, with commas, for KSM.")
    ] = None,
    all_images: AllImages = False,
    jobs: Annotated[
        int,
        typer.Option(min=1, max=256, help="Tasks learned beside each other, as far as methods allow."),
    ] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="HOST:PORT of a Ray cluster's head, or auto: it learns the tasks.")
    ] = None,
    deploy_them: Annotated[
        bool, typer.Option("--deploy", help="Compile what the first seed gave for this machine, and measure it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Learn the same tasks by several methods, each in a process of its own, and compare them; resumable."""
    from ksm_hw.artifact.output import check_output_file
    from ksm_hw.learning.datasets import check_task_data, describe_datasets, named_data
    from ksm_hw.learning.methods.table import method_named
    from ksm_hw.report.cluster import connected_cluster
    from ksm_hw.report.comparison import compare as run_comparison
    from ksm_hw.report.comparison import comparison_tables, write_comparison
    from ksm_hw.report.deployed_methods import deploy
    from ksm_hw.report.learning_trials import LearningTrial, all_trials
    from ksm_hw.report.terminal import print_table

    if cluster is not None:
        if jobs != 1:
            raise UserError("With --cluster Ray says how many tasks are learned beside each other. Leave out --jobs.")
        output, weights = output.absolute(), None if weights is None else weights.absolute()
    chosen = list(TITLES) if methods == "all" else [method_named(name.strip()).name for name in methods.split(",")]
    pairs_of_rates = (each.partition("=") for each in rate or [])
    rates = {_reader_of_rate(name): _rate(name, number) for name, _, number in pairs_of_rates}
    installed = ",".join(each.name for each in describe_datasets() if each.installed)
    pairs = named_data(installed if tasks == "all" else tasks, "--tasks")
    for _, data in pairs:
        check_task_data(data)
    if cluster is not None:  # Whose processes begin in other folders.
        pairs = [(task, str(Path(data).absolute()) if Path(data).is_dir() else data) for task, data in pairs]
    page = output / "comparison.html"
    check_output_file(page, "-o", [])
    shared = _chosen("--granularities", granularities, GRANULARITIES)
    trials = all_trials(chosen, pairs, seeds, shared, _chosen("--scale-bits", scale_bits, LEARNED_BITS))
    common = ["--backbone", backbone, "--epochs", str(epochs), "--batch-size", str(batch_size)]
    common += ["--image-size", str(image_size), "--head-rate", str(head_rate)]
    common += [] if weights is None else ["--weights", str(weights)]
    common += ["--all-images"] if all_images else []

    def arguments(method: str) -> list[str]:
        reads = "mask_rate" in method_named(method).reads
        return [*common, *(["--mask-rate", str(rates.get(method, mask_rate))] if reads else [])]

    done = itertools.count(1)

    def on_trial(trial: LearningTrial, outcome: object) -> None:
        messages.print(f"{next(done)}/{len(trials)}: {trial.variant}, {trial.task}, seed {trial.seed}", soft_wrap=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(stopped_by_ctrl_c(_LEFT))
        runner = None if cluster is None else stack.enter_context(connected_cluster(cluster))
        jobs = jobs if runner is None else runner.cores
        summaries = run_comparison(trials, output, arguments, jobs, all_images, on_trial, runner)
        if deploy_them:
            first = [trial for trial in trials if trial.seed == 0]
            with messages.status("compile") as status:
                deployed = deploy(first, output, lambda step: status.update(step))
            summaries = [replace(each, deployed=deployed[each.variant, each.task]) for each in summaries]
    write_comparison(summaries, f"{seeds} seeds, {backbone}, {epochs} epochs, {image_size} pixels.", page)
    if as_json:
        print_json([asdict(summary) for summary in summaries])
        return
    for table in comparison_tables(summaries):
        print_table(console, table)
    console.print(f"Plots: {page}", soft_wrap=True)


def _reader_of_rate(name: str) -> str:
    """The name of a method that reads --mask-rate."""
    from ksm_hw.learning.methods.table import method_named

    method = method_named(name)
    if "mask_rate" not in method.reads:
        raise UserError(f"{TITLES[method.name]} learns no masks and no weights, so --rate {name}=… means nothing.")
    return method.name


def _chosen(option: str, text: str | None, known: Sequence[Value]) -> list[Value]:
    """The values that an option names with commas, each once."""
    by_name = {str(value): value for value in known}
    names = [] if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in by_name:
            raise UserError(f"{option} {text}: there is no '{name}'. Give some of {', '.join(by_name)}, with commas.")
    return [by_name[name] for name in dict.fromkeys(names)]


def _rate(method: str, text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 1e-9 <= found <= 1:
        raise UserError(f"--rate {method}={text} is no rate: give METHOD=NUMBER with a number from 1e-9 to 1.")
    return found
