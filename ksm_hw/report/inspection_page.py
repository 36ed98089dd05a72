"""What is in the masks of tasks as one HTML page, with heat maps."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ksm_hw.report.inspection import BINS, Inspection, inspection_tables
from ksm_hw.report.page import INK, figure_element, table_element, write_html

_MOST_NAMES = 60  # Of layers along an axis; beyond, every second, third, … has its name.


def write_inspection(inspection: Inspection, path: Path) -> None:
    """Writes the page.

    Raises:
        UserError: the file cannot be written.
    """
    parts = [figure_element(figure, caption) for caption, figure in inspection_figures(inspection).items()]
    tables = [table_element(table) for table in inspection_tables(inspection)]
    write_html(f"Masks of {inspection.source}", "Made by <code>ksm-hw inspect</code>.", "\n".join(parts + tables), path)


def inspection_figures(inspection: Inspection) -> dict[str, Figure]:
    """The heat maps, by what they show; only those that there are values for."""
    layers = list(dict.fromkeys(layer.layer for task in inspection.tasks for layer in task.layers))
    if not layers:
        return {}
    ones = [
        [{each.layer: each.ones for each in task.layers}.get(layer, np.nan) for layer in layers]
        for task in inspection.tasks
    ]
    figures = {"Share of ones by task and layer": _heat_map([task.task for task in inspection.tasks], layers, ones)}
    if inspection.overlaps:
        names = [" and ".join(overlap.tasks) for overlap in inspection.overlaps]
        shared = [[overlap.layers.get(layer, np.nan) for layer in layers] for overlap in inspection.overlaps]
        figures["Ones of either task that both have, by layer"] = _heat_map(names, layers, shared)
    for task in inspection.tasks:
        soft = [layer for layer in task.layers if len(set(layer.soft_range)) > 1]
        if soft:
            counts = np.array([layer.soft_counts for layer in soft])
            shares = (counts / counts.sum(axis=1, keepdims=True)).T.tolist()
            tenths = [f"{100 * number // BINS} %" for number in range(BINS)]
            figures[f"Where the soft values of {task.task} lie in each layer's range"] = _heat_map(
                tenths, [layer.layer for layer in soft], shares
            )
    return figures


def _heat_map(rows: list[str], columns: list[str], values: list[list[float]]) -> Figure:
    figure = Figure(figsize=(10, 1.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.array(values, np.float64), aspect="auto", vmin=0, vmax=1, cmap="viridis", rasterized=False)
    axes.set_yticks(range(len(rows)), rows, color=INK)
    step = -(-len(columns) // _MOST_NAMES)
    axes.set_xticks(range(0, len(columns), step), columns[::step], rotation=90, fontsize=7, color=INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.03)
    bar.ax.tick_params(colors=INK)
    axes.tick_params(colors=INK)
    return figure
