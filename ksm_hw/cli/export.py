"""`ksm-hw export`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from ksm_hw.cli.app import Json, app, console, examples, messages, print_json
from ksm_hw.cli.endings import say_error


@app.command(
    epilog=examples(
        "ksm-hw export my-tasks --task cars --format onnx -o cars.onnx",
        "ksm-hw export my-tasks --task cars --format state-dict -o cars.safetensors",
    )
)
def export(
    bundle: Annotated[Path, typer.Argument(help="Backbone and tasks.", show_default=False)],
    task: Annotated[str, typer.Option(help="Name of the task.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)],
    form: Annotated[
        Literal["onnx", "pt2", "state-dict"],
        typer.Option("--format", help="pt2 is for torch.export.load; a state dict is safetensors if called so."),
    ] = "onnx",
    batch: Annotated[
        int | None, typer.Option(min=1, max=1024, help=r"Images an inference, for onnx and pt2. \[default: 1]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a task as a plain network for other engines: masks and BatchNorms folded, and checked against PyTorch.

    Exit code 1 where what was written computes something else, and is removed.
    """
    from ksm_hw.artifact.output import check_output_file
    from ksm_hw.exporting.export import OtherLogits, check_export, export_task
    from ksm_hw.masks.bundle import load_bundle, task_of

    check_output_file(output, "--output", [bundle])
    check_export(form, batch)
    with messages.status("export and check"):
        loaded = load_bundle(bundle)
        pack = task_of(loaded.packs, task)
        try:
            exported = export_task(loaded, pack, form, output, batch)
        except OtherLogits as error:
            say_error(str(error))
            raise typer.Exit(1) from error
    if as_json:
        preprocessing = dataclasses.asdict(pack.preprocessing)
        print_json({**dataclasses.asdict(exported), "classes": pack.classes, "preprocessing": preprocessing})
        return
    console.print(
        f"{output}: {exported.bytes / 1e6:.1f} MB. Its logits are off by at most {exported.largest_difference:.2g}, "
        f"where the largest is {exported.largest_logit:.2g}.",
        soft_wrap=True,
    )
    count, size = "N" if form == "state-dict" else batch or 1, pack.preprocessing.image_size
    console.print(
        f"It takes images {count} × 3 × {size} × {size}, RGB from 0 to 1, less {list(pack.preprocessing.mean)}, by "
        f"{list(pack.preprocessing.std)}; {len(pack.classes)} classes (--json names them).",
        soft_wrap=True,
    )
