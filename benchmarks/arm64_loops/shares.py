"""Shares of the peak that operators of a kind reach, from the JSON."""

from collections.abc import Callable, Sequence

from arm64_loops.results import Kind, Results


def shares(found: Results, board: str, core: str, has: Callable[[str], bool]) -> list[float]:
    """Of a board's operators with multiply-adds whose names are of a kind, on a core; of all networks."""
    return [
        operator["share"]
        for one in found["networks"]
        if (one["board"], one["core"]["title"]) == (board, core)
        for operator in one["operators"]
        if operator["share"] is not None and has(operator["name"])
    ]


def share_ranges(found: Results, board: str, core: str, kind: Kind) -> str:
    """The least and the greatest share; of depthwise convolutions those with a stride apart."""
    if kind.by_lane:
        return share_range(shares(found, board, core, kind.names))
    whole = share_range(shares(found, board, core, lambda name: kind.names(name) and " s2 " not in name))
    strided = share_range(shares(found, board, core, lambda name: kind.names(name) and " s2 " in name))
    return ", stride 2: ".join(filter(None, (whole, strided)))


def share_range(values: Sequence[float]) -> str:
    """The least and the greatest; nothing of none."""
    return f"{min(values):.0%} to {max(values):.0%}" if values else ""
