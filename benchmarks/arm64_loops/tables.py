"""The costs of operators as JSON and Markdown."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from arm64_loops.cores import Core
from arm64_loops.operators import OperatorCost, Work

# Network, then board and core, then operators.
Costs = dict[str, dict[tuple[str, Core], list[OperatorCost]]]

_ABOUT = """What is counted: for each operator's innermost loops the cycles that `llvm-mca` finds in LLVM's tables of
the core, and how often they run, as they were scheduled. `share` is that of the multiply-adds which the core could
start in these cycles. Milliseconds are of one core at the board's clock: those loops, and a cycle for each register
that all else reads or writes. Caches are left out: every load hits the first of them. It is an estimate to compare
loops by; no board ran it."""


def costs_as_json(costs: Costs) -> list[dict[str, Any]]:
    """A dictionary for each network and core."""
    return [
        {
            "network": network,
            "board": board,
            "core": asdict(core),
            "milliseconds": milliseconds(operators),
            "operators": [_operator_as_json(cost) for cost in operators],
        }
        for network, of_cores in costs.items()
        for (board, core), operators in of_cores.items()
    ]


def milliseconds(operators: Sequence[OperatorCost]) -> float:
    """Of an inference on one core."""
    return sum(cost.operator.calls * cost.milliseconds for cost in operators)


def _operator_as_json(cost: OperatorCost) -> dict[str, Any]:
    operator = cost.operator
    return {
        "symbol": operator.symbol,
        "name": operator.name,
        "shapes": [list(shape) for shape in operator.entry.shapes],
        "schedule": operator.entry.schedule,
        "calls": operator.calls,
        "share": cost.share,
        "milliseconds": cost.milliseconds,
        "loops": [_work_as_json(work) for work in cost.work],
    }


def _work_as_json(work: Work) -> dict[str, Any]:
    loop = work.loop
    machine = None
    if loop is not None:
        machine = {"products": loop.products, "cycles": loop.cycles, "instructions": len(loop.instructions)}
    return {"extents": list(work.scheduled.extents), "products": work.scheduled.products, "machine": machine}


def markdown(costs: Costs, command: str) -> str:
    """A page: a table of networks, and one of operators for each network and core."""
    parts = ["# arm64: loops beside the core's peak\n", f"`{command}`\n", f"{_ABOUT}\n", _networks(costs)]
    for network, of_cores in costs.items():
        for (board, core), operators in of_cores.items():
            parts.append(f"## {network}, {board}: {core.title}\n")
            parts.append(_operators(operators))
    return "\n".join(parts)


def _networks(costs: Costs) -> str:
    lines = ["| network | board | core, table, clock | ms on one core |", "| --- | --- | --- | ---: |"]
    for network, of_cores in costs.items():
        for (board, core), operators in of_cores.items():
            about = f"{core.title}, `{core.table}`, {core.gigahertz} GHz"
            lines.append(f"| {network} | {board} | {about} | {milliseconds(operators):.1f} |")
    return "\n".join([*lines, ""])


def _operators(operators: Sequence[OperatorCost]) -> str:
    lines = [
        "| calls | operator | data → result | share | loop: multiply-adds, cycles × steps | ms a call |",
        "| ---: | --- | --- | ---: | --- | ---: |",
    ]
    for cost in operators:
        operator = cost.operator
        ends = (operator.entry.shapes[0], operator.entry.shapes[-1])
        flow = " → ".join("×".join(map(str, shape[1:])) for shape in ends)
        share = "" if cost.share is None else f"{cost.share:.0%}"
        loops = "; ".join(map(_work, sorted(cost.work, key=lambda work: -work.products)[:1]))
        row = (str(operator.calls), operator.name, flow, share, loops, f"{cost.milliseconds:.3f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _work(work: Work) -> str:
    if work.loop is None:
        return f"unrolled × {work.scheduled.steps}"
    return f"{work.loop.products:g}, {work.loop.cycles:.1f} × {work.products / work.loop.products:.0f}"
