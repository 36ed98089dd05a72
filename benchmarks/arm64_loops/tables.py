"""The costs of operators as JSON and Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arm64_loops import uneven_cores
from arm64_loops.cores import Core
from arm64_loops.operators import OperatorCost, Work
from arm64_loops.peer_wheels import PeerLoop
from ksm_hw.artifact.modes import Precision

# Network, then board and core, then operators.
Costs = dict[str, dict[tuple[str, Core], list[OperatorCost]]]

_ABOUT = """What is counted: for each operator's innermost loops the cycles that `llvm-mca` finds in LLVM's tables of
the core, and how often they run, as they were scheduled. `share` is that of the multiply-adds which the core could
start in these cycles; Winograd's transforms, which add little to sums, are no part of it. Milliseconds are of one core
at the board's clock: those loops, the transforms, and a cycle for each register that all else reads or writes. Caches
are left out: every load hits the first of them. It is an estimate to compare loops by; no board ran it."""


_ABOUT_INTEGERS = """As `arm64_loops.md` says; a multiply-add is an `sdot`, of 16 bytes, of which a core starts as many
in a cycle as of float32."""


# Core, then engine, then its loops.
Peers = dict[Core, dict[str, list[PeerLoop]]]

_ABOUT_UNEVEN = """By the same numbers: `equal` is a part for each core, as TVM shares a loop out, and `shared` parts
that each core takes as it becomes free, as artifacts do (ksm_hw/compiler/loop_sharing.c). To wake threads takes nothing
here. The board's target takes what is best."""
_ABOUT_PEERS = """The best loops in the aarch64 wheels of other engines, by the same tables. Matrix products and
convolutions multiply by lanes. Depthwise convolutions multiply whole registers, in a step a multiple of their window's
size; which stride a loop of others has is not seen. Of ksm-hw the least and the greatest share of all operators, first
layers included. ksm-hw's depthwise loops have bias and activation in them; the best of ncnn's have no activation."""
_TRIED = Path(__file__).parent / "what_did_not_work.md"
_BEST = 3  # Loops of an engine and a kind.


@dataclass(frozen=True)
class Kind:
    """A kind of loops: how it is called, whether it multiplies by lanes, and the window of depthwise convolutions."""

    title: str
    by_lane: bool
    window: int = 1

    def has(self, loop: PeerLoop) -> bool:
        """Whether a loop of another engine is of the kind."""
        return loop.by_lane == self.by_lane and loop.cost.products % self.window**2 == 0


KINDS = (
    Kind("convolutions", by_lane=True),
    Kind("depthwise 3×3", by_lane=False, window=3),
    Kind("depthwise 5×5", by_lane=False, window=5),
)


def costs_as_json(costs: Costs, peers: Peers) -> dict[str, Any]:
    """A dictionary for each network and core, and one for each loop of other engines."""
    return {"networks": _networks_as_json(costs), "peers": _peers_as_json(peers)}


def _networks_as_json(costs: Costs) -> list[dict[str, Any]]:
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


def _peers_as_json(peers: Peers) -> list[dict[str, Any]]:
    return [
        {
            "core": core.title,
            "engine": engine,
            "kind": kind.title,
            "share": loop.cost.share(core),
            "products": loop.cost.products,
            "cycles": loop.cost.cycles,
            "symbol": loop.symbol,
            "address": loop.address,
        }
        for core, engines in peers.items()
        for engine, loops in engines.items()
        for kind in KINDS
        for loop in best(loops, kind, core)
    ]


def best(loops: Sequence[PeerLoop], kind: Kind, core: Core) -> list[PeerLoop]:
    """The best loops of a kind."""
    return sorted(filter(kind.has, loops), key=lambda loop: -loop.cost.share(core))[:_BEST]


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


