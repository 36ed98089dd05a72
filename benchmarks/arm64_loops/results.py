"""What was found of operators and of other engines' loops, as JSON: all that the page is written from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers.catalogue import NETWORKS

from arm64_loops import uneven_cores
from arm64_loops.cores import BOARDS, Core
from arm64_loops.operators import OperatorCost, Work
from arm64_loops.peer_wheels import PeerLoop
from ksm_hw.errors import UserError

# Network, then board and core, then operators.
Costs = dict[str, dict[tuple[str, Core], list[OperatorCost]]]
# Core, then engine, then its loops.
Peers = dict[Core, dict[str, list[PeerLoop]]]
# As JSON has it.
Results = dict[str, Any]

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

    def names(self, operator: str) -> bool:
        """Whether an operator of ksm-hw is of the kind, by its name."""
        if "conv2d" not in operator or ("depthwise" in operator) == self.by_lane:
            return False
        return self.by_lane or f"{self.window}×{self.window}" in operator


KINDS = (
    Kind("convolutions", by_lane=True),
    Kind("depthwise 3×3", by_lane=False, window=3),
    Kind("depthwise 5×5", by_lane=False, window=5),
)


def results(costs: Costs, peers: Peers, rewriting: Mapping[str, float], command: str, precision: str) -> Results:
    """All that was found.

    Args:
        costs: of the networks that were looked at so far.
        peers: loops of other engines, where they were looked at.
        rewriting: cycles of a rewritten weight on the core of the goals, by the kind of its mask; or nothing.
        command: that prints it.
        precision: of the networks.
    """
    return {
        "command": command,
        "precision": precision,
        "rewriting": dict(rewriting),
        "uneven": _uneven(costs),
        "peers": _peers(peers),
        "networks": _networks(costs),
    }


def read_results(file: Path) -> Results:
    """What a run wrote before.

    Raises:
        UserError: there is no such file, or no run wrote it.
    """
    try:
        found: Results = json.loads(file.read_text())
        known = {*found} if isinstance(found, dict) else set()
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror}. Run the command with -o first.") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}). Run the command with -o again.") from error
    if lacking := [key for key in results({}, {}, {}, "", "") if key not in known]:
        raise UserError(f"{file} lacks {', '.join(lacking)}: this command did not write it. Run it with -o again.")
    return found


def joined(earlier: Results, later: Results) -> Results:
    """Two runs as one: what the later one did not look at is the earlier one's, commands are those of both."""
    return {
        "command": f"{earlier['command']}\n{later['command']}",
        "precision": later["precision"],
        "rewriting": later["rewriting"] or earlier["rewriting"],
        "uneven": _in_order(_replaced(earlier["uneven"], later["uneven"], "network", "board")),
        "peers": _replaced(earlier["peers"], later["peers"], "core"),
        "networks": _in_order(_replaced(earlier["networks"], later["networks"], "network", "board")),
    }


def _replaced(earlier: Sequence[Results], later: Sequence[Results], *names: str) -> list[Results]:
    """What the later run found, behind what the earlier one found of other networks, boards or cores."""
    there = [[one[name] for name in names] for one in later]
    return [*(one for one in earlier if [one[name] for name in names] not in there), *later]


def _in_order(found: Sequence[Results]) -> list[Results]:
    """By network and board, as they are listed: runs may have looked at them in any order."""
    networks, boards = [*NETWORKS], [*BOARDS]
    return sorted(found, key=lambda one: (networks.index(one["network"]), boards.index(one["board"])))


def _networks(costs: Costs) -> list[Results]:
    return [
        {
            "network": network,
            "board": board,
            "core": asdict(core),
            "milliseconds": sum(cost.operator.calls * cost.milliseconds for cost in operators),
            "operators": [_operator(cost) for cost in operators],
        }
        for network, of_cores in costs.items()
        for (board, core), operators in of_cores.items()
    ]


def _operator(cost: OperatorCost) -> Results:
    operator, transforms = cost.operator, None
    if cost.share is not None and cost.transforms:
        transforms = {"milliseconds": cost.transforms, "share_of_operator": cost.share_of_operator}
    return {
        "symbol": operator.symbol,
        "name": operator.name,
        "shapes": [list(shape) for shape in operator.entry.shapes],
        "schedule": operator.entry.schedule,
        "calls": operator.calls,
        "share": cost.share,
        "milliseconds": cost.milliseconds,
        "transforms": transforms,
        # Those of products first, and of these what multiplies most.
        "loops": [_loop(one) for one in sorted(cost.work, key=lambda one: (-one.scheduled.sums, -one.products))],
    }


def _loop(work: Work) -> Results:
    loop = work.loop
    machine = None
    if loop is not None:
        machine = {"products": loop.products, "cycles": loop.cycles, "instructions": len(loop.instructions)}
    return {
        "extents": list(work.scheduled.extents),
        "products": work.scheduled.products,
        "steps": work.steps,
        "machine": machine,
    }


def _uneven(costs: Costs) -> list[Results]:
    """Milliseconds of each network on a board with cores of two kinds."""
    found = []
    for network, of_cores in costs.items():
        for board in dict.fromkeys(board for board, _ in of_cores):
            kinds = [(core, operators) for (other, core), operators in of_cores.items() if other == board]
            if len(kinds) > 1:
                ways = (kinds[:1], False), (kinds[:1], True), (kinds, False), (kinds, True)
                times = [uneven_cores.milliseconds(cores, shared) for cores, shared in ways]
                found.append({"network": network, "board": board, "milliseconds": times})
    return found


def _peers(peers: Peers) -> list[Results]:
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
        for loop in _best(loops, kind, core)
    ]


def _best(loops: Sequence[PeerLoop], kind: Kind, core: Core) -> list[PeerLoop]:
    return sorted(filter(kind.has, loops), key=lambda loop: -loop.cost.share(core))[:_BEST]
