"""`ksm-hw train`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ksm_hw.artifact.modes import Precision
from ksm_hw.cli.app import Json, app, command, console, examples, messages, print_json, printable, stopped_by_ctrl_c
from ksm_hw.cli.image_files import MaxPixels, limit_pixels
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
from ksm_hw.cli.learning_progress import epoch_progress, readable_images
from ksm_hw.errors import UserError
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.masks.mask_format import LEARNED_BITS, Granularity

# typer takes the choices of an option from a Literal; a type checker wants one that is written out.
if TYPE_CHECKING:
    from ksm_hw.learning.datasets import TaskData
    from ksm_hw.learning.options import LearningOptions
    from ksm_hw.learning.train import Trained

    MethodName = str
    BitsOfSoftValue = str
else:
    MethodName = Literal[tuple(TITLES)]
    BitsOfSoftValue = Literal[tuple(map(str, LEARNED_BITS))]


# Parts of the help of their own: in one table the names of options would be cut.
_MASKS = "Masks"
_WEIGHTS = "Weights that tasks change: PackNet and CPG"


@app.command(
    epilog=examples(
        "ksm-hw train --backbone efficientnet-lite0 --task cars --data photos/cars --bundle my-tasks",
        "ksm-hw train --task digits --data mnist --image-size 96 --epochs 5 --mask-rate 1e-3",
        "ksm-hw train --method packnet --sequence clipart,cars=photos/cars --bundle my-tasks --log csv",
    )
)
def train(
    task: Annotated[str | None, typer.Option(help="Name of the task.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with train/CLASS and test/CLASS images, or a set's name.")
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Option(help="Instead of both: DATA or TASK=DATA of each task, with commas; those of the bundle stay."),
    ] = None,
    bundle: Annotated[Path, typer.Option(help="Folder to add the task to; made if it is not there.")] = Path("bundle"),
    backbone: BackboneName = "efficientnet-lite0",
    weights: BackboneWeights = None,
    method: Annotated[MethodName, typer.Option(help="How: " + ", ".join(TITLES.values()) + ".")] = "ksm",
    epochs: Epochs = 30,
    batch_size: BatchSize = 32,
    image_size: ImageSize = 224,
    mask_rate: MaskRate = 2e-4,
    norm_rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1, help=r"Adam's rate for norms. \[default: --mask-rate]")
    ] = None,
    layer_norms: Annotated[
        bool, typer.Option("--layer-norms/--no-layer-norms", help="Learn LayerNorms with the task, as BatchNorms are.")
    ] = True,
    head_start: Annotated[
        bool, typer.Option("--head-start", help="Fit the head to the features first; for one or two epochs.")
    ] = False,
    head_rate: HeadRate = 2e-4,
    granularity: Annotated[
        Granularity | None,
        typer.Option(
            help=r"What shares a mask value. \[default: kernel; element for Piggyback, PackNet and CPG]",
            rich_help_panel=_MASKS,
        ),
    ] = None,
    mask_initial: Annotated[
        float, typer.Option(min=-10, max=10, help="First value of every real-valued mask.", rich_help_panel=_MASKS)
    ] = 1e-2,
    mask_threshold: Annotated[
        float, typer.Option(min=-10, max=10, help="A real-valued mask from here on is 1.", rich_help_panel=_MASKS)
    ] = 5e-3,
    mask_slope: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Slope of the mask's sigmoid.", rich_help_panel=_MASKS)
    ] = 1200.0,
    mask_temperature: Annotated[
        float, typer.Option(min=1e-6, max=1e6, help="Temperature of the mask's sigmoid.", rich_help_panel=_MASKS)
    ] = 100.0,
    mask_scale_weight: Annotated[
        float, typer.Option(min=0, max=10, help="Weight of the soft values.", rich_help_panel=_MASKS)
    ] = 0.5,
    scale_bits: Annotated[
        BitsOfSoftValue, typer.Option(help="Bits of a stored soft value; 8 and 4 round.", rich_help_panel=_MASKS)
    ] = "32",
    prune: Annotated[
        float,
        typer.Option(min=0, max=0.999, help="Share of its weights that a task frees again.", rich_help_panel=_WEIGHTS),
    ] = 0.75,
    accuracy_goal: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=r"Of CPG, on the validation part. \[default: a point below that before pruning]",
            rich_help_panel=_WEIGHTS,
        ),
    ] = None,
    max_width: Annotated[
        float,
        typer.Option(min=1, max=4, help="Widest that CPG may make the network for its goal.", rich_help_panel=_WEIGHTS),
    ] = 2.0,
    validation: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help=r"Share of the training images that are looked at, not learned. \[default: 0; 0.1 for CPG]",
            rich_help_panel=_WEIGHTS,
        ),
    ] = None,
    all_images: AllImages = False,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help=r"Mirror training images. \[default: as the data says]")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="int8: the last epochs learn in int8's arithmetic.")] = "float32",
    int8_epochs: Annotated[
        int | None, typer.Option(min=1, max=100_000, help=r"How many of the epochs these are. \[default: a third]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    max_pixels: MaxPixels = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run learned.")] = False,
    log: Annotated[
        Literal["csv", "tensorboard"] | None, typer.Option(help="Write the curves of learning as well.")
    ] = None,
    log_folder: Annotated[Path, typer.Option(help="Where the curves are written, by task.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Learn tasks over one backbone and add them to a bundle. Ctrl-C keeps whole epochs; give the same again."""
    from ksm_hw.learning.mask_equations import MaskConstants
    from ksm_hw.learning.options import LearningOptions

    limit_pixels(max_pixels)
    options = LearningOptions(
        method=method,
        granularity=granularity,
        epochs=epochs,
        batch_size=batch_size,
        mask_rate=mask_rate,
        head_rate=head_rate,
        norm_rate=norm_rate,
        layer_norms=layer_norms,
        head_start=head_start,
        seed=seed,
        constants=MaskConstants(mask_initial, mask_threshold, mask_slope, mask_temperature, mask_scale_weight),
        prune=prune,
        accuracy_goal=accuracy_goal,
        max_width=max_width,
        validation=validation,
        precision=precision,
        int8_epochs=int8_epochs,
    )
    request = _Request(
        bundle,
        backbone,
        weights,
        options,
        image_size,
        scale_bits,
        all_images,
        flip,
        skip_bad,
        restart,
        log,
        log_folder,
        as_json,
    )
    learned: list[Trained] = []
    try:
        for each in _waiting(request, _tasks(task, data, sequence, request)):
            _learn(request, each, learned)
    finally:
        # Also where a later task ends the command: these are learned.
        described = [_as_json(trained) for trained in learned]
        if as_json and sequence is not None:
            print_json(described)
        elif as_json and described:
            print_json(described[0])


