"""`ksm-hw run`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ksm_hw.cli.app import ArtifactPath, Board, Json, Key, Threads, Tracker, app, console, examples, print_json


@app.command(
    epilog=examples(
        "ksm-hw run artifact --task cars photo.jpg",
        "ksm-hw run artifact --task cars photos/*.jpg --json",
        "ksm-hw run artifact --task cars photo.jpg --tracker 127.0.0.1:9190 --key rpi4",
    )
)
def run(
    artifact: ArtifactPath,
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    task: Annotated[str | None, typer.Option(help=r"Name of a task. \[default: the artifact's only one]")] = None,
    top: Annotated[int, typer.Option(min=1, max=1_000_000, help="Classes to print.")] = 5,
    threads: Threads = None,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    as_json: Json = False,
) -> None:
    """Classify images with a compiled task, here or on a board."""
    from ksm_hw.runtime.tvm_import import import_tvm_runtime

    import_tvm_runtime()
    from ksm_hw.boards.address import board_address
    from ksm_hw.boards.open_session import open_session
    from ksm_hw.runtime.classify import classify

    with open_session(artifact, board_address(tracker, key, host), threads) as session:
        results = classify(session, images, task, top)
    if as_json:
        print_json({"images": [asdict(result) for result in results]})
        return
    for result in results:
        table = Table(title=f"{result.image} ({result.task})", title_justify="left")
        table.add_column("class")
        table.add_column("probability", justify="right")
        for name, probability in result.classes:
            table.add_row(escape(name), f"{probability:.1%}")
        console.print(table)
