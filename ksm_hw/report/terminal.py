"""A report as tables of text: what the terminal and the page show alike, and its printing."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ksm_hw.report.measure import ArtifactReport
from ksm_hw.report.timing import NOISE_LIMIT, TOO_NOISY, Comparison, Timing

NOISY_ADVICE = (
    f"Rounds differ by more than {NOISE_LIMIT:.0%}: {TOO_NOISY} where it says so. "
    "Stop what else runs on the machine and report again."
)


@dataclass(frozen=True)
class TextTable:
    """A table.

    Attributes:
        title: names the table, with the units of its columns.
        columns: their heads; the first holds names, the others numbers.
        rows: a text for each column.
        note: what a reader should know about it; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def print_reports(console: Console, reports: Sequence[ArtifactReport]) -> None:
    """Prints the reports as tables that fit 100 columns, and last what precisions cost side by side."""
    for report in reports:
        console.print(Text(report.artifact, "bold"), soft_wrap=True)
        for name, value in machine_facts(report):
            console.print(f"  {name}: {value}")
        for table in report_tables(report):
            console.print()
            print_table(console, table)
        if report.noisy:
            console.print(Text(f"\n{NOISY_ADVICE}", "bold yellow"))
        console.print()
    for table in precision_tables(reports):
        print_table(console, table)


def precision_tables(reports: Sequence[ArtifactReport]) -> list[TextTable]:
    """A table of each network that was reported in several precisions: what its tasks cost in each."""
    return [_precisions(alike) for alike in by_network(reports)]


def by_network(reports: Sequence[ArtifactReport]) -> list[list[ArtifactReport]]:
    """The reports of each network of which there are some in several precisions."""
    networks: dict[tuple[object, ...], list[ArtifactReport]] = {}
    for report in reports:
        networks.setdefault((report.backbone, report.target, report.input_shape), []).append(report)
    return [alike for alike in networks.values() if len(set(map(precision_of, alike))) > 1]


def precision_of(report: ArtifactReport) -> str:
    """What inferences compute in, and what the backbone lies in at rest where that is rounded."""
    at_rest = report.backbone_precision
    return report.precision if at_rest == "float32" else f"{report.precision} of {at_rest}"


def _precisions(reports: Sequence[ArtifactReport]) -> TextTable:
    rows = []
    for name in dict.fromkeys(task.task for report in reports for task in report.tasks):
        for report in reports:
            for task in (task for task in report.tasks if task.task == name):
                memory = report.memory
                loaded = memory.weights_bytes + memory.parameters_bytes + memory.workspace_bytes
                rows.append(
                    (
                        name,
                        f"{precision_of(report)}, {report.fold}",
                        milliseconds(task.latency.median_seconds),
                        "" if task.switch is None else milliseconds(task.switch.median_seconds),
                        megabytes(report.storage.library_bytes),
                        megabytes(report.storage.bundle_bytes),
                        megabytes(loaded),
                        "" if task.accuracy is None else f"{task.accuracy:.2%}",
                    )
                )
    return TextTable(
        f"{reports[0].backbone} by precision: milliseconds and MB",
        ("task", "precision", "latency", "switch", "library", "bundle", "memory", "accuracy"),
        tuple(rows),
        "Precision: of inferences, of the backbone at rest where that is rounded. Bundle: backbone and packs at rest. "
        "Memory: backbone, task packs, live weights and workspace. Accuracy: on the test images of --data.",
    )


def machine_facts(report: ArtifactReport) -> list[tuple[str, str]]:
    """Names and values: what was measured, where and when."""
    machine = report.machine
    batch, _, height, width = report.input_shape
    target = ", ".join(f"{key} {value}" for key, value in report.tvm_target.items())
    facts = [
        ("network", f"{report.backbone}, {batch} × {height} × {width} pixels, {precision_of(report)}, {report.fold}"),
        ("target", f"{report.target} ({target}), TVM {report.tvm_version} ({report.ir})"),
        (
            "machine",
            f"{machine.cpu} ({machine.architecture}), {machine.cores} cores, {counted_threads(report.threads)}, "
            f"{machine.memory_bytes / 1e9:.1f} GB, {machine.system}",
        ),
        ("measured", f"{report.date}, load {machine.load:.1f} before; loading the artifact took {_load(report)}"),
    ]
    if report.channels_left_out:
        left = f"{report.channels_left_out:,} channels of layers, which are 0 in all tasks of the artifact"
        facts.append(("left out", left))
    if report.not_compared:
        facts.append(("without masks", f"not compared: {report.not_compared}"))
    return facts


def report_tables(report: ArtifactReport) -> list[TextTable]:
    """The tables of a report; those of which nothing was measured are left out."""
    times = [_latency(report), _mask_overhead(report), _switches(report)]
    sizes = [_packs(report), _rounding(report), _files(report), _memory(report)]
    return [table for table in (*times, *sizes) if table.rows]


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, in three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}" if value >= 0.001 else "< 0.001"


def megabytes(count: float) -> str:
    """Bytes as millions of bytes."""
    return f"{count / 1e6:.1f}" if count >= 1e8 else f"{count / 1e6:.3f}"


def counted_threads(count: int) -> str:
    """A number of threads."""
    return "1 thread" if count == 1 else f"{count} threads"


def print_table(console: Console, table: TextTable) -> None:
    """Prints a table."""
    drawn = Table(title=table.title, title_justify="left", caption=table.note or None, caption_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)


