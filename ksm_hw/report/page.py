"""A report as one HTML page: the tables and plots of every artifact, with nothing loaded from elsewhere."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ksm_hw.files.written import written_file
from ksm_hw.report.measure import ArtifactReport
from ksm_hw.report.terminal import (
    NOISY_ADVICE,
    TextTable,
    by_network,
    machine_facts,
    precision_of,
    precision_tables,
    report_tables,
)
from ksm_hw.report.timing import Timing

# Seen well on white and on near-black, and told apart by readers who do not see colours.
OURS, OTHER = "#3d8bd4", "#c98a2b"
# No drawing uses this colour: in the page it becomes that of the text around, which is light or dark.
INK = "#010203"

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --warn: #fbbf24; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--soft); }
.note { font-size: .9rem; margin: .4rem 0; }
.warning { color: var(--warn); font-weight: 600; }
figure { margin: 2rem 0; } figcaption { font-weight: 600; }
svg { max-width: 100%; height: auto; }
"""
GROWTH = "Size as tasks are added: each as large as the mean of those here; memory with live weights and workspace"
# The browser itself sees to it that nothing is loaded and no script runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_page(reports: Sequence[ArtifactReport], path: str | Path) -> None:
    """Writes the reports as one HTML page.

    Raises:
        UserError: the file cannot be written.
    """
    side_by_side = [figure_element(figure, caption) for caption, figure in precision_figures(reports)]
    sections = "\n".join([*map(_section, reports), *map(table_element, precision_tables(reports)), *side_by_side])
    write_html("What each task costs", "Measured by <code>ksm-hw report</code>.", sections, Path(path))


def write_html(title: str, said: str, sections: str, path: Path) -> None:
    """Writes a page.

    Args:
        title: as text.
        said: below it, as HTML.
        sections: the rest of the page, as HTML.
        path: of the file.

    Raises:
        UserError: the file cannot be written.
    """
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>ksm-hw: {html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p>{said}</p>
{sections}
</body>
</html>
"""
    with written_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")  # A path may be no UTF-8.


def report_figures(report: ArtifactReport) -> dict[str, Figure]:
    """The plots of a report, by what they show."""
    figures = {"Latency of an inference": _latency_figure(report)}
    if any(task.switch is not None for task in report.tasks):
        figures["Switch time"] = _switch_figure(report)
    if report.fold != "bake":  # Its libraries are full copies, and grow as those do.
        figures[GROWTH] = _growth_figure(report)
    return figures


def precision_figures(reports: Sequence[ArtifactReport]) -> list[tuple[str, Figure]]:
    """What it shows and a plot, of each network in several precisions whose accuracy was measured."""
    return [
        (f"{alike[0].backbone} by precision: accuracy against latency", _accuracy_figure(alike))
        for alike in by_network(reports)
        if any(task.accuracy is not None for report in alike for task in report.tasks)
    ]


def _section(report: ArtifactReport) -> str:
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in machine_facts(report))
    parts = [f"<h2>{html.escape(report.artifact)}</h2>", f"<dl>{facts}</dl>"]
    if report.noisy:
        parts.append(f'<p class="warning">{html.escape(NOISY_ADVICE)}</p>')
    for caption, figure in report_figures(report).items():
        parts.append(figure_element(figure, caption))
    parts += map(table_element, report_tables(report))
    return f"<section>{''.join(parts)}</section>"


def figure_element(figure: Figure, caption: str) -> str:
    """A figure with its caption, as an element of a page."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{_svg(figure, caption)}</figure>"


def table_element(table: TextTable) -> str:
    """A table as an element of a page."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="table"><table><caption>{html.escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}</div>"
    )


def _svg(figure: Figure, caption: str) -> str:
    """The figure as an element of the page, its text as text and in the colour of the page's."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # Metadata that names addresses on the web.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    drawing = stream.getvalue()
    drawing = drawing[drawing.index("<svg") :].replace(INK, "currentColor")
    # Groups have the same names in every figure, and a page's names are unique; nothing refers to them.
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1)


def axes_of(figure: Figure, count: int = 1) -> list[Axes]:
    """Axes side by side, without the frame's top and right."""
    found: list[Axes] = figure.subplots(1, count, squeeze=False).ravel().tolist()
    for axes in found:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.tick_params(colors=INK)
    return found