def markdown(costs: Costs, peers: Peers, goals: str, command: str, precision: Precision) -> str:
    """A page: tables of goals, networks and engines, and one of operators for each network and core."""
    title = "# arm64: loops beside the core's peak\n" if precision == "float32" else "# arm64: loops of int8\n"
    about = _ABOUT if precision == "float32" else _ABOUT_INTEGERS
    parts = [title, f"`{command}`\n", *filter(None, [goals]), f"{about}\n", _networks(costs)]
    if uneven := _uneven(costs):
        parts += [f"## Fast and slow cores\n\n{_ABOUT_UNEVEN}\n", uneven]
    if peers:
        parts += [f"## Other engines\n\n{_ABOUT_PEERS}\n", _engines(costs, peers)]
    for network, of_cores in costs.items():
        for (board, core), operators in of_cores.items():
            parts.append(f"## {network}, {board}: {core.title}\n")
            parts.append(_operators(operators))
    return "\n".join([*parts, *([_TRIED.read_text()] if precision == "float32" else [])])


def _networks(costs: Costs) -> str:
    lines = ["| network | board | core, table, clock | ms on one core |", "| --- | --- | --- | ---: |"]
    for network, of_cores in costs.items():
        for (board, core), operators in of_cores.items():
            about = f"{core.title}, `{core.table}`, {core.gigahertz} GHz"
            lines.append(f"| {network} | {board} | {about} | {milliseconds(operators):.1f} |")
    return "\n".join([*lines, ""])


def _uneven(costs: Costs) -> str:
    """A line for each network on a board with cores of two kinds; nothing without one."""
    lines = []
    for network, of_cores in costs.items():
        for board in dict.fromkeys(board for board, _ in of_cores):
            kinds = [(core, operators) for (other, core), operators in of_cores.items() if other == board]
            if len(kinds) > 1:
                ways = (kinds[:1], False), (kinds[:1], True), (kinds, False), (kinds, True)
                cells = " | ".join(f"{uneven_cores.milliseconds(cores, shared):.2f}" for cores, shared in ways)
                lines.append(f"| {network} | {board} | {cells} |")
    heads = "| network | board | fast, equal, ms | fast, shared | fast and slow, equal | fast and slow, shared |"
    return "\n".join([heads, "| --- | --- |" + " ---: |" * 4, *lines, ""]) if lines else ""


def _engines(costs: Costs, peers: Peers) -> str:
    engines = list(next(iter(peers.values())))
    lines = [f"| core | kind | ksm-hw | {' | '.join(engines)} |", f"| --- | --- | --- |{' --- |' * len(engines)}"]
    for core, loops in peers.items():
        for kind in KINDS:
            cells = [_best_loops(loops[engine], kind, core) for engine in engines]
            lines.append(f"| {core.title} | {kind.title} | {our_cell(costs, kind, core)} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _best_loops(loops: Sequence[PeerLoop], kind: Kind, core: Core) -> str:
    return ", ".join(f"{loop.cost.share(core):.0%}" for loop in best(loops, kind, core))


def our_cell(costs: Costs, kind: Kind, core: Core) -> str:
    """The least and the greatest share; of depthwise convolutions those with a stride apart."""
    if kind.by_lane:
        return _range(our_shares(costs, kind, core))
    strided = _range(our_shares(costs, kind, core, strided=True))
    return ", stride 2: ".join(filter(None, (_range(our_shares(costs, kind, core, strided=False)), strided)))


def _range(shares: Sequence[float]) -> str:
    return f"{min(shares):.0%} to {max(shares):.0%}" if shares else ""


def our_shares(costs: Costs, kind: Kind, core: Core, strided: bool | None = None) -> list[float]:
    """Of ksm-hw's operators of a kind; where given, of those with or without a stride alone."""
    return [
        cost.share
        for of_cores in costs.values()
        for (_, other), operators in of_cores.items()
        for cost in operators
        if other == core and cost.share is not None and "conv2d" in cost.operator.name
        if ("depthwise" in cost.operator.name) != kind.by_lane
        if kind.by_lane or f"{kind.window}×{kind.window}" in cost.operator.name
        if strided is None or (" s2 " in cost.operator.name) == strided
    ]


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
        loops = "; ".join(map(_work, sorted(cost.work, key=lambda work: (-work.scheduled.sums, -work.products))[:1]))
        row = (str(operator.calls), operator.name, flow, share, loops, f"{cost.milliseconds:.3f}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


def _work(work: Work) -> str:
    if work.loop is None:
        return f"unrolled × {work.scheduled.steps}"
    return f"{work.loop.products:g}, {work.loop.cycles:.1f} × {work.steps:.0f}"
