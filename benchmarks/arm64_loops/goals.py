"""Issue 17's goals for Cortex-A76: where loops were at first, what other engines' reach, what was wanted, and now."""

import arm64_rewriting
import tvm

from arm64_loops.cores import BOARDS
from arm64_loops.llvm_mca import cost_loops
from arm64_loops.tables import KINDS, Costs, Peers, best, our_cell
from ksm_hw.toolchains.targets import load_target

_BOARD = "rpi5"
_DEPTHWISE = ("31 to 54%", "the best peer's, and ≥ 70%")
_SHARES = (("50 to 60%", "≥ 92%"), _DEPTHWISE, _DEPTHWISE)  # At first and wanted, of each kind.


def goals(costs: Costs, peers: Peers) -> str:
    """The table; nothing where the core or the loops of other engines were not looked at."""
    (core,) = BOARDS[_BOARD]
    if core not in peers:
        return ""
    lines = [f"| {core.title} | at first | the best peer | wanted | now |", "| --- | --- | --- | --- | --- |"]
    for kind, (first, wanted) in zip(KINDS, _SHARES, strict=True):
        loops = [
            (loop.cost.share(core), engine) for engine in peers[core] for loop in best(peers[core][engine], kind, core)
        ]
        peer = "{:.0%} ({})".format(*max(loops)) if loops else ""
        lines.append(
            f"| {kind.title}, share of the peak | {first} | {peer} | {wanted} | {our_cell(costs, kind, core)} |"
        )
    target = tvm.target.Target(dict(load_target(_BOARD).tvm))
    masks = {name: arm64_rewriting.cycles(one, target, core)[0] for name, one in arm64_rewriting.KERNELS.items()}
    now = ", ".join(f"{name} {cycles:.0f}" for name, cycles in masks.items())
    (copy,) = cost_loops([arm64_rewriting.copying()], core)
    lines.append(f"| rewriting a weight, cycles for 64 values | 258 | a copy {copy.cycles:.0f} | ≤ 40 | {now} |")
    return "\n".join([*lines, ""])
