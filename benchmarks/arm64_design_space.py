"""Whether the schedules that operators get untuned are the best that `ksm-hw tune` chooses from on arm64.

By the estimate of arm64_loops.py: LLVM's tables of a board's core, caches left out, nothing is timed. Of each operator
the first ways of its rule are built, which for convolutions are all tiles; what differs beyond is how a map is cut,
which this estimate hardly sees.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import tvm
from arm64_loops.cores import BOARDS, Core
from arm64_loops.operators import cost_operator, read_operators
from arm64_loops.scheduled_loops import CompileWatch
from peers.catalogue import NETWORKS
from peers.networks import make_bundle
from rich.console import Console
from rich.progress import track
from tvm import tirx

from ksm_hw.artifact.manifest import OperatorEntry
from ksm_hw.compiler.relax import main_functions
from ksm_hw.compiler.tuning.operators import Operator, find_operators
from ksm_hw.compiler.tuning.tuning_records import create_records
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.loops.llvm_tables import by_tables
from tvm_passes.relax.pipeline import loop_pipeline


@dataclasses.dataclass(frozen=True)
class Choice:
    """An operator's ways by the estimate.

    Attributes:
        network, board: of the operator.
        data, result: the shapes of what it reads first and what it writes.
        calls: in an inference.
        ways: how many were built.
        default, best: milliseconds a call of the first way and of the best.
    """

    network: str
    board: str
    data: tuple[int, ...]
    result: tuple[int, ...]
    calls: int
    ways: int
    default: float
    best: float


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, choices, default in (
        ("--models", [*NETWORKS], ["efficientnet-lite0", "mobilenet_v2"]),
        ("--boards", [*BOARDS], ["rpi4", "rpi5"]),
    ):
        about = f"any of {', '.join(choices)}"
        parser.add_argument(option, nargs="+", choices=choices, default=default, metavar="NAME", help=about)
    parser.add_argument("--ways", type=int, default=16, metavar="N", help="of each operator [default: 16]")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each network and board")
    arguments = parser.parse_args()
    if arguments.ways < 1:
        parser.error("--ways takes a number of at least 1")
    return arguments


def milliseconds(operator: Operator, ways: int, target: tvm.target.Target, core: Core, library: Path) -> list[float]:
    """Of the first ways of an operator, on one core; a library is built at a path for that."""
    schedules = itertools.islice(operator.candidates().values(), ways)
    functions = {f"way{number}": one.mod["main"].with_attr("target", target) for number, one in enumerate(schedules)}
    watch = CompileWatch()
    with target, tvm.transform.PassContext(instruments=[watch]):
        module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in functions.items()})
        tirx.build(module, target=by_tables(target), pipeline=loop_pipeline()).write_to_file(str(library))
    entries = {name: OperatorEntry(None, 0, (), "") for name in functions}
    return [cost_operator(one, core).milliseconds for one in read_operators(library, entries, watch)]


def choices(network: str, board: str, ways: int, folder: Path) -> list[Choice]:
    """The operators of a network that have a choice of schedules."""
    target = load_target(board)
    tvm_target = tvm.target.Target(dict(target.tvm))
    functions = main_functions(make_bundle(network, tasks=1, classes=1000), target, 1)
    found = []
    operators = find_operators(functions, create_records(folder, target))
    for operator in track(operators, f"{network}, {board}", console=Console(stderr=True), transient=True):
        data, *_, result = (tuple(map(int, argument.shape)) for argument in operator.arguments)
        times = milliseconds(operator, ways, tvm_target, BOARDS[board][0], folder / "ways.o")
        found.append(Choice(network, board, data, result, operator.calls, len(times), times[0], min(times)))
    return found


def describe(found: list[Choice]) -> str:
    """Markdown: the sum of an inference, and the operators whose best way is faster than the default by 1 % or more."""
    default, best = (sum(one.calls * getattr(one, name) for one in found) for name in ("default", "best"))
    lines = [
        f"{found[0].network}, {found[0].board}: {len(found)} operators, {sum(one.ways for one in found)} ways; the "
        f"defaults {default:.2f} ms an inference on one core, the best of each {best:.2f} ms ({best / default:.1%})"
    ]
    for one in sorted(found, key=lambda one: one.best / one.default):
        if one.best < 0.99 * one.default:
            flow = " → ".join("×".join(map(str, shape[1:])) for shape in (one.data, one.result))
            lines.append(f"  {flow}: {one.default:.3f} ms, the best of {one.ways} ways {one.best:.3f} ms")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    arguments = parse_arguments()
    for network, board in itertools.product(arguments.models, arguments.boards):
        with tempfile.TemporaryDirectory() as folder:
            found = choices(network, board, arguments.ways, Path(folder))
        print(json.dumps([dataclasses.asdict(one) for one in found]) if arguments.json else describe(found), flush=True)


if __name__ == "__main__":
    main()