@dataclass(frozen=True)
class _Waiting:
    """A task that is about to be learned: its name, its images, and what takes its epochs."""

    task: str
    images: "TaskData"
    draw: Callable[[Any], None]


@dataclass(frozen=True)
class _Request:
    """What the tasks of a command have in common."""

    bundle: Path
    backbone: str
    weights: Path | None
    options: "LearningOptions"
    image_size: int
    scale_bits: str
    all_images: bool
    flip: bool | None
    skip_bad: bool
    restart: bool
    log: str | None
    log_folder: Path
    as_json: bool


def _tasks(task: str | None, data: str | None, sequence: str | None, request: _Request) -> list[tuple[str, str]]:
    """The tasks that are to be learned, each with its images; of a sequence those that the bundle has not.

    Raises:
        UserError: it is not clear which; two have one name; a task of the bundle was learned by another method.
    """
    if sequence is None:
        if task is None or data is None:
            raise UserError("Which task? Give --task and --data, or several tasks with --sequence.")
        return [(task, data)]
    from ksm_hw.learning.datasets import check_task_data, named_data
    from ksm_hw.learning.methods.table import check_sequence
    from ksm_hw.masks.bundle import pack_in

    if task is not None or data is not None:
        raise UserError("--sequence names tasks and their images. Leave out --task and --data, or --sequence.")
    waiting, pairs = [], named_data(sequence, "--sequence")
    check_sequence(request.options, len(pairs))
    for name, images in pairs:
        if (older := pack_in(request.bundle, name)) is None:
            check_task_data(images)
            waiting.append((name, images))
        elif older.method != request.options.method:
            raise UserError(
                f"Task '{name}' of {request.bundle} was learned by {older.method}, not {request.options.method}. Give "
                "another --bundle, or another name: NAME=DATA."
            )
        else:
            messages.print(
                f"Task '{name}' is in {request.bundle} and stays. It keeps what it was learned with.",
                soft_wrap=True,
            )
    return waiting


