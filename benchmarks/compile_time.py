"""Measures how long commands of two checkouts take: `compile` for several networks and targets, and `run`.

    git worktree add build/before COMMIT
    .venv/bin/python benchmarks/compile_time.py --before build/before

Both sides take turns, each command in a process of its own, from the start of Python to its end. What is compiled are
the tasks that ship (EfficientNet-Lite0), and for other networks two tasks with random kernel-wise masks. `run`
classifies an image with one task of the artifact that its own side compiled for this machine.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = "efficientnet-lite0"
SCALED_SHARE = 0.3  # Of the kernels under a random mask, as under learned ones.
RUN = "run"  # In the place of a target.


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to measure: a network, and a target for which it is compiled or `RUN`."""

    network: str
    target: str


def arguments_of(command: Command, bundles: Path, artifacts: Path) -> list[str]:
    """What stands behind `ksm-hw`; artifacts of one side lie in a folder, by network and target."""
    if command.target == RUN:
        task, *_ = json.loads((artifacts / command.network / "host" / "bundle.json").read_text())["tasks"]
        return ["run", str(artifacts / command.network / "host"), "--task", task, str(bundles / "image.png")]
    bundle = [] if command.network == SHIPPED else ["--bundle", str(bundles / command.network)]
    output = str(artifacts / command.network / command.target)
    return ["compile", "--target", command.target, "--task", "all", *bundle, "-o", output]


def seconds(checkout: Path, arguments: list[str]) -> float:
    """Seconds of a command of a checkout."""
    variables = {**os.environ, "PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "ksm_hw.cli", *arguments]
    # Python looks for the module in the working folder first.
    subprocess.run(command, cwd=checkout, env=variables, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(before: Path, commands: list[Command], rounds: int, folder: Path) -> dict[Command, dict[str, list[float]]]:
    """The seconds of every command of both sides."""
    sides = {"before": before, "now": REPOSITORY}
    taken: dict[Command, dict[str, list[float]]] = {command: {side: [] for side in sides} for command in commands}
    for command, _, side in itertools.product(commands, range(rounds), sides):
        found = seconds(sides[side], arguments_of(command, folder / "bundles", folder / side))
        taken[command][side].append(found)
        print(f"{command.network} {command.target} {side}: {found:.1f} s", file=sys.stderr)
    return taken


def write_inputs(networks: list[str], folder: Path) -> None:
    """A bundle for each network without tasks that ship, and an image."""
    import numpy as np
    from peers.networks import make_bundle
    from PIL import Image

    from ksm_hw.masks.bundle import save_bundle

    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)).save(folder / "image.png")
    for network in networks:
        if network != SHIPPED:
            (folder / network).mkdir()
            save_bundle(make_bundle(network, tasks=2, classes=10, scaled_share=SCALED_SHARE), folder / network)


def markdown(taken: dict[Command, dict[str, list[float]]]) -> str:
    """A table of medians, with minima in brackets."""
    lines = ["| network | command | before, s | now, s | now : before |", "| --- | --- | ---: | ---: | ---: |"]
    for command, sides in taken.items():
        before, now = (statistics.median(sides[side]) for side in ("before", "now"))
        cells = [f"{statistics.median(values):.1f} ({min(values):.1f})" for values in sides.values()]
        what = "run" if command.target == RUN else f"compile --target {command.target}"
        lines.append(f"| {command.network} | {what} | {' | '.join(cells)} | {now / before:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--networks", nargs="+", default=[SHIPPED, "densenet121", "inception_v3"])
    parser.add_argument("--targets", nargs="+", default=["host", "arm64", RUN], help=f"or {RUN}, after host")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    commands = [Command(*pair) for pair in itertools.product(arguments.networks, arguments.targets)]
    with tempfile.TemporaryDirectory(prefix="compile-time-") as temporary:
        write_inputs(arguments.networks, Path(temporary) / "bundles")
        taken = measure(arguments.before.resolve(), commands, arguments.rounds, Path(temporary))
    from machine_facts import facts

    if arguments.json:
        results = [{**dataclasses.asdict(command), "seconds": sides} for command, sides in taken.items()]
        print(json.dumps({**facts(), "results": results}, indent=2))
        return
    machine = facts()["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}; medians (minima)\n")
    print(markdown(taken))


if __name__ == "__main__":
    main()
