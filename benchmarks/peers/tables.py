"""The results as Markdown."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peers.catalogue import CLASSES_OF_TASKS, TITLES
from peers.multitask_results import TaskCost
from peers.results import Result, best_peer, cells, mean_ratios, ratios_to_best_peer

# The vector instructions that decide how fast a CPU can be here, by the names of /proc/cpuinfo.
TELLING_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")

# Of these the first that a CPU has says its class: machines of one class are compared, and results kept by it.
_CLASSES = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "sve": "SVE", "asimd": "NEON"}


_JUDGED = (
    "Each engine's network is quantised by its own tools, as they advise it for a CPU, with the same 100 crops of "
    "photographs, and judged on 100 crops of other photographs (`peers/engines/photographs.py`). Error of logits: root "
    "mean square of what they differ from float32's by, by that of how float32's differ between the images; 1 is that "
    "of logits that are the same for all images. Masks, heads and most weights are random, so that classes lie close "
    "together, and fewer images keep theirs than with a network that was learned."
)


def machine_class(flags: Collection[str]) -> str:
    """The class of a machine, such as `AVX2`, by the names of its instructions in /proc/cpuinfo."""
    return next((title for flag, title in _CLASSES.items() if flag in flags), "other")


def page(machines: Sequence[str], precision: str) -> str:
    """The whole page, of what `markdown` makes for each machine."""
    title = "# ksm-hw beside other engines" + ("" if precision == "float32" else f" in {precision}")
    return "\n".join([title, "", *machines])


def markdown(results: Sequence[Result], costs: Sequence[TaskCost], facts: Mapping[str, Any]) -> str:
    """What was measured on one machine."""
    parts = [f"## {machine_class(facts['cpu_flags'])}", "", *machine_lines(facts), ""]
    if results:
        parts += [*overview(results), ""]
        for (network, threads), cell in cells(results).items():
            parts += [f"### {TITLES[network]}, {_threads(threads)}", "", *latency_table(cell), ""]
        parts += [_JUDGED, ""] if any(result.agreement is not None for result in results) else []
        parts += [noise_line(results), "", f"Versions: {versions(results)}.", ""]
    if costs:
        for network, threads in dict.fromkeys((cost.network, cost.threads) for cost in costs):
            table = task_table([cost for cost in costs if (cost.network, cost.threads) == (network, threads)])
            parts += [f"### Many tasks of {TITLES[network]}, {_threads(threads)}", "", *table, ""]
    return "\n".join(parts)


def machine_lines(facts: Mapping[str, Any]) -> list[str]:
    """The machine, the date and the command."""
    machine = facts["machine"]
    flags = ", ".join(flag for flag in TELLING_FLAGS if flag in facts["cpu_flags"]) or "none of those looked for"
    return [
        f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores, vector instructions: {flags}; "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB; {machine['system']}; load at the start {machine['load']:.1f}; "
        f"{facts['date']}. Batch 1, {facts['image_size']}×{facts['image_size']}, {facts.get('precision', 'float32')}.",
        "",
        f"Made by `{facts['command']}`.",
    ]


def overview(results: Sequence[Result]) -> list[str]:
    """Median milliseconds of every engine on every network, and the geometric mean of the ratios to the best peer."""
    columns = list(cells(results))
    threads = list(dict.fromkeys(count for _, count in columns))
    heads = [f"{TITLES[network]}, {_threads(count)}" for network, count in columns]
    heads += [f"to the best peer, {_threads(count)}" for count in threads]
    lines = ["| engine, median ms | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    means = {count: mean_ratios(results, count) for count in threads}
    networks = {count: sum(other == count for _, other in columns) for count in threads}
    for engine, title in dict((result.engine, result.title) for result in results).items():
        row = []
        for cell in cells(results).values():
            found = next((result for result in cell if result.engine == engine), None)
            mark = "**" if found is not None and found is best_peer(cell) else ""
            row.append(f"{mark}{_milliseconds(found)}{mark}")
        for count in threads:
            mean, over = means[count].get(engine, (0.0, 0))
            row.append("—" if not over else f"{mean:.2f}" + (f" (of {over})" if over < networks[count] else ""))
        lines.append(f"| {title} | " + " | ".join(row) + " |")
    note = "Bold: the best peer. To it: geometric mean of the ratios of medians, below 1 is quicker. ~: noisy."
    return [*lines, "", note]


def latency_table(cell: Sequence[Result]) -> list[str]:
    """One network with one number of threads."""
    ratios = ratios_to_best_peer(cell)
    judged = any(result.agreement is not None for result in cell)
    heads = ["engine", "median ms", "quartiles apart", "to the best peer", "error of logits"]
    heads += ["float32's top class"] if judged else []
    lines = ["| " + " | ".join([*heads, "remarks"]) + " |", "| --- |" + " ---: |" * (len(heads) - 1) + " --- |"]
    for result in sorted(cell, key=lambda result: result.median if result.measured else float("inf")):
        error = "—" if result.error_of_logits is None else f"{result.error_of_logits:.1e}"
        if judged:
            error += " | —" if result.agreement is None else f" | {result.agreement:.0%}"
        if not result.measured:
            lines.append(f"| {result.title} | — | — | — | {error} | failed: {_one_line(result.failure)} |")
            continue
        ratio = f"{ratios[result.engine]:.2f}" if ratios else "—"
        lines.append(
            f"| {result.title} | {result.median * 1e3:.2f} | {result.interquartile / result.median:.1%} | {ratio} | "
            f"{error} | {_remarks(result)} |"
        )
    return lines


def noise_line(results: Sequence[Result]) -> str:
    """How much was repeated, and how many results stay noisy."""
    measured = [result for result in results if result.measured]
    noisy = sum(result.noisy for result in measured)
    repeated = sum(result.repeated for result in measured)
    rule = "Of each engine's rounds the quieter half counts."
    return f"{rule} Measured again: {repeated}. Noisy results: {noisy} of {len(measured)}."


def versions(results: Sequence[Result]) -> str:
    """Each engine with its release."""
    found = {result.title: result.version for result in results if result.version}
    return ", ".join(f"{title} {version}" for title, version in found.items())


def task_table(costs: Sequence[TaskCost]) -> list[str]:
    """What N tasks cost each engine."""
    lines = [
        "| engine | way | tasks | memory before, MB | with all tasks, MB | a task more, MB | switch, ms | and first "
        "inference, ms | files, MB | error of logits |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cost in costs:
        row = f"| {cost.title} {cost.version} | {cost.way} | {cost.tasks} |"
        if cost.failure is not None:
            lines.append(f"{row} failed: {_one_line(cost.failure)} | — | — | — | — | — | — |")
            continue
        times = (cost.switch_seconds, cost.first_logits_seconds)
        switch = " | ".join("—" if time is None else f"{time * 1e3:.2f}" + "~" * cost.disturbed for time in times)
        lines.append(
            f"{row} {cost.before_bytes / 1e6:.0f} | {cost.loaded_bytes / 1e6:.0f} | "
            f"{_bytes_a_task(cost, costs)} | {switch} | {cost.file_bytes / 1e6:.1f} | {cost.error_of_logits:.1e} |"
        )
    note = (
        "Memory is what the process holds resident: before, with the engine imported; then with all tasks loaded and "
        "each run once. A switch ends when the next inference can start: median over the tasks, files in the system's "
        "cache. An engine that holds all models has none to make. "
        f"Each task has {CLASSES_OF_TASKS} classes; ~: the machine was not quiet."
    )
    return [*lines, "", note]


def _bytes_a_task(cost: TaskCost, costs: Sequence[TaskCost]) -> str:
    """Growth since the next smaller number of tasks, by task."""
    smaller = [
        other
        for other in costs
        if (other.network, other.threads, other.engine, other.way)
        == (cost.network, cost.threads, cost.engine, cost.way)
        and other.failure is None
        and other.tasks < cost.tasks
    ]
    if not smaller:
        return "—"
    nearest = max(smaller, key=lambda other: other.tasks)
    return f"{(cost.loaded_bytes - nearest.loaded_bytes) / (cost.tasks - nearest.tasks) / 1e6:.1f}"


def _milliseconds(result: Result | None) -> str:
    if result is None:
        return "—"
    if not result.measured:
        return "failed"
    return f"{result.median * 1e3:.2f}" + ("~" if result.noisy else "")


def _remarks(result: Result) -> str:
    remarks = ["noisy"] if result.noisy else []
    if result.repeated:
        remarks.append(f"{result.repeated} repeated")
    if result.disturbed:
        remarks.append(f"{result.disturbed} of {len(result.rounds)} rounds disturbed")
    return ", ".join(remarks)


def _one_line(text: str | None) -> str:
    return " ".join((text or "not measured").split()).replace("|", "\\|")


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")
