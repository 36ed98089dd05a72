"""`ksm-hw calibrate`."""

from pathlib import Path
from typing import Annotated

import typer

from ksm_hw.cli.app import Json, app, console, examples, messages, print_json, stopped_by_ctrl_c
from ksm_hw.cli.image_files import MaxPixels, limit_pixels
from ksm_hw.quantising.observers import (
    DEFAULT_CORRECTION,
    DEFAULT_OBSERVER,
    IMAGES,
    BiasCorrection,
    ObserverName,
)


@app.command(
    epilog=examples(
        "ksm-hw calibrate --bundle my-tasks --task cars --data photos/cars",
        "ksm-hw calibrate --bundle my-tasks --task cars --data snapshots --observer percentile --images 500",
    )
)
def calibrate(
    task: Annotated[str, typer.Option(help="Name of the task.")],
    data: Annotated[str, typer.Option(help="Folder of images, or with train/CLASS images, or a set's name.")],
    bundle: Annotated[Path, typer.Option(help="Folder with the task, whose ranges are written there.")],
    observer: Annotated[
        ObserverName,
        typer.Option(help="minmax: extremes; histogram: least squared error; percentile: the middle 99.99 %."),
    ] = DEFAULT_OBSERVER,
    bias_correction: Annotated[
        BiasCorrection, typer.Option(help="Layers whose biases take out what rounding shifts, by 100 of the images.")
    ] = DEFAULT_CORRECTION,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help=rf"How many images are looked at. \[default: {IMAGES}, or all there are]",
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Find the ranges of a task's tensors on images, from which int8 takes its scales, and biases; into its pack."""
    from ksm_hw.learning.calibration_images import calibration_batches
    from ksm_hw.masks.bundle import add_calibration, check_bundle_folder, load_bundle, task_of

    limit_pixels(max_pixels)
    loaded = load_bundle(bundle)
    pack = task_of(loaded.packs, task)
    check_bundle_folder(bundle, task)
    with stopped_by_ctrl_c("The task is as it was."), messages.status("look for images") as status:
        batches = calibration_batches(data, pack.preprocessing, images)
        status.update("read the network")
        from ksm_hw.quantising.calibrate import calibrate as find_ranges

        found = find_ranges(
            loaded,
            pack,
            batches,
            observer,
            lambda done: status.update(f"calibrate: {done} images"),
            bias_correction,
            lambda done, total: status.update(f"calibrate: biases of {done} of {total} layers corrected"),
        )
        add_calibration(bundle, pack, found)
    if as_json:
        of_biases = {"bias_correction": bias_correction, "biases": len(found.biases)}
        print_json({"task": task, "observer": observer, "images": found.images, "ranges": found.ranges, **of_biases})
    else:
        console.print(
            f"Task '{task}' in {bundle} has the ranges of {len(found.ranges)} tensors, of {found.images} images, and "
            f"{len(found.biases)} biases for int8.",
            soft_wrap=True,
        )