def _waiting(request: _Request, tasks: list[tuple[str, str]]) -> list[_Waiting]:
    """The tasks with their images. What can be wrong with any is told before the first is learned."""
    from dataclasses import replace

    from ksm_hw.learning.curves import curve
    from ksm_hw.learning.datasets import load_task_data
    from ksm_hw.learning.learn import learned_and_held_out
    from ksm_hw.learning.train import checked_start

    if not tasks:
        return []
    with messages.status("load the backbone"):
        start = checked_start(
            tasks[0][0], request.bundle, request.backbone, request.weights, request.image_size, request.options,
            int(request.scale_bits),  # type: ignore[arg-type]
        )  # fmt: skip
    if start.older:
        messages.print(f"{start.free_share:.2%} of the backbone's weights are free: no other task uses them")
    drawn = [curve(request.log, request.log_folder, task) for task, _ in tasks]
    waiting = []
    for (task, data), draw in zip(tasks, drawn, strict=True):
        images = readable_images(load_task_data(data, whole=request.all_images), request.skip_bad)
        learned_and_held_out(images, request.options)  # Whether there is enough of both.
        if request.flip is not None:
            images = replace(images, flip=request.flip)
        waiting.append(_Waiting(task, images, draw))
    return waiting


def _learn(request: _Request, waiting: _Waiting, learned: "list[Trained]") -> None:
    """Learns one task, and notes it as soon as it is in the bundle."""
    from ksm_hw.learning.train import checkpoint_of, train_task

    task, images, bundle, options = waiting.task, waiting.images, request.bundle, request.options
    messages.print(
        f"Task '{task}': {len(images.train)} training and {len(images.test)} test images in {len(images.classes)} "
        "classes"
    )
    before = len(learned)

    def kept() -> str:
        if len(learned) > before:
            return f"Task '{task}' is in {bundle}, without ranges for int8."
        if checkpoint_of(bundle, task).exists():
            return "Whole epochs are kept: give the same command to go on, or add --restart."
        return "No epoch was done, so nothing is kept."

    with stopped_by_ctrl_c(kept), epoch_progress(options.epochs) as (on_batch, show):

        def on_epoch(epoch: Any) -> None:
            show(epoch)
            waiting.draw(epoch)

        trained = train_task(
            images,
            task,
            bundle,
            request.backbone,
            options,
            weights=request.weights,
            image_size=request.image_size,
            scale_bits=int(request.scale_bits),  # type: ignore[arg-type]
            restart=request.restart,
            command=printable(command(*sys.argv[1:])),
            on_batch=on_batch,
            on_epoch=on_epoch,
            on_added=learned.append,
        )
        learned[-1] = trained  # With its ranges.
    if not request.as_json:
        _print_trained(trained, bundle)


def _as_json(trained: "Trained") -> dict[str, Any]:
    """What became of the task, for scripts."""
    from ksm_hw.masks.task_pack import bytes_at_rest

    return {
        **trained.pack.facts,
        "task": trained.pack.task,
        "method": trained.pack.method,
        "scale_error": trained.scale_error,
        "pack_bytes": bytes_at_rest(trained.pack),
        "replaced_accuracy": trained.replaced_accuracy,
        "carried_over": trained.carried_over,
        "free_share": trained.free_share,
        "gpu_bytes": trained.gpu_bytes,
    }


def _print_trained(trained: "Trained", bundle: Path) -> None:
    """What became of the task, for a person."""
    from ksm_hw.masks.task_pack import bytes_at_rest

    pack = trained.pack
    console.print(
        f"Task '{pack.task}' is in {bundle}: {bytes_at_rest(pack) / 1e6:.2f} MB, accuracy {pack.facts['accuracy']:.1%}"
    )
    if trained.replaced_accuracy is not None:
        console.print(f"It replaces one of accuracy {trained.replaced_accuracy:.1%}.")
    if trained.carried_over:
        console.print(
            f"The bundle's backbone was replaced; proven to compute what they did: {', '.join(trained.carried_over)}.",
            soft_wrap=True,
        )
    if pack.facts["learned_precision"] == "int8":
        console.print(f"In int8, in which it learned last, its accuracy was {pack.facts['learned_accuracy']:.1%}.")
    console.print(f"{trained.free_share:.2%} of the backbone's weights are free: no task uses them.")
    if coded := {mask.scale_bits for mask in pack.masks.values() if mask.coded}:
        console.print(
            f"Soft values in {max(coded)} bits are off by at most {trained.scale_error:.2g}; accuracy as learned "
            f"was {pack.facts['learned_accuracy']:.1%}."
        )
    compile_it = command("compile", "--target", "host", "--task", pack.task, "--bundle", bundle)
    console.print(f"Compile it: {compile_it}", soft_wrap=True)
