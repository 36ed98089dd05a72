"""`ksm-hw train`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from ksm_hw.cli.app import Json, app, command, console, examples, messages, print_json, printable, stopped_by_ctrl_c
from ksm_hw.cli.image_files import MaxPixels, limit_pixels
from ksm_hw.errors import UserError
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.masks.mask_format import Granularity, ScaleBits

# typer takes the choices of an option from a Literal; a type checker wants one that is written out.
if TYPE_CHECKING:
    from ksm_hw.learning.datasets import TaskData
    from ksm_hw.learning.train import Trained

    MethodName = str
    BitsOfSoftValue = str
else:
    MethodName = Literal[tuple(TITLES)]
    BitsOfSoftValue = Literal[tuple(str(bits) for bits in get_args(ScaleBits) if bits > 1)]


# Parts of the help of their own: in one table the names of options would be cut.
_MASKS = "Masks"
_WEIGHTS = "Weights that tasks change: PackNet and CPG"


@app.command(
    epilog=examples(
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
        Path | None, typer.Option(help=r"State dict of the backbone. \[default: ImageNet weights]")
    ] = None,
    method: Annotated[MethodName, typer.Option(help="How: " + ", ".join(TITLES.values()) + ".")] = "ksm",
    epochs: Annotated[int, typer.Option(min=1, max=100_000, help="Passes over the training images.")] = 30,
    batch_size: Annotated[int, typer.Option(min=2, max=4096, help="Images a step.")] = 32,
    image_size: Annotated[int, typer.Option(min=32, max=2048, help="Height and width of the input, in pixels.")] = 224,
    mask_rate: Annotated[
        float, typer.Option(min=1e-9, max=1, help="Adam's rate for masks, BatchNorms and weights.")
    ] = 2e-4,
    head_rate: Annotated[float, typer.Option(min=1e-9, max=1, help="Adam's rate for the head.")] = 2e-4,
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
    validation: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.9,
            help=r"Share of the training images that are looked at, not learned. \[default: 0; 0.1 for CPG]",
            rich_help_panel=_WEIGHTS,
        ),
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help=r"Mirror training images. \[default: as the data says]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of everything random.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be read.")] = False,
    max_pixels: MaxPixels = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget what an interrupted run learned.")] = False,
    as_json: Json = False,
) -> None:
    """Learn a task over a frozen backbone and add it to a bundle. Ctrl-C keeps whole epochs; give the same again."""
    from dataclasses import replace

    from ksm_hw.learning.datasets import load_task_data
    from ksm_hw.learning.mask_equations import MaskConstants
    from ksm_hw.learning.options import LearningOptions
    from ksm_hw.learning.train import checked_backbone, checkpoint_of, train_task

    limit_pixels(max_pixels)
    options = LearningOptions(
        method=method,
        granularity=granularity,
        epochs=epochs,
        batch_size=batch_size,
        mask_rate=mask_rate,
        head_rate=head_rate,
        seed=seed,
        constants=MaskConstants(mask_initial, mask_threshold, mask_slope, mask_temperature, mask_scale_weight),
        prune=prune,
        accuracy_goal=accuracy_goal,
        validation=validation,
    )
    with messages.status("load the backbone"):
        network = checked_backbone(task, bundle, backbone, weights, image_size, options)
    images = _readable(load_task_data(data), skip_bad)
    messages.print(f"{len(images.train)} training and {len(images.test)} test images in {len(images.classes)} classes")

    def kept() -> str:
        if checkpoint_of(bundle, task).exists():
            return "Whole epochs are kept: give the same command to go on, or add --restart."
        return "No epoch was done, so nothing is kept."

    with stopped_by_ctrl_c(kept), _epoch_progress(epochs) as (on_batch, on_epoch):
        trained = train_task(
            images if flip is None else replace(images, flip=flip),
            task,
            bundle,
            backbone,
            options,
            network=network,
            image_size=image_size,
            scale_bits=int(scale_bits),  # type: ignore[arg-type]
            restart=restart,
            command=printable(command(*sys.argv[1:])),
            on_batch=on_batch,
            on_epoch=on_epoch,
        )
    if as_json:
        print_json(
            {
                **trained.pack.facts,
                "scale_error": trained.scale_error,
                "pack_bytes": trained.pack.nbytes,
                "replaced_accuracy": trained.replaced_accuracy,
                "carried_over": trained.carried_over,
            }
        )
    else:
        _print_trained(trained, bundle)


def _readable(images: "TaskData", skip_bad: bool) -> "TaskData":
    """The images that decode; says which do not, and without --skip-bad that ends the command."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ksm_hw.learning.check_images import unreadable_images, without_images

    columns = (TextColumn("check images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        bar = progress.add_task("check images")
        unreadable = unreadable_images(images, lambda done, total: progress.update(bar, completed=done, total=total))
    if not unreadable:
        return images
    for error in unreadable.values():
        messages.print(str(error), soft_wrap=True)
    count = f"{len(unreadable)} of {len(images.train) + len(images.test)} images cannot be read"
    if not skip_bad:
        first = next(iter(unreadable))
        raise UserError(
            f"{count}, {first} among them; all are named above. Remove them, or leave them out: --skip-bad."
        )
    messages.print(f"{count} and are left out.")
    return without_images(images, unreadable)


def _print_trained(trained: "Trained", bundle: Path) -> None:
    """What became of the task, for a person."""
    pack = trained.pack
    console.print(
        f"Task '{pack.task}' is in {bundle}: {pack.nbytes / 1e6:.2f} MB, accuracy {pack.facts['accuracy']:.1%}"
    )
    if trained.replaced_accuracy is not None:
        console.print(f"It replaces one of accuracy {trained.replaced_accuracy:.1%}.")
    if trained.carried_over:
        console.print(
            f"The bundle's backbone was replaced; proven to compute what they did: {', '.join(trained.carried_over)}.",
            soft_wrap=True,
        )
    if coded := {mask.scale_bits for mask in pack.masks.values() if mask.coded}:
        console.print(
            f"Soft values in {max(coded)} bits are off by at most {trained.scale_error:.2g}; accuracy as learned "
            f"was {pack.facts['learned_accuracy']:.1%}."
        )
    compile_it = command("compile", "--target", "host", "--task", pack.task, "--bundle", bundle)
    console.print(f"Compile it: {compile_it}", soft_wrap=True)


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
