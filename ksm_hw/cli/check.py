"""`ksm-hw verify` and `ksm-hw report`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ksm_hw.cli.app import (
    ArtifactPaths,
    Board,
    Json,
    Key,
    Threads,
    Tracker,
    app,
    console,
    examples,
    messages,
    print_json,
)
from ksm_hw.cli.image_files import Failures, MaxPixels, failures_as_json, limit_pixels, reported_into
from ksm_hw.errors import UserError

if TYPE_CHECKING:
    from ksm_hw.artifact.manifest import Manifest
    from ksm_hw.learning.datasets import TaskData


Source = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        help="Bundle that it was compiled from: what rounding its backbone costs. Not needed for shipped tasks.",
    ),
]

TestImages = Annotated[
    bool, typer.Option("--all-images", help="With --data: all test images of a named set, not a few hundred.")
]


@app.command(
    epilog=examples(
        "ksm-hw verify artifact",
        "ksm-hw verify artifact --task cars --images photos",
        "ksm-hw verify int8-artifact --task glyphs --layers --data glyphs",
        "ksm-hw verify small-artifact --bundle my-tasks",
        "ksm-hw verify artifact --tracker 127.0.0.1:9190 --key rpi4",
    )
)
def verify(
    artifacts: ArtifactPaths,
    task: Annotated[str | None, typer.Option(help=r"Name of a task. \[default: all]")] = None,
    images: Annotated[
        Path | None, typer.Option(help=r"Image, or folder of images. \[default: the artifact's samples]")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0, max=1, help="Largest relative error of the logits.")] = 1e-4,
    layers: Annotated[
        bool, typer.Option("--layers", help="Of int8: each tensor, whether it is equal, and its signal to noise.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Set's name, or folder with train/ and test/: tasks of its classes are tested on it."),
    ] = None,
    all_images: TestImages = False,
    bundle: Source = None,
    max_pixels: MaxPixels = None,
    threads: Threads = None,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    as_json: Json = False,
) -> None:
    """Compare compiled tasks with PyTorch on real images; exit code 1 past the tolerance, 2 for unreadable images.

    PyTorch computes in float64. An error past the tolerance still passes where it is at most 4 times that of PyTorch's
    own float32, and these 4 times are more than 1e-4: then the network is ill-conditioned, and both errors are printed.

    int8 has no tolerance: every tensor must be that of the integer model (docs/quantisation.md), bit for bit; on boards
    the logits.

    PyTorch computes over the artifact's own backbone. What a rounded one (--backbone-precision) costs is told apart.
    """
    from ksm_hw.artifact.manifest import read_manifest
    from ksm_hw.boards.address import board_address
    from ksm_hw.runtime.tvm_import import import_tvm_before_torch

    board = board_address(tracker, key, host)
    limit_pixels(max_pixels)
    # That one is damaged shall be told before the others are verified.
    manifests = {artifact: read_manifest(artifact) for artifact in artifacts}
    for artifact, manifest in manifests.items():
        if layers and manifest.precision != "int8":
            raise UserError(f"--layers is of int8, and {artifact} computes in {manifest.precision}. Leave it out.")
    _check_source(bundle, manifests)
    import_tvm_before_torch()
    from ksm_hw.report.verify import verify as verify_artifact

    test_set = _find_test_set(data, artifacts, task, all_images)
    results = []
    failures: Failures = {}
    for artifact in artifacts:
        with messages.status(f"verify {artifact!s}") as status:
            found = verify_artifact(
                artifact,
                None if task is None else [task],
                images,
                tolerance,
                threads=threads,
                board=board,
                on_failure=reported_into(failures),
                data=test_set,
                on_step=status.update,
                source=bundle,
            )
        results += [(artifact, result) for result in found]
    passed = all(result.passed for _, result in results)
    if as_json:
        rows = [{"artifact": str(artifact), **asdict(result)} for artifact, result in results]
        unread = failures_as_json(failures)
        print_json({"passed": passed, "tolerance": tolerance, "results": rows, "failures": unread})
    else:
        _print_verification([one for one in results if not one[1].tensors], tolerance)
        _print_integers([one for one in results if one[1].tensors], layers)
        _print_roundings(results, manifests)
        _print_accuracies(results, manifests)
    raise typer.Exit(1 if not passed else 2 if failures else 0)


def _print_verification(results: list[tuple[Path, Any]], tolerance: float) -> None:
    for artifact in dict.fromkeys(artifact for artifact, _ in results):
        title = f"{artifact} against PyTorch in float64; tolerance {tolerance:g} (relative error)"
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        for column in ("images", "absolute error", "relative error", "same class", ""):
            table.add_column(column, justify="right")
        for result in (result for other, result in results if other == artifact):
            table.add_row(
                result.task,
                str(result.images),
                f"{result.absolute_error:.1e}",
                f"{result.relative_error:.1e}",
                f"{result.agreement:.0%}",
                Text("passed", "green") if result.passed else Text("FAILED", "bold red"),
            )
        console.print(table)
    for _, result in results:
        if result.float32_error is not None:
            console.print(_conditioning(result), soft_wrap=True)


def _print_integers(results: list[tuple[Path, Any]], layers: bool) -> None:
    """The verdict of int8 tasks, and with `layers` each tensor of theirs."""
    for artifact in dict.fromkeys(artifact for artifact, _ in results):
        table = Table(title=f"{artifact} against the integer model, bit for bit", title_justify="left")
        table.add_column("task")
        for column in ("images", "equal tensors", "first that differs", "class of float32", ""):
            table.add_column(column, justify="right")
        for result in (result for other, result in results if other == artifact):
            seen = [one for one in result.tensors if one.equal is not None]
            table.add_row(
                result.task,
                str(result.images),
                f"{sum(one.equal for one in seen)} of {len(seen)}",
                result.first_difference or "",
                f"{result.agreement:.0%}",
                Text("passed", "green") if result.passed else Text("FAILED", "bold red"),
            )
        console.print(table)
    for _, result in results if layers else []:
        _print_tensors(result)


def _print_tensors(result: Any) -> None:
    table = Table(title=f"tensors of {result.task}", title_justify="left")
    table.add_column("tensor")
    table.add_column("integer model")
    table.add_column("signal to noise, dB", justify="right")
    for one in result.tensors:
        equal = {True: Text("equal", "green"), False: Text("DIFFERS", "bold red"), None: Text("not seen")}[one.equal]
        table.add_row(one.tensor, equal, "" if one.signal_to_noise is None else f"{one.signal_to_noise:.1f}")
    console.print(table)


def _print_accuracies(results: list[tuple[Path, Any]], manifests: "Mapping[Path, Manifest]") -> None:
    for artifact, result in results:
        if (found := result.accuracy) is not None:
            over = "" if manifests[artifact].backbone_precision == "float32" else " over the rounded backbone"
            whole = ""
            if found.whole_drop is not None:
                whole = f"; beside the backbone in float32 {found.whole_drop:.2f} points, rounding included"
            console.print(
                f"{artifact}, {result.task}: {found.compiled:.2%} of {found.images} test images right, PyTorch in "
                f"float32{over} {found.pytorch:.2%}: a drop of {found.drop:.2f} points{whole}.",
                soft_wrap=True,
            )


def _print_roundings(results: list[tuple[Path, Any]], manifests: "Mapping[Path, Manifest]") -> None:
    """What rounding a backbone changes, or which option tells it."""
    for artifact, result in results:
        precision, cost = manifests[artifact].backbone_precision, result.rounding
        if cost is not None:
            console.print(
                f"{artifact}, {result.task}: rounding the backbone to {precision} changes logits by at most "
                f"{cost.absolute_error:.1e} ({cost.relative_error:.1e} of the largest of an image), and "
                f"{cost.agreement:.0%} of the classes stay{_points_lost(result.accuracy)}.",
                soft_wrap=True,
            )
    unknown = {artifact for artifact, result in results if result.rounding is None}
    for artifact, manifest in manifests.items():
        if artifact in unknown and manifest.backbone_precision != "float32":
            console.print(
                f"{artifact}: what rounding the backbone to {manifest.backbone_precision} costs is not known here. "
                "Give the bundle that it was compiled from: --bundle.",
                soft_wrap=True,
            )


def _points_lost(accuracy: Any) -> str:
    return "" if accuracy is None else f"; PyTorch loses {accuracy.rounding_drop:.2f} points by it"


def _check_source(source: Path | None, manifests: "Mapping[Path, Manifest]") -> None:
    """Checks before the work that a bundle is given only where a backbone is rounded, and that it is that one's."""
    if source is None:
        return
    rounded = [artifact for artifact, manifest in manifests.items() if manifest.backbone_precision != "float32"]
    if not rounded:
        raise UserError(
            "--bundle tells what rounding a backbone costs, and the backbone is in float32. Leave --bundle out."
        )
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.runtime.tvm_import import import_tvm_before_torch

    import_tvm_before_torch()
    from ksm_hw.report.rounding import exact_bundle

    for artifact in rounded:
        exact_bundle(load_bundle(artifact), source)