def _load(report: ArtifactReport) -> str:
    return f"{report.load_seconds:.2f} s"


def _rounds(timing: Timing) -> str:
    return f"{_spread(timing)}, {TOO_NOISY}" if timing.noisy else _spread(timing)


def _spread(timing: Timing) -> str:
    return f"{timing.spread:.0%}"


def _latency(report: ArtifactReport) -> TextTable:
    rows = []
    for task in report.tasks:
        timing = task.latency
        times = (timing.median_seconds, timing.p90_seconds, timing.p99_seconds)
        rows.append((task.task, *map(milliseconds, times), str(timing.count), _rounds(timing)))
    return TextTable(
        "Latency of an inference, milliseconds", ("task", "median", "p90", "p99", "runs", "rounds differ"), tuple(rows)
    )


def _mask_overhead(report: ArtifactReport) -> TextTable:
    rows = []
    for task in report.tasks:
        if task.unmasked_latency is None or task.mask_overhead is None:
            continue
        times = (task.latency.median_seconds, task.unmasked_latency.median_seconds)
        rows.append((task.task, *map(milliseconds, times), *_added(task.mask_overhead)))
    return TextTable(
        "What masks add to an inference, milliseconds",
        ("task", "as compiled", "without masks", "masks add", "over the rounds"),
        tuple(rows),
        "Without masks: the same network compiled without masks, measured in alternating rounds.",
    )


def _added(comparison: Comparison) -> tuple[str, str]:
    rounds = f"{comparison.lowest - 1:+.1%} … {comparison.highest - 1:+.1%}"
    return (TOO_NOISY if comparison.noisy else f"{comparison.ratio - 1:+.1%}", rounds)


def _switches(report: ArtifactReport) -> TextTable:
    rows = []
    for task in report.tasks:
        if task.switch is None:
            continue
        times = (task.switch.median_seconds, task.switch.p90_seconds)
        row = (task.task, *map(milliseconds, times), str(task.switch.count))
        against = task.switch_against_copy
        if against is None:
            rows.append((*row, _spread(task.switch)))
        else:
            rows.append((*row, _rounds(task.switch), TOO_NOISY if against.noisy else f"{against.ratio:.1f} ×"))
    title, columns = "Switch time, milliseconds", ("switch to", "median", "p90", "switches", "rounds differ")
    if report.copy is None:
        return TextTable(title, columns, tuple(rows), "No weights are rewritten: a switch takes the task's tensors.")
    note = (
        f"A plain copy of the live weights ({megabytes(report.memory.weights_bytes)} MB) inside the device's memory "
        f"takes {milliseconds(report.copy.median_seconds)} ms (median of {report.copy.count})."
    )
    return TextTable(title, (*columns, "against a copy"), tuple(rows), note)


def _packs(report: ArtifactReport) -> TextTable:
    rows = tuple(
        (task.task, task.method, task.granularity, str(task.classes), megabytes(task.pack_bytes),
         f"{task.pack_share:.2%}", megabytes(task.resident_bytes))
        for task in report.tasks
    )  # fmt: skip
    columns = ("task", "method", "granularity", "classes", "file", "of the backbone", "loaded")
    return TextTable("Task packs, MB", columns, rows)


def _rounding(report: ArtifactReport) -> TextTable:
    rows = tuple(
        (task.task, f"{task.rounding.absolute_error:.1e}", f"{task.rounding.relative_error:.1e}",
         f"{task.rounding.agreement:.0%}", "" if task.rounding_drop is None else f"{task.rounding_drop:.2f}")
        for task in report.tasks
        if task.rounding is not None
    )  # fmt: skip
    return TextTable(
        f"What rounding the backbone to {report.backbone_precision} changes",
        ("task", "absolute error", "relative error", "same class", "points lost"),
        rows,
        "PyTorch in float32 over both backbones: logits of the sample images, points on the test images of --data.",
    )


def _files(report: ArtifactReport) -> TextTable:
    files, count = report.storage, len(report.tasks)
    tasks = f"{count} task packs" if count > 1 else "1 task pack"
    copies = f"{count} full copies (backbone and own head each)" if count > 1 else "one full copy (backbone and head)"
    return TextTable(
        "Files, MB",
        ("what", "size"),
        (
            ("compiled library", megabytes(files.library_bytes)),
            ("backbone", megabytes(files.backbone_bytes)),
            (f"backbone and {tasks}", megabytes(files.bundle_bytes)),
            (copies, megabytes(files.copies_bytes)),
            ("packs against full copies", f"{files.bundle_bytes / files.copies_bytes:.2f} ×"),
        ),
        "With bake, each task's library holds a full copy of the weights." if report.fold == "bake" else "",
    )


def _memory(report: ArtifactReport) -> TextTable:
    memory = report.memory
    sizes = {
        "workspace of activations": memory.workspace_bytes,
        "live weights of the current task": memory.weights_bytes,
        "backbone and task packs": memory.parameters_bytes,
        "process at its peak": memory.process_peak_bytes,
        "process before the artifact was loaded": memory.process_start_bytes,
    }
    notes = {
        "bake": f"The weights are constants inside the library of {megabytes(report.storage.library_bytes)} MB.",
        "switch": "While it switches, a session holds the old and the new live weights.",
        "fused": "The weights are masked anew in every inference.",
    }
    rows = tuple((name, megabytes(size)) for name, size in sizes.items() if size)
    return TextTable("Memory, MB", ("what", "size"), rows, notes.get(report.fold, ""))
