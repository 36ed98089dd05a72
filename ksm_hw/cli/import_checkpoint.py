"""`ksm-hw import`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ksm_hw.cli.app import Json, app, command, console, examples, messages, print_json, printable
from ksm_hw.errors import UserError


@app.command(
    name="import",
    epilog=examples(
        "ksm-hw import cubs.pt --format piggyback --backbone vgg16 --backbone-weights vgg16.pth -o my-tasks",
        "ksm-hw import packnet.pt --backbone resnet50 --task flowers --task cubs_cropped=birds -o my-tasks",
        "ksm-hw import cpg.pt --backbone vgg16_bn --dry-run",
    ),
)
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A file that a method's scripts wrote.", show_default=False)],
    backbone: Annotated[
        str, typer.Option(help="efficientnet-lite0, a torchvision network, or timm:NAME.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Bundle to add the tasks to; made if it is not there.")
    ] = None,
    form: Annotated[
        Literal["auto", "ksm", "piggyback", "packnet", "cpg"], typer.Option("--format", help="Whose checkpoint it is.")
    ] = "auto",
    backbone_weights: Annotated[
        Path | None,
        typer.Option(help=r"State dict of the backbone, for KSM and Piggyback. \[default: ImageNet weights]"),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help=r"A task to take, or TASK=NAME to give it another name; repeat. \[default: all]"),
    ] = None,
    classes: Annotated[
        list[Path] | None,
        typer.Option(help="Names of classes, a line each: FILE for one task, or a folder with TASK.txt; else numbers."),
    ] = None,
    image_size: Annotated[int, typer.Option(min=32, max=2048, help="Height and width of the input, in pixels.")] = 224,
    resize_to: Annotated[
        int | None,
        typer.Option(min=32, max=4096, help=r"Shorter side before the centre is cropped. \[default: the image size]"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the file holds and would give.")] = False,
    as_json: Json = False,
) -> None:
    """Bring tasks out of a checkpoint of KSM, Piggyback, PackNet or CPG into a bundle; runs no code in it."""
    import dataclasses

    from ksm_hw.importing.formats import read_tasks
    from ksm_hw.importing.to_packs import chosen_tasks, describe, imported_bundle
    from ksm_hw.masks.bundle import add_tasks_over, check_bundle_folder, is_bundle, tasks_in
    from ksm_hw.masks.task_pack import bytes_at_rest
    from ksm_hw.models.backbones import build_backbone, check_can_grow, default_preprocessing, pretrained_backbone

    if output is None and not dry_run:
        raise UserError("The tasks need a bundle to be written into: give -o BUNDLE, or --dry-run.")
    if resize_to is not None and resize_to < image_size:
        raise UserError(f"--resize-to {resize_to} is less than the image size of {image_size}. Give no less than that.")
    with messages.status("read the checkpoint"):
        network = build_backbone(backbone)
        form_found, content = read_tasks(checkpoint, form, network)
        tasks = chosen_tasks(checkpoint, content, task or [])
        names = _class_names(classes or [], [each.name for each in tasks])
        if output is not None:
            for each in tasks:
                check_bundle_folder(output, each.name)
        if content.tensors is not None and backbone_weights is not None:
            messages.print(f"{checkpoint} has the backbone's weights, and {backbone_weights} is not read.")
        if content.tensors is None and not (dry_run and backbone_weights is None):
            network = pretrained_backbone(backbone, backbone_weights)
        preprocessing = default_preprocessing(backbone, image_size)
        preprocessing = dataclasses.replace(preprocessing, resize_to=resize_to or image_size)
        facts = {"source": printable(checkpoint.name)}
        bundle = imported_bundle(
            checkpoint, content, tasks, network, backbone, form_found.name, preprocessing, names, facts
        )
        found = describe(checkpoint, form_found.title, content, tasks, bundle.packs)
        found["preprocessing"] = dataclasses.asdict(preprocessing)
        found["pack_bytes"] = {name: bytes_at_rest(pack) for name, pack in bundle.packs.items()}
        older = tasks_in(output) if output is not None and is_bundle(output) else []
        found["replaced"] = [name for name in older if name in bundle.packs]
        found["carried_over"] = []
        if not dry_run and output is not None:
            found["carried_over"] = add_tasks_over(
                output, list(bundle.packs.values()), bundle.tensors, lambda: check_can_grow(build_backbone(backbone))
            )
    print_json(found) if as_json else _print_imported(found, None if dry_run else output)


def _class_names(files: list[Path], tasks: list[str]) -> dict[str, tuple[str, ...]]:
    """The names of classes that files give, by task.

    Raises:
        UserError: a file cannot be read, or it is not clear whose names it has.
    """
    names = {}
    for path in files:
        if not path.is_dir() and len(tasks) > 1:
            raise UserError(f"{len(tasks)} tasks are imported, and {path} names the classes of one. Give a folder.")
        for task in tasks:
            file = path / f"{task}.txt" if path.is_dir() else path
            if path.is_dir() and not file.exists():
                continue
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeError) as error:
                raise UserError(f"Cannot read the names of classes in {file} ({error}). Give a text file.") from error
            names[task] = tuple(line.strip() for line in lines if line.strip())
    return names


def _print_imported(found: Mapping[str, Any], output: Path | None) -> None:
    """What was taken, for a person."""
    console.print(
        f"{found['checkpoint']}: {found['format']}, {found['granularity']}-wise masks, backbone {found['backbone']}",
        soft_wrap=True,
    )
    for name, task in found["tasks"].items():
        minus = f", {task['minus_ones']:.1%} minus ones" if task["minus_ones"] else ""
        console.print(
            f"  {name}: {task['classes']} classes, {task['masked_layers']} masked layers with {task['ones']:.1%} ones"
            f"{minus}, {task['own_tensors']} tensors of its own, {found['pack_bytes'][name] / 1e6:.2f} MB",
            soft_wrap=True,
        )
    if found["left_out"]:
        console.print(f"  left out: {', '.join(found['left_out'])}", soft_wrap=True)
    preprocessing = found["preprocessing"]
    said = (
        f"The file does not say how images are prepared: taken is {preprocessing['image_size']} pixels, resized to "
        f"{preprocessing['resize_to']}, and the normalisation of the backbone's published weights."
    )
    for note in [*found["notes"], said]:
        console.print(f"  {note}", soft_wrap=True)
    if found["replaced"]:
        tasks, are = ", ".join(found["replaced"]), "would be" if output is None else "are"
        console.print(
            f"  the bundle has {tasks} already: such tasks {are} replaced, and their sample images go", soft_wrap=True
        )
    if found["carried_over"]:
        console.print(
            f"The bundle's backbone was replaced; proven to compute what they did: {', '.join(found['carried_over'])}.",
            soft_wrap=True,
        )
    if output is not None:
        task = next(iter(found["tasks"])) if len(found["tasks"]) == 1 else "all"
        compile_it = command("compile", "--target", "host", "--task", task, "--bundle", output)
        console.print(f"Compile it: {compile_it}", soft_wrap=True)
