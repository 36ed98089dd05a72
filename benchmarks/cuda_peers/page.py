"""The Markdown tables of what `cuda_machine.py` measured."""

from collections.abc import Mapping, Sequence
from typing import Any


def page(summary: Mapping[str, Any]) -> str:
    """A table of the networks at each batch: medians in milliseconds, in brackets the largest error of a logit."""
    measured = summary["networks"]
    batches = sorted({int(one["network"].rpartition("-")[2]) for one in measured})
    tables = [f"GPU, compute capability, driver: {summary['gpu']}\n"]
    for batch in batches:
        of_batch = [one for one in measured if one["network"].endswith(f"-{batch}")]
        tables.append(f"Batch {batch}, milliseconds an inference (largest error of a logit by the largest logit):\n")
        tables.append(_table(of_batch))
    failures = {f"- {one['engine']}, {one['network']}: {one['failure']}" for one in measured if one["failure"]}
    return "\n".join([*tables, *sorted(failures), ""])


def _table(measured: Sequence[Mapping[str, Any]]) -> str:
    networks = list(dict.fromkeys(one["network"] for one in measured))
    engines = list(dict.fromkeys(one["engine"] for one in measured))
    cells = {(one["engine"], one["network"]): _cell(one) for one in measured}
    rows = [["", *(network.rpartition("-")[0] for network in networks)], ["---"] * (1 + len(networks))]
    rows += [[engine, *(cells[engine, network] for network in networks)] for engine in engines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(one: Mapping[str, Any]) -> str:
    if one["median_ms"] is None:
        return "failed"
    noisy = ", noisy" if one["noisy"] else ""
    return f"{one['median_ms']:.3f} ({one['error_of_logits']:.0e}{noisy})"