def _check_records(tuned: Path | None, manifests: "Mapping[Path, Manifest]", unmasked: bool) -> None:
    """Checks before the work that tuning records are given only where they are needed, and that they are those."""
    if tuned is not None and not unmasked:
        raise UserError("--tuned is for the network without masks, which --no-unmasked leaves out. Give one of them.")
    if tuned is not None and not any(manifest.tuning_sha256 for manifest in manifests.values()):
        raise UserError(
            "--tuned is the folder that an artifact was compiled with, and this was compiled with none. Leave it out."
        )
    if unmasked:
        from ksm_hw.report.unmasked import why_not_comparable

        for artifact, manifest in manifests.items():
            why_not_comparable(artifact, manifest, tuned)


def _conditioning(result: Any) -> str:
    """Whether an error past the tolerance is float32's own, with both numbers."""
    own = f"PyTorch's own float32 error is {result.float32_error:.1e}, the compiled model's {result.relative_error:.1e}"
    if result.ill_conditioned:
        return f"{result.task}: the network is ill-conditioned. {own}; up to 4 times PyTorch's passes."
    return f"{result.task}: {own}."


@app.command(
    epilog=examples(
        "ksm-hw report artifact --html report.html",
        "ksm-hw report artifact --runs 200 --json",
        "ksm-hw report artifact --tuned tuned/host",
        "ksm-hw report float-artifact int8-artifact --data glyphs",
    )
)
def report(
    artifacts: ArtifactPaths,
    runs: Annotated[int, typer.Option(min=10, max=1_000_000, help="Inferences measured for each task.")] = 100,
    unmasked: Annotated[
        bool, typer.Option(help="Compile the network without masks as well, and compare with it.")
    ] = True,
    tuned: Annotated[
        Path | None, typer.Option(help="Folder of `ksm-hw tune` that it was compiled with, to compile that with too.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Set's name, or folder with train/ and test/: tasks of its classes are tested on it."),
    ] = None,
    all_images: TestImages = False,
    bundle: Source = None,
    threads: Threads = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, too.")] = None,
    tracker: Tracker = None,
    key: Key = None,
    host: Board = None,
    as_json: Json = False,
) -> None:
    """Measure what each task costs: latency, switch time, memory, bytes, and what the mask adds.

    Of artifacts of one network in several precisions a table shows all side by side.
    """
    from ksm_hw.artifact.manifest import read_manifest
    from ksm_hw.artifact.output import check_output_file
    from ksm_hw.boards.address import board_address
    from ksm_hw.report.measure import measure_artifact, reports_as_json

    board = board_address(tracker, key, host)
    if html is not None:
        check_output_file(html, "--html", artifacts)
    # That one is damaged shall be told before the others are measured.
    manifests = {artifact: read_manifest(artifact) for artifact in artifacts}
    _check_source(bundle, manifests)
    _check_records(tuned, manifests, unmasked)
    test_set = _find_test_set(data, artifacts, None, all_images)
    reports = []
    with messages.status("measure") as status:
        for artifact in artifacts:
            reports.append(
                measure_artifact(
                    artifact,
                    runs,
                    on_step=lambda step: status.update(step),
                    compare_unmasked=unmasked,
                    tuned=tuned,
                    threads=threads,
                    board=board,
                    data=test_set,
                    source=bundle,
                )
            )
    if as_json:
        print_json(reports_as_json(reports))
    else:
        from ksm_hw.report.terminal import print_reports

        print_reports(console, reports)
    if html is not None:  # Behind the results, which a disk that is full shall not take along.
        from ksm_hw.report.page import write_page

        write_page(reports, html)
        messages.print(f"Wrote {html}", soft_wrap=True)


def _find_test_set(
    data: str | None, artifacts: Sequence[Path], task: str | None, all_images: bool
) -> "TaskData | None":
    """As `find_test_set`, which imports torch: a report without a set needs none."""
    if data is None:
        if all_images:
            raise UserError("--all-images is of the set that --data names. Give that, or leave it out.")
        return None
    from ksm_hw.runtime.tvm_import import import_tvm_before_torch

    import_tvm_before_torch()
    from ksm_hw.report.accuracy import find_test_set

    return find_test_set(data, artifacts, task, all_images)
