"""`ksm-hw run`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import (
    ArtifactPath,
    Board,
    Json,
    Key,
    Threads,
    Tracker,
    app,
    console,
    examples,
    print_json,
    stopped_by_ctrl_c,
)
from ksm_hw.cli.image_files import Failures, MaxPixels, failures_as_json, limit_pixels, reported_into

if TYPE_CHECKING:
    from ksm_hw.runtime.classify import Classification


@app.command(
    epilog=examples(
        "ksm-hw run artifact --task cars photo.jpg",
        "ksm-hw run artifact --task cars photos --json",
        "ksm-hw run artifact --task cars photo.jpg --tracker 127.0.0.1:9190 --key rpi4",
    )
)
def run(
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.", show_default=False)],
    task: Annotated[str | None, typer.Option(help=r"Name of a task. \[default: the artifact's only one]")] = None,
    top: Annotated[int, typer.Option(min=1, max=1_000_000, help="Classes to print.")] = 5,
    max_pixels: MaxPixels = None,
    threads: Threads = None,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    as_json: Json = False,
) -> None:
    """Classify images with a compiled task, here or on a board; exit code 2 where some could not be read."""
    from ksm_hw.runtime.tvm_import import import_tvm_runtime

    import_tvm_runtime()
    from ksm_hw.boards.address import board_address
    from ksm_hw.boards.open_session import open_session
    from ksm_hw.images.finding import image_files
    from ksm_hw.runtime.classify import classify

    limit_pixels(max_pixels)
    results: list[dict[str, Any]] = []
    failures: Failures = {}
    with open_session(artifact, board_address(tracker, key, host), threads) as session:
        files = image_files(images)
        with stopped_by_ctrl_c("The images so far are printed."):
            try:
                for result in classify(session, files, task, top, reported_into(failures)):
                    if as_json:
                        results.append(asdict(result))
                    else:
                        _print_classification(result)
            finally:
                if as_json and (results or failures):
                    print_json({"images": results, "failures": failures_as_json(failures)})
    if failures:
        raise typer.Exit(2)


def _print_classification(result: "Classification") -> None:
    # As a table's title it would be broken where the table ends.
    console.print(Text(f"{result.image} ({result.task})", "italic"), soft_wrap=True)
    table = Table()
    table.add_column("class")
    table.add_column("probability", justify="right")
    for name, probability in result.classes:
        table.add_row(name, f"{probability:.1%}")
    console.print(table)
