"""Writes docs/comparison.md and its plots from what `ksm-hw compare --json` printed into docs/comparison.json.

    ksm-hw compare --methods all --tasks fashion-mnist,clipart,emoji,glyphs --seeds 3 --image-size 96 --epochs 10 \\
        --mask-rate 4e-4 --head-rate 2e-3 --rate piggyback=3e-4 --rate fine-tuning=6e-4 --rate packnet=6e-4 \\
        --rate cpg=6e-4 --jobs 18 --deploy --json > docs/comparison.json
    python benchmarks/compared_methods.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
from learning_rates import table as rates_table

from ksm_hw.learning.methods.names import TITLES
from ksm_hw.report.comparison import Summary, comparison_figures

DOCS = Path(__file__).resolve().parent.parent / "docs"
PLOTS = ("comparison-seconds.svg", "comparison-bytes.svg", "comparison-curves.svg")


def accuracies(summaries: list[Summary]) -> str:
    """A row a method: mean and spread of each task in percent, and the mean over the tasks."""
    tasks = list(dict.fromkeys(summary.task for summary in summaries))
    lines = [f"| method | seeds | {' | '.join(tasks)} | mean |", "|" + " --- |" * (3 + len(tasks))]
    for method in dict.fromkeys(summary.method for summary in summaries):
        mine = {summary.task: summary.accuracies for summary in summaries if summary.method == method}
        moments = [(100 * statistics.mean(mine[task]), 100 * statistics.stdev(mine[task])) for task in tasks]
        shown = [f"{mean:.1f} ± {spread:.1f}" for mean, spread in moments]
        over_all = statistics.mean(mean for mean, _ in moments)
        lines.append(f"| {TITLES[method]} | {len(mine[tasks[0]])} | {' | '.join(shown)} | {over_all:.1f} |")
    return "\n".join(lines)


def larger_images(trials: list[dict[str, Any]]) -> str:
    """A row a method: what each task reached with one seed at 224 pixels, in percent."""
    tasks = list(dict.fromkeys(trial["task"] for trial in trials))
    lines = [f"| method | {' | '.join(tasks)} |", "|" + " --- |" * (1 + len(tasks))]
    for method in dict.fromkeys(trial["method"] for trial in trials):
        shown = [f"{100 * trial['accuracy']:.1f}" for trial in trials if trial["method"] == method]
        lines.append(f"| {TITLES[method]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def costs(summaries: list[Summary]) -> str:
    """A row a method: means over the tasks, medians of what was compiled; and on which machine that was measured."""
    columns = "seconds of epochs | CPU s | MB on the GPU | MB a task | forgotten, points"
    columns += " | latency ms | switch ms | int8 latency ms | int8 switch ms"
    lines = [f"| method | {columns} |", "|" + " --- |" * 10]
    for method in dict.fromkeys(summary.method for summary in summaries):
        mine = [summary for summary in summaries if summary.method == method]
        seconds, cpu, gpu, added = (
            statistics.mean(getattr(each, name) for each in mine)
            for name in ("seconds", "cpu_seconds", "gpu_bytes", "added_bytes")
        )
        forgotten = 100 * max(max(each.forgotten) for each in mine)
        compiled = [each.deployed for each in mine if each.deployed is not None]
        measured = " | ".join(
            _milliseconds([getattr(each, name) for each in compiled])
            for name in ("latency", "switch", "int8_latency", "int8_switch")
        )
        lines.append(
            f"| {TITLES[method]} | {seconds:.0f} | {cpu:.0f} | {gpu / 1e6:.0f} | {added / 1e6:.2f} | {forgotten:.1f} | "
            f"{measured} |"
        )
    machines = dict.fromkeys(each.deployed.machine for each in summaries if each.deployed is not None)
    return "\n".join([*lines, *(f"\nCompiled for and measured on {machine}." for machine in machines)])


def _milliseconds(seconds: list[float | None]) -> str:
    """Their median, of the tasks that were measured."""
    found = [each for each in seconds if each is not None]
    return f"{1e3 * statistics.median(found):.2f}" if found else "—"


def main() -> None:
    """Fills the tables into the page, whose text stands in it, and draws the plots."""
    summaries = msgspec.json.decode((DOCS / "comparison.json").read_bytes(), type=list[Summary])
    tables = {
        "accuracies": accuracies(summaries),
        "costs": costs(summaries),
        "larger images": larger_images(json.loads((DOCS / "comparison-224.json").read_text())),
        "rates": rates_table(json.loads((DOCS / "learning_rates.json").read_text())),
    }
    page = (DOCS / "comparison.md").read_text()
    for name, table in tables.items():
        before, _, rest = page.partition(f"<!-- {name} -->\n")
        after = rest[rest.index("<!-- end -->") :]
        page = f"{before}<!-- {name} -->\n{table}\n{after}"
    (DOCS / "comparison.md").write_text(page)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "comparison"}):
        for name, figure in zip(PLOTS, comparison_figures(summaries).values(), strict=True):
            figure.savefig(DOCS / name, metadata={"Date": None})


if __name__ == "__main__":
    main()
