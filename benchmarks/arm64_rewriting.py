"""Counts what rewriting a weight costs on arm64 cores, by LLVM's tables: nothing runs on an arm64 core or is timed.

    python benchmarks/arm64_rewriting.py

Compiles the kernel of 1×1 convolutions for each core, with soft values in 8 bits, in 32, and without a mask, and asks
llvm-mca how many cycles its inner loop takes for 64 values; beside it a loop that copies 64. Caches are left out.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tvm
from arm64_loops.cores import BOARDS, Core
from arm64_loops.llvm_mca import cost_loops
from tvm import tirx

from ksm_hw.report.innermost_loops import innermost_loops
from ksm_hw.toolchains.disassembly import Instruction, disassemble
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.pipeline import loop_pipeline

KERNELS = {
    "codes of 8 bits": WeightRewrite((480, 80, 1, 1), 80, 1, 16, True, 1e-3, coded=True),
    "float32": WeightRewrite((480, 80, 1, 1), 80, 1, 16, True, 1e-3),
    "no mask": WeightRewrite((480, 80, 1, 1), 0, 1, 16, True, 1e-3),
}
_STEP = 64  # Values.
_REGISTER = 4  # Values.


def copying() -> tuple[Instruction, ...]:
    """A loop that copies 64 values, as LLVM writes one."""
    pairs = [f"q{first}, q{first + 1}, [x{{}}, #{16 * first}]" for first in range(0, _STEP // _REGISTER, 2)]
    loads = [Instruction(0, "ldp", pair.format(0)) for pair in pairs]
    stores = [Instruction(0, "stp", pair.format(1)) for pair in pairs]
    ends = [("add", "x0, x0, #256"), ("add", "x1, x1, #256"), ("cmp", "x0, x2")]
    return (*loads, *stores, *(Instruction(0, *end) for end in ends))


def inner_loops(rewrite: WeightRewrite, target: tvm.target.Target, folder: Path) -> list[tuple[Instruction, ...]]:
    """The loops of a kernel that read, scale and store the values of a weight."""
    kernel = weight_rewrite(rewrite.shared, target).with_attr("global_symbol", "rewrite")
    path = folder / "kernel.o"
    library = tirx.build(tvm.IRModule({"rewrite": kernel}), target=by_tables(target), pipeline=loop_pipeline())
    library.write_to_file(str(path))
    functions = disassemble(path, "aarch64")
    loops = [loop.instructions for function in functions.values() for loop in innermost_loops(function)]
    return [loop for loop in loops if _values(loop)]


def _values(loop: Sequence[Instruction]) -> int:
    """How many values a step of a loop stores, of those that it turned over."""
    stored = sum(
        {"str": 1, "stur": 1, "stp": 2}.get(step.mnemonic, 0) for step in loop if step.operands.startswith("q")
    )
    return _REGISTER * stored if sum(step.mnemonic.startswith(("trn", "zip")) for step in loop) >= 8 else 0


def cycles(rewrite: WeightRewrite, target: tvm.target.Target, core: Core) -> list[float]:
    """Of a kernel's loops, for 64 values, the fastest first: others are for the last rows of a mask."""
    with tempfile.TemporaryDirectory() as folder:
        loops = inner_loops(rewrite, target, Path(folder))
    return sorted(cost.cycles * _STEP / _values(cost.instructions) for cost in cost_loops(loops, core))


def rewriting(board: str, core: Core) -> dict[str, int]:
    """Cycles of a board's kernels for 64 values on a core, by the kind of mask, and of a copy."""
    target = tvm.target.Target(dict(load_target(board).tvm))
    (copy,) = cost_loops([copying()], core)
    found = {name: round(cycles(rewrite, target, core)[0]) for name, rewrite in KERNELS.items()}
    return {**found, "a copy": round(copy.cycles)}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    rows = [
        {"target": board, "core": core.title, **rewriting(board, core)}
        for board, cores in BOARDS.items()
        for core in cores
    ]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("|" + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
