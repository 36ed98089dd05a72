"""Measures an emulated arm64 board with four cores of which two are slowed to half: loops shared out, and equal parts.

    .venv/bin/python benchmarks/slowed_cores.py --models resnet18 efficientnet-lite0

Needs root, `make emulated-board` and the Debian package qemu-user. Each network is compiled twice for a Raspberry Pi 5,
as ever and without what shares loops out, so that TVM gives each of four threads an equal part. Both artifacts run in
one process of the emulated board, on the same threads, in turns, with all cores alike and with two of them slowed.

A core is a thread of QEMU with a quota of a core's time: 40 % of it, slowed 20 %, on two cores of this machine that
have a fast and a slowed one each, so that there is time left and no thread waits for another. (Beside a neighbour that
takes half of a core, as in `disturbed_cores.py`, the threads on it would take turns of milliseconds, and one that has
nothing to do would make the other faster.) A thread that waits spins, as TVM's do, and spends its quota; but what is
left of one is lost within milliseconds, so that it is no slower for that when its work comes. An emulator's times say
nothing of a board's: what counts is what slowing costs. At best that is 2.00 times the time in equal parts and 1.33
times shared out, of which the one is 1.50 times the other.

On a machine that is seldom quiet --prepare compiles, and --prepared measures what it made.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before NumPy: its thread pool would keep cores busy beside the board.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

from arm64_instructions.counting import BOARD
from machine_facts import facts
from peers.catalogue import NETWORKS
from peers.engine_process import EngineProcess, answering_process
from peers.engines.ksm_hw_engine import artifact_folder
from peers.failures import EngineError
from peers.preparation import prepare_network
from slowed_cores.quotas import check_quotas, slowed_threads
from slowed_cores.ticks import ticking

from ksm_hw.errors import UserError

EMULATOR = "qemu-aarch64"
TARGET, CPU = "rpi5", "cortex-a76"
FAST, SLOWED = 0.4, 0.2  # Shares of a core of this machine.
SPEEDS = {"four alike": (FAST, FAST, FAST, FAST), "two slowed": (FAST, FAST, SLOWED, SLOWED)}
WAYS = ("equal parts", "shared")


def artifacts_of(network: Path) -> list[Path]:
    """Where the artifacts of a network are, in the order of WAYS."""
    return [artifact_folder(network, 4, f"{TARGET}-{way.replace(' ', '-')}") for way in WAYS]


def compile_both(network: Path) -> None:
    """Makes the artifacts of a network."""
    from slowed_cores.equal_parts import equal_parts

    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.toolchains.targets import load_target

    bundle, target = load_bundle(network / "bundle"), load_target(TARGET)
    for artifact, around in zip(artifacts_of(network), (equal_parts(), contextlib.nullcontext()), strict=True):
        with around:
            compile_bundle(bundle, target, artifact)


def board(artifacts: Sequence[Path]) -> contextlib.AbstractContextManager[EngineProcess]:
    """The emulated board with artifacts loaded."""
    python = [EMULATOR, "-cpu", CPU, "-L", str(BOARD / "rootfs"), str(BOARD / "rootfs/usr/bin/python3.11")]
    command = [*python, "-m", "slowed_cores.board", str(len(SPEEDS["four alike"])), *map(str, artifacts)]
    variables = {"PYTHONPATH": str(BOARD / "site"), "BOARD_PYTHON": str(BOARD / "python")}
    return answering_process(command, {**variables, "OPENBLAS_NUM_THREADS": "1"})


def measure(name: str, rounds: int, cores: Sequence[int]) -> list[dict[str, Any]]:
    """The results of a network whose artifacts are there.

    Raises:
        EngineError: the board failed, or logits differ.
        UserError: as `slowed_threads`.
    """
    seconds: dict[tuple[str, str], list[float]] = {(speeds, way): [] for speeds in SPEEDS for way in WAYS}
    logits = set()
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(board(artifacts_of(prepare_network(name))))
        if process.facts["equal_parts"] != [way == "equal parts" for way in WAYS]:
            raise EngineError(
                f"{NETWORKS[name]}: its artifacts do not give out loops as they should. Compile them again."
            )
        threads = stack.enter_context(slowed_threads(process.facts["threads"]))
        stack.enter_context(ticking(cores))
        for place, thread in enumerate(process.facts["threads"]):
            os.sched_setaffinity(thread, {cores[place % 2]})
        for number in range(rounds):
            print(f"{NETWORKS[name]}: round {number + 1} of {rounds}", file=sys.stderr)
            turns = [*seconds]
            for speeds, way in turns[number % len(turns) :] + turns[: number % len(turns)]:
                for thread, share in zip(threads, SPEEDS[speeds], strict=True):
                    thread.allow(share)
                answer = process.ask(artifact=WAYS.index(way))
                seconds[speeds, way].append(answer["seconds"])
                logits.add(answer["logits"])
    if len(logits) != 1:
        raise EngineError(f"{NETWORKS[name]}: logits of the same image differ")
    return [
        {"network": NETWORKS[name], "cores": speeds, "loops": way, "seconds": found}
        for (speeds, way), found in seconds.items()
    ]


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A table with a line for each network and way to give out loops."""
    found = {(one["network"], one["loops"], one["cores"]): one["seconds"] for one in results}
    lines = ["| network | loops | four alike, s | two slowed, s | slowing costs | equal parts / shared, slowed |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for network in dict.fromkeys(one["network"] for one in results):
        for way in WAYS:
            both = [found[network, way, speeds] for speeds in SPEEDS]
            alike, slowed = map(statistics.median, both)
            cells = [f"{statistics.median(one):.2f} ({min(one):.2f})" for one in both]
            gain = f"{statistics.median(found[network, WAYS[0], 'two slowed']) / slowed:.2f}" if way == "shared" else ""
            lines.append(f"| {network} | {way} | {' | '.join(cells)} | {slowed / alike:.2f} | {gain} |")
    return "\n".join(lines)


def check_machine() -> list[int]:
    """Two cores of this machine, which has what the board takes.

    Raises:
        UserError: it has not.
    """
    check_quotas()
    if not (BOARD / "python").exists():
        raise UserError("There is no emulated arm64 board; `make emulated-board` makes it (as root).")
    if shutil.which(EMULATOR) is None:
        raise UserError(f"There is no {EMULATOR}. Install the Debian package qemu-user.")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("The board's four cores take two of this machine, and this process may use one.")
    return cores


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ["resnet18", "efficientnet-lite0", "mobilenet_v2"]
    about = f"any of {', '.join(NETWORKS)}; without it {', '.join(default)}"
    parser.add_argument("--models", nargs="+", choices=[*NETWORKS], default=default, metavar="NAME", help=about)
    parser.add_argument("--rounds", type=int, default=5)
    prepared = parser.add_mutually_exclusive_group()
    prepared.add_argument("--prepare", action="store_true", help="make and compile what is measured; measure nothing")
    prepared.add_argument("--prepared", action="store_true", help="measure what --prepare made")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """The command, on what was asked for."""
    if arguments.rounds < 1:
        raise UserError(f"--rounds takes 1 or more, found {arguments.rounds}.")
    cores = check_machine()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # By `timeout`: as Ctrl-C, which leaves no groups behind.
    for name in () if arguments.prepared else arguments.models:
        compile_both(prepare_network(name))
    if arguments.prepare:
        return
    results = [one for name in arguments.models for one in measure(name, arguments.rounds, cores)]
    found = facts()
    found["emulator"] = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    if arguments.json:
        print(json.dumps({**found, "results": results}, indent=1))
        return
    versions = f"{found['emulator']}, ksm-hw {found['ksm_hw']}, TVM {found['tvm']}"
    machine = found["machine"]
    print(f"{machine['cpu']}, load at the end {machine['load']:.1f}; {versions}; medians (minima)\n")
    print(markdown(results))


def main() -> None:
    """The command; exits with 2 where it cannot be done."""
    try:
        run(parse_arguments())
    except (EngineError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
