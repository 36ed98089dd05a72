"""The page of Markdown, from nothing but the JSON."""

from collections.abc import Sequence
from pathlib import Path

from arm64_loops.goals import goals
from arm64_loops.results import KINDS, Kind, Results
from arm64_loops.shares import share_ranges

_ABOUT = """What is counted: for each operator's innermost loops the cycles that `llvm-mca` finds in LLVM's tables of
the core, and how often they run, as they were scheduled. `share` means the same in all tables: the multiply-adds to
sums, beside those that the core could start in the cycles of their loops. Winograd's transforms add little to sums and
are no part of it; where an operator has them, `of all` is the share of the whole operator, transforms and what is moved
included. Milliseconds are of one core at the board's clock: all loops, transforms too (their part, with what is fused
behind them, stands beside), and a cycle for each register that all else reads or writes. Caches are left out: every
load hits the first of them. It is an estimate to compare loops by; no board ran it."""
_ABOUT_INTEGERS = """As `arm64_loops.md` says; a multiply-add is an `sdot`, of 16 bytes, of which a core starts as many
in a cycle as of float32."""
_ABOUT_UNEVEN = """By the same numbers: `equal` is a part for each core, as TVM shares a loop out, and `shared` parts
that each core takes as it becomes free, as artifacts do (ksm_hw/compiler/loop_sharing.c). To wake threads takes nothing
here. The board's target takes what is best. The A55's table starts up to two multiply-adds a cycle where its units do
one, so the slow cores' loops that pass 100 % are too fast here by as much, and so is what they add to the fast ones."""
_ABOUT_PEERS = """The best loops in the aarch64 wheels of other engines, by the same tables. Matrix products and
convolutions multiply by lanes. Depthwise convolutions multiply whole registers, in a step a multiple of their window's
size; which stride a loop of others has is not seen. Of ksm-hw the least and the greatest share of all operators, first
layers included. ksm-hw's depthwise loops have bias and activation in them; the best of ncnn's have no activation."""
_TRIED = Path(__file__).parent / "what_did_not_work.md"


def markdown(found: Results) -> str:
    """A page: tables of goals, networks and engines, and one of operators for each network and core."""
    integers = found["precision"] == "int8"
    title = "# arm64: loops of int8\n" if integers else "# arm64: loops beside the core's peak\n"
    parts = [title, *(f"`{command}`\n" for command in found["command"].splitlines())]
    if reached := goals(found):
        parts.append(reached)
    parts += [f"{_ABOUT_INTEGERS if integers else _ABOUT}\n", _networks(found), _without_share(found)]
    if found["uneven"]:
        parts += [f"## Fast and slow cores\n\n{_ABOUT_UNEVEN}\n", _uneven(found)]
    if found["peers"]:
        parts += [f"## Other engines\n\n{_ABOUT_PEERS}\n", _engines(found)]
    for one in found["networks"]:
        parts += [f"## {one['network']}, {one['board']}: {one['core']['title']}\n", _operators(one["operators"])]
    return "\n".join([*parts, *([] if integers else [_TRIED.read_text()])])


def _networks(found: Results) -> str:
    lines = ["| network | board | core, table, clock | ms on one core |", "| --- | --- | --- | ---: |"]
    for one in found["networks"]:
        core = one["core"]
        about = f"{core['title']}, `{core['table']}`, {core['gigahertz']} GHz"
        lines.append(f"| {one['network']} | {one['board']} | {about} | {one['milliseconds']:.1f} |")
    return "\n".join([*lines, ""])


def _without_share(found: Results) -> str:
    operators = (operator for one in found["networks"] for operator in one["operators"])
    names = dict.fromkeys(operator["name"] for operator in operators if operator["share"] is None)
    listed = ", ".join(f"`{name}`" for name in names) or "none"
    return f"Operators in which no multiply-adds were found, and which no share counts: {listed}.\n"


def _uneven(found: Results) -> str:
    """A line for each network on a board with cores of two kinds."""
    lines = [
        "| network | board | fast, equal, ms | fast, shared | fast and slow, equal | fast and slow, shared |",
        "| --- | --- |" + " ---: |" * 4,
    ]
    for one in found["uneven"]:
        cells = " | ".join(f"{time:.2f}" for time in one["milliseconds"])
        lines.append(f"| {one['network']} | {one['board']} | {cells} |")
    return "\n".join([*lines, ""])


def _engines(found: Results) -> str:
    """A line for each board's core and kind: two boards with the same core have targets of their own."""
    engines = list(dict.fromkeys(one["engine"] for one in found["peers"]))
    heads = ["board", "core", "kind", "ksm-hw", *engines]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for board, core in dict.fromkeys((one["board"], one["core"]["title"]) for one in found["networks"]):
        for kind in KINDS:
            ours = " | ".join((board, core, kind.title, share_ranges(found, board, core, kind)))
            lines.append(f"| {ours} | {' | '.join(_best_loops(found, core, kind, engine) for engine in engines)} |")
    return "\n".join([*lines, ""])


def _best_loops(found: Results, core: str, kind: Kind, engine: str) -> str:
    wanted = core, kind.title, engine
    loops = [one for one in found["peers"] if (one["core"], one["kind"], one["engine"]) == wanted]
    return ", ".join(f"{loop['share']:.0%}" for loop in loops)


def _operators(operators: Sequence[Results]) -> str:
    lines = [
        "| calls | operator | data → result | share | loop: multiply-adds, cycles × steps | ms a call |",
        "| ---: | --- | --- | ---: | --- | ---: |",
    ]
    for one in operators:
        flow = " → ".join("×".join(map(str, one["shapes"][place][1:])) for place in (0, -1))
        share = "" if one["share"] is None else f"{one['share']:.0%}"
        time = f"{one['milliseconds']:.3f}"
        if transforms := one["transforms"]:
            share += f", of all {transforms['share_of_operator']:.0%}"
            time += f", transforms {transforms['milliseconds']:.3f}"
        loop = _loop(one["loops"][0]) if one["loops"] else ""
        lines.append(f"| {one['calls']} | {one['name']} | {flow} | {share} | {loop} | {time} |")
    return "\n".join([*lines, ""])


def _loop(loop: Results) -> str:
    """What takes most of an operator's products."""
    machine = loop["machine"]
    if machine is None:
        return f"unrolled × {loop['steps']:.0f}"
    return f"{machine['products']:g}, {machine['cycles']:.1f} × {loop['steps']:.0f}"
