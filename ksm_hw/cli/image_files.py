"""What the commands that read images share: how large one may be, and what is said of those that cannot be read."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksm_hw.cli.endings import say_error
from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.images.stream import OnFailure

MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1, max=2**31 - 1, help=r"Largest image, width times height. \[default: 89478485]", show_default=False
    ),
]
Failures = dict[Path, UserError]


def limit_pixels(most: int | None) -> None:
    """Sets how many pixels an image may have, in Pillow, for this process; what Pillow warns of, we say ourselves."""
    from PIL import Image

    if most is not None:
        Image.MAX_IMAGE_PIXELS = most
    warnings.filterwarnings("ignore", module=r"PIL\.")


def reported_into(failures: Failures) -> "OnFailure":
    """What prints an image's error, once, and keeps it."""

    def on_failure(path: Path, error: UserError) -> None:
        if path not in failures:
            say_error(str(error))
        failures[path] = error

    return on_failure


def failures_as_json(failures: Failures) -> list[dict[str, str]]:
    """The images that could not be read, for scripts."""
    return [{"image": str(path), "error": str(error)} for path, error in failures.items()]
