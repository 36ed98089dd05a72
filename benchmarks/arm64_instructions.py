"""How many instructions an inference takes on an emulated arm64 core: ksm-hw, and other engines' aarch64 wheels.

Needs `make emulated-board`, the Debian package qemu-user and a C compiler. The networks and what each engine reads are
those of the peers benchmark: under build/peers, made once (minutes, gigabytes). Nothing is timed, no quiet machine is
needed; an inference takes half a minute to two under emulation.
"""

import argparse
import dataclasses
import itertools
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from arm64_instructions.counting import CORES, Count, EmulatedCore, build_plugin, count_inference, make_root
from arm64_instructions.tables import Counts, counts_as_json, markdown
from arm64_loops.pages import output_folder, show_page, write_page
from arm64_loops.peer_wheels import PEERS, requirement_of
from peers.catalogue import ENGINES, NETWORKS, Engine
from peers.engines.ksm_hw_engine import artifact_folder
from peers.preparation import prepare_engine, prepare_network
from rich.console import Console
from rich.progress import Progress

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.toolchains.targets import load_target

EXAMPLES = """examples:
  .venv/bin/python benchmarks/arm64_instructions.py -o docs
  .venv/bin/python benchmarks/arm64_instructions.py --models mobilenet_v2 --cores cortex-a76 --engines ksm-hw --json
"""

COUNTED = tuple(engine for engine in ENGINES if engine.name in ("ksm-hw", "onnxruntime", "litert"))
DEFAULT_NETWORKS = ("mobilenet_v2", "efficientnet-lite0", "resnet18")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores, engines = [core.cpu for core in CORES], [engine.name for engine in COUNTED]
    for option, choices, default in (
        ("--models", [*NETWORKS], DEFAULT_NETWORKS),
        ("--cores", cores, cores),
        ("--engines", engines, engines),
    ):
        about = f"any of {', '.join(choices)}; without it {', '.join(default) if default != choices else 'all'}"
        parser.add_argument(option, nargs="+", choices=choices, default=default, metavar="NAME", help=about)
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument(
        "-o", "--output", type=output_folder, metavar="FOLDER", help="write arm64_instructions.md and .json"
    )
    return parser.parse_args()


def count(engine: Engine, core: EmulatedCore, backbone: str, root: Path, plugin: Path) -> Count:
    """Makes what the engine reads, ksm-hw's artifact always anew, and counts an inference.

    Raises:
        EngineError: that cannot be made.
        RuntimeError: the engine failed.
    """
    network = prepare_network(backbone)
    (task,) = (folder.parent for folder in network.glob("*/network.pt2"))
    if not engine.ours:
        prepare_engine(engine, task)
        return count_inference(engine, core, engine.variant, task, root, plugin)
    target = load_target(core.target)
    # For as many cores as threads will run, as the peers benchmark does it.
    target = dataclasses.replace(target, tvm={**target.tvm, "num-cores": 1})
    compile_bundle(load_bundle(network / "bundle"), target, artifact_folder(network, 1, core.target))
    return count_inference(engine, core, core.target, task, root, plugin)


def write(counts: Counts, engines: Sequence[Engine], folder: Path | None) -> tuple[str, str]:
    """Writes what is counted so far as Markdown and JSON, into a folder if there is one; returns both."""
    environments = {engine.environment for engine in engines}
    wheels = ", ".join(requirement_of(peer) for peer in PEERS if peer.environment in environments)
    command = shlex.join(["benchmarks/arm64_instructions.py", *sys.argv[1:]])
    page = markdown(counts, wheels, f".venv/bin/python {command}")
    content = json.dumps(counts_as_json(counts), indent=1) + "\n"
    write_page(folder, "arm64_instructions", page, content)
    return page, content


def main() -> None:
    """The command."""
    arguments = parse_arguments()
    engines = [engine for engine in COUNTED if engine.name in arguments.engines]
    cores = [core for core in CORES if core.cpu in arguments.cores]
    counts: Counts = {}
    with tempfile.TemporaryDirectory() as name, Progress(console=Console(stderr=True), transient=True) as progress:
        plugin = build_plugin(Path(name))
        roots = {core: make_root(core, Path(name)) for core in cores}
        steps = progress.add_task("", total=len(arguments.models) * len(cores) * len(engines))
        for network, core in itertools.product(arguments.models, cores):
            found = []
            for engine in engines:
                progress.update(steps, description=f"{network}, {core.title}, {engine.title}")
                found.append((engine, count(engine, core, network, roots[core], plugin)))
                progress.advance(steps)
            counts[network, core] = found
            page, content = write(counts, engines, arguments.output)  # Each time: it takes long.
    show_page(page, content, arguments.json)


if __name__ == "__main__":
    main()
