"""How near the loops of arm64 artifacts come to the peak of a board's core, without a board.

Compiles networks of the peers benchmark for boards, with the product's own compiler, disassembles the libraries, and
asks llvm-mca how many cycles each operator's loops take. Deterministic: nothing runs on an arm64 core or is timed.
"""

import argparse
import functools
import json
import shlex
import sys
from pathlib import Path

from arm64_loops.cores import BOARDS
from arm64_loops.goals import BOARD
from arm64_loops.operators import compile_operators, cost_operator
from arm64_loops.pages import output_folder, show_page, write_page, write_text
from arm64_loops.peer_wheels import PEERS, peer_loops
from arm64_loops.results import Costs, Peers, Results, joined, read_results, results
from arm64_loops.tables import markdown
from arm64_rewriting import rewriting
from int8_speed import calibrated_bundle
from peers.catalogue import NETWORKS
from peers.networks import make_bundle
from rich.console import Console
from rich.progress import Progress, TaskID

from ksm_hw.artifact.modes import PRECISIONS
from ksm_hw.errors import UserError
from ksm_hw.toolchains.targets import load_target

EXAMPLES = """examples:
  .venv/bin/python benchmarks/arm64_loops.py --peers -o docs
  .venv/bin/python benchmarks/arm64_loops.py --models mobilenet_v2 --boards rpi5 --json
  .venv/bin/python benchmarks/arm64_loops.py --precision int8 --boards rpi5 -o docs
  .venv/bin/python benchmarks/arm64_loops.py --page docs -o docs
  .venv/bin/python benchmarks/arm64_loops.py --page build/first build/second -o docs
"""

WITHOUT_SDOT = ("rpi4",)
FIRST = [*NETWORKS][:5]  # Classical ones; a minute and more each for all boards.


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = f"any of {', '.join(NETWORKS)}; without it the first {len(FIRST)}"
    boards = f"any of {', '.join(BOARDS)}; without it all"
    parser.add_argument("--models", nargs="+", choices=[*NETWORKS], default=FIRST, metavar="NAME", help=models)
    parser.add_argument("--boards", nargs="+", choices=[*BOARDS], metavar="NAME", help=boards)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="int8: of `sdot`, on the boards that have it"
    )
    parser.add_argument("--peers", action="store_true", help="read the loops of other engines' aarch64 wheels too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "-o", "--output", type=output_folder, metavar="FOLDER", help="write arm64_loops.md and .json there too"
    )
    parser.add_argument(
        "--page",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="run nothing: write the page from the JSON there; of several folders, of runs in parts, as one",
    )
    arguments = parser.parse_args()
    try:
        arguments.parts = [read_results(folder / f"{page_name(arguments)}.json") for folder in arguments.page or []]
    except UserError as error:
        parser.error(str(error))
    if arguments.precision == "int8":
        if arguments.peers:
            parser.error("--peers reads loops of float32; leave it out with --precision int8")
        with_sdot = [board for board in BOARDS if board not in WITHOUT_SDOT]
        if without := [board for board in arguments.boards or [] if board not in with_sdot]:
            parser.error(f"{', '.join(without)} has no sdot, which int8 is of; {', '.join(with_sdot)} have it")
        arguments.boards = arguments.boards or with_sdot
    arguments.boards = arguments.boards or [*BOARDS]
    return arguments


def page_name(arguments: argparse.Namespace) -> str:
    """Of the page and the JSON, without an ending."""
    return "arm64_loops" if arguments.precision == "float32" else "arm64_loops_int8"


def measure(arguments: argparse.Namespace) -> str:
    """Looks at all that was asked for; returns it as JSON, which is written after each network: all take hours."""
    costs: Costs = {}
    command = f".venv/bin/python {shlex.join(['benchmarks/arm64_loops.py', *sys.argv[1:]])}"
    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = progress.add_task("", total=len(arguments.models) * len(arguments.boards))
        peers, weights = look_at_peers(arguments, progress, steps) if arguments.peers else ({}, {})
        for network in arguments.models:
            integers = arguments.precision == "int8"
            bundle = calibrated_bundle(network) if integers else make_bundle(network, tasks=1, classes=1000)
            costs[network] = {}
            for board in arguments.boards:
                progress.update(steps, description=f"{network}, {board}")
                operators = compile_operators(bundle, load_target(board), arguments.precision)
                for core in BOARDS[board]:
                    costs[network][board, core] = [cost_operator(operator, core) for operator in operators]
                progress.advance(steps)
            content = as_json(results(costs, peers, weights, command, arguments.precision))
            write_text(arguments.output, f"{page_name(arguments)}.json", content)
    return content


def look_at_peers(arguments: argparse.Namespace, progress: Progress, steps: TaskID) -> tuple[Peers, dict[str, int]]:
    """The loops of other engines, and what rewriting a weight takes on the board of the goals."""
    peers: Peers = {}
    for core in dict.fromkeys(core for board in arguments.boards for core in BOARDS[board]):
        progress.update(steps, description=f"other engines on {core.title}")
        peers[core] = {peer.title: peer_loops(peer, core) for peer in PEERS}
    return peers, rewriting(BOARD, *BOARDS[BOARD]) if BOARD in arguments.boards else {}


def as_json(found: Results) -> str:
    """As it is written."""
    return json.dumps(found, indent=1) + "\n"


def main() -> None:
    """The command."""
    arguments = parse_arguments()
    name = page_name(arguments)
    content = as_json(functools.reduce(joined, arguments.parts)) if arguments.page else measure(arguments)
    page = markdown(json.loads(content))
    write_page(arguments.output, name, page, content)
    show_page(page, content, arguments.json)


if __name__ == "__main__":
    main()
