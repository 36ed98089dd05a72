"""Issue 17's goals: where loops were at first, what other engines' reach, what was wanted, what is and is missed."""

from collections.abc import Iterator, Sequence

from arm64_loops.results import KINDS, Results
from arm64_loops.shares import share_range, share_ranges, shares

BOARD, _CORE = "rpi5", "Cortex-A76"
_IN_ORDER = "rk3588", "Cortex-A55"
_CONVOLUTIONS, _DEPTHWISE, _SLOW = 0.92, 0.7, 0.8  # Shares that are wanted.
_CYCLES = 40
_AT_FIRST = ("50 to 60%", "31 to 54%", "31 to 54%")  # Of each kind.


def goals(found: Results) -> str:
    """The table; nothing where the core or the loops of other engines were not looked at."""
    peers = [one for one in found["peers"] if one["core"] == _CORE]
    if not peers or all(one["board"] != BOARD for one in found["networks"]):
        return ""
    lines = [
        "| core | | at first | the best peer | wanted | now | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_line, (*_fast(found, peers), *_slow(found))), ""])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fast(found: Results, peers: Sequence[Results]) -> Iterator[tuple[str, ...]]:
    """Of Cortex-A76."""
    for kind, first in zip(KINDS, _AT_FIRST, strict=True):
        best = max(((one["share"], one["engine"]) for one in peers if one["kind"] == kind.title), default=(0.0, "none"))
        least = _CONVOLUTIONS if kind.by_lane else max(_DEPTHWISE, best[0])
        wanted = f"≥ {least:.0%}" if kind.by_lane else f"≥ {_DEPTHWISE:.0%} and the best peer's"
        reached = shares(found, BOARD, _CORE, kind.names)
        title, now = f"{kind.title}, share of the peak", share_ranges(found, BOARD, _CORE, kind)
        yield _CORE, title, first, "{:.0%} ({})".format(*best), wanted, now, _met(reached, least)
    whole = [
        operator["transforms"]["share_of_operator"]
        for one in found["networks"]
        if one["board"] == BOARD
        for operator in one["operators"]
        if operator["transforms"]
    ]
    if whole:
        title = "Winograd's convolutions with their transforms"
        yield _CORE, title, "", "", f"≥ {_CONVOLUTIONS:.0%}", share_range(whole), _met(whole, _CONVOLUTIONS)
    if masks := dict(found["rewriting"]):
        copy = f"a copy {masks.pop('a copy'):.0f}"
        now = ", ".join(f"{name} {cycles:.0f}" for name, cycles in masks.items())
        met = _met([-cycles for cycles in masks.values()], -_CYCLES)
        yield _CORE, "rewriting a weight, cycles for 64 values", "258", copy, f"≤ {_CYCLES}", now, met


def _slow(found: Results) -> Iterator[tuple[str, ...]]:
    """Of Cortex-A55, whose shares count one multiply-add a cycle."""
    kinds = [(kind.title, kind.names) for kind in KINDS] + [("dense layers", lambda name: "matmul" in name)]
    for title, has in kinds:
        if reached := shares(found, *_IN_ORDER, has):
            about, now = f"{title}, share of one multiply-add a cycle", share_range(reached)
            yield _IN_ORDER[1], about, "", "", f"≥ {_SLOW:.0%}", now, _met(reached, _SLOW)


def _met(reached: Sequence[float], least: float) -> str:
    """Whether all of them reach it."""
    missed = sum(one < least for one in reached)
    return f"missed by {missed} of {len(reached)}" if missed else "yes" if reached else ""
