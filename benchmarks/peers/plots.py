"""The results as pictures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from ksm_hw.files.written import written_file
from peers.catalogue import TITLES
from peers.multitask_results import RELOADED, TaskCost
from peers.results import Result, cells

OURS, PEER = "#c0392b", "#7f8c8d"


def plot_latency(results: Sequence[Result], path: Path) -> None:
    """A chart for each network and number of threads: the engines by their medians, ksm-hw in red."""
    charts = cells([result for result in results if result.measured])
    if not charts:
        return
    threads = sorted({count for _, count in charts})
    networks = list(dict.fromkeys(network for network, _ in charts))
    size = (5.5 * len(threads), 0.6 + 2.9 * len(networks))
    figure, axes = pyplot.subplots(len(networks), len(threads), figsize=size, squeeze=False, layout="constrained")
    for row, network in enumerate(networks):
        for column, count in enumerate(threads):
            chart = sorted(charts.get((network, count), []), key=lambda result: result.median, reverse=True)
            axis = axes[row][column]
            below = [(result.median - result.quartiles[0]) * 1e3 for result in chart]
            above = [(result.quartiles[1] - result.median) * 1e3 for result in chart]
            bars = axis.barh(
                [result.title for result in chart],
                [result.median * 1e3 for result in chart],
                xerr=[below, above],
                color=[OURS if result.ours else PEER for result in chart],
            )
            axis.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
            axis.set_title(f"{TITLES[network]}, {count} thread{'s' if count > 1 else ''}", fontsize=10)
            axis.set_xlabel("median ms, with quartiles")
            axis.margins(x=0.15)
            axis.set_xlim(left=0)
    _save(figure, path)


def plot_tasks(costs: Sequence[TaskCost], path: Path) -> None:
    """Memory against the number of tasks, and the time of a switch."""
    measured = [cost for cost in costs if cost.failure is None]
    if not measured:
        return
    rows = list(dict.fromkeys((cost.network, cost.threads) for cost in measured))
    figure, axes = pyplot.subplots(len(rows), 2, figsize=(11, 4.2 * len(rows)), squeeze=False, layout="constrained")
    for (network, threads), (memory, switch) in zip(rows, axes, strict=True):
        _plot_row([cost for cost in measured if (cost.network, cost.threads) == (network, threads)], memory, switch)
        memory.set_title(f"{TITLES[network]}, threads: {threads}", fontsize=10)
    _save(figure, path)


def _plot_row(costs: Sequence[TaskCost], memory: Axes, switch: Axes) -> None:
    titles = list(dict.fromkeys(cost.title for cost in costs))
    for title, way in dict.fromkeys((cost.title, cost.way) for cost in costs):
        line = [cost for cost in costs if (cost.title, cost.way) == (title, way)]
        style = {
            "label": f"{title}, {way}",
            "color": f"C{titles.index(title)}",
            "marker": "o",
            "linestyle": "--" if way == RELOADED else "-",
        }
        grown = [(cost.loaded_bytes - cost.before_bytes) / 1e6 for cost in line]
        memory.plot([cost.tasks for cost in line], grown, **style)
        switched = [(cost.tasks, cost.switch_seconds * 1e3) for cost in line if cost.switch_seconds is not None]
        if switched:
            switch.plot(*zip(*switched, strict=True), **style)
    memory.set(xlabel="tasks", ylabel="memory that loading them added, MB", ylim=(0, None))
    switch.set(xlabel="tasks", ylabel="switch to the next task, ms", yscale="log")
    memory.legend(fontsize=8)  # Of both: an engine has one colour.
    for axis in (memory, switch):
        axis.set_xticks(sorted({cost.tasks for cost in costs}))
        axis.grid(alpha=0.3)


def _save(figure: pyplot.Figure, path: Path) -> None:
    with written_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