def _legend(axes: Axes) -> None:
    """A legend above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, labelcolor=INK)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=names, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds; bar: median, thick whisker: to p90, thin: to p99", color=INK)


def _bars(axes: Axes, timings: Sequence[Timing], offset: float, height: float, colour: str, label: str) -> None:
    """Horizontal bars up to the median, with whiskers to p90 and p99."""
    rows = [row + offset for row in range(len(timings))]
    medians = [timing.median_seconds * 1e3 for timing in timings]
    axes.barh(rows, medians, height, color=colour, label=label)
    for ends, width in (([t.p90_seconds * 1e3 for t in timings], 4), ([t.p99_seconds * 1e3 for t in timings], 1)):
        axes.hlines(rows, medians, ends, colors=INK, linewidth=width)


def _latency_figure(report: ArtifactReport) -> Figure:
    figure = Figure(figsize=(9, 1.6 + 0.6 * len(report.tasks)), layout="constrained")
    (axes,) = axes_of(figure)
    plain = [task.unmasked_latency for task in report.tasks if task.unmasked_latency is not None]
    height, offset = (0.36, 0.19) if plain else (0.6, 0.0)
    _bars(axes, [task.latency for task in report.tasks], -offset, height, OURS, f"compiled with --fold {report.fold}")
    if plain:
        _bars(axes, plain, offset, height, OTHER, "without masks")
    _name_rows(axes, [task.task for task in report.tasks])
    _legend(axes)
    return figure


def _switch_figure(report: ArtifactReport) -> Figure:
    switches = {task.task: task.switch for task in report.tasks if task.switch is not None}
    figure = Figure(figsize=(9, 1.6 + 0.45 * len(switches)), layout="constrained")
    (axes,) = axes_of(figure)
    _bars(axes, list(switches.values()), 0.0, 0.6, OURS, "switch to the task")
    if report.copy is not None:
        label = "plain copy of the live weights, median"
        axes.axvline(report.copy.median_seconds * 1e3, color=OTHER, linewidth=2.5, label=label)
    _name_rows(axes, list(switches))
    _legend(axes)
    return figure


def _accuracy_figure(reports: Sequence[ArtifactReport]) -> Figure:
    """A plot a task: each precision at its accuracy and latency."""
    tasks = dict.fromkeys(task.task for report in reports for task in report.tasks if task.accuracy is not None)
    figure = Figure(figsize=(1 + 4.2 * len(tasks), 3.6), layout="constrained")
    for axes, name in zip(axes_of(figure, len(tasks)), tasks, strict=True):
        for report in reports:
            for task in (task for task in report.tasks if task.task == name and task.accuracy is not None):
                place = (task.latency.median_seconds * 1e3, 100 * (task.accuracy or 0))
                axes.plot(*place, "o", color=OURS if report.precision == "float32" else OTHER)
                axes.annotate(precision_of(report), place, (4, 4), textcoords="offset points", color=INK)
        axes.set_title(name, color=INK, parse_math=False)
        axes.set_xlabel("milliseconds an inference, median", color=INK)
        axes.set_ylabel("accuracy, %", color=INK)
        axes.set_xlim(left=0)
        axes.margins(0.25)
    return figure


def _growth_figure(report: ArtifactReport) -> Figure:
    """Files and memory, for more tasks than there are."""
    tasks, files, memory = len(report.tasks), report.storage, report.memory
    pack_file = sum(task.pack_bytes for task in report.tasks) / tasks
    pack_loaded = sum(task.resident_bytes for task in report.tasks) / tasks
    copy = files.copies_bytes / tasks
    fixed = memory.shared_bytes + memory.weights_bytes + memory.workspace_bytes
    panels = [("files", files.backbone_bytes, pack_file, 0), ("memory", fixed, pack_loaded, memory.workspace_bytes)]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    counts = sorted({1, 2, 4, 8, 16, tasks})
    for axes, (title, base, each, copies_base) in zip(axes_of(figure, len(panels)), panels, strict=True):
        rows = range(len(counts))
        ours = [(base + each * count) / 1e6 for count in counts]
        copies = [(copies_base + copy * count) / 1e6 for count in counts]
        axes.bar([row - 0.2 for row in rows], ours, 0.38, color=OURS, label="backbone and task packs")
        axes.bar([row + 0.2 for row in rows], copies, 0.38, color=OTHER, label="full copies")
        axes.set_xticks(rows, labels=[f"{count}\nhere" if count == tasks else str(count) for count in counts])
        axes.set_xlabel("tasks", color=INK)
        axes.set_ylabel(f"MB in {title}", color=INK)
        _legend(axes)
    return figure
