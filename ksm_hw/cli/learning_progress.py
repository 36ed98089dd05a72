"""What commands that learn tasks show: images that are looked through, and epochs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ksm_hw.cli.app import messages
from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.learning.datasets import TaskData


def readable_images(images: "TaskData", skip_bad: bool) -> "TaskData":
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


@contextmanager
def epoch_progress(epochs: int) -> Iterator[tuple[Any, Any]]:
    """A progress bar of the epoch, and a line for each epoch that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        bar = progress.add_task("first epoch")

        def on_batch(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(epoch: Any) -> None:
            # In a wider network the epochs go on, and how many there will be is not known.
            of_all = f"/{epochs}" if epoch.width == 1 else ""
            progress.update(bar, description=f"epoch {epoch.number + 1}{of_all}", completed=0)
            held_out = "" if epoch.validation is None else f", held-out {epoch.validation:.1%}"
            taken_back = "; it was pruned too much and is taken back" if epoch.verdict == "undo" else ""
            progress.console.print(
                f"epoch {epoch.number}{of_all}: loss {epoch.loss:.3f}, test accuracy {epoch.accuracy:.1%}{held_out}, "
                f"{epoch.seconds:.0f} s{taken_back}",
                soft_wrap=True,
            )

        yield on_batch, on_epoch
