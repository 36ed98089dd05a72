"""`ksm-hw inspect`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ksm_hw.cli.app import Json, app, console, examples, print_json


@app.command(
    epilog=examples(
        "ksm-hw inspect my-tasks --html masks.html",
        "ksm-hw inspect my-tasks/tasks/cars.safetensors",
    )
)
def inspect(
    source: Annotated[Path, typer.Argument(help="A bundle, or the file of a task in it.", show_default=False)],
    page: Annotated[Path | None, typer.Option("--html", help="Write a page with heat maps as well.")] = None,
    as_json: Json = False,
) -> None:
    """Look into masks: ones and soft values by layer, what tasks have in common, bytes beside the entropy."""
    from ksm_hw.artifact.output import check_output_file
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.masks.task_pack import load_task_pack
    from ksm_hw.report.inspection import inspect_packs, inspection_tables
    from ksm_hw.report.terminal import print_table

    if page is not None:
        check_output_file(page, "--html", [source])
    if source.is_file():
        pack = load_task_pack(source)
        packs = {pack.task: pack}
    else:
        packs = dict(load_bundle(source).packs)
    found = inspect_packs(str(source), packs)
    if page is not None:
        from ksm_hw.report.inspection_page import write_inspection

        write_inspection(found, page)
    if as_json:
        print_json(asdict(found))
        return
    for table in inspection_tables(found):
        print_table(console, table)
        console.print()
