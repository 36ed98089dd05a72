"""Measures what the second thread gains while a neighbour takes half of one of two cores: ksm-hw beside other engines.

    git worktree add build/before COMMIT
    .venv/bin/python benchmarks/disturbed_cores.py --before build/before

Every engine has a process for one thread and one for two, and all take turns in rounds, each first undisturbed and
then beside the neighbour. That is kept to the second of two cores, and all others may use both. `half` works and rests
by turns of 0.2 ms, in real time where it may, so that the core is half as fast for all else; `busy` works all the time,
and the system gives it half of the core, some milliseconds at a time. With --before another checkout of ksm-hw is
measured too, with artifacts of its own; with --neighbours and none of them, two checkouts are compared undisturbed, by
--cpu in the code of another CPU:

    .venv/bin/python benchmarks/disturbed_cores.py --before build/before --neighbours --cpu haswell

On a machine that is seldom quiet --prepare compiles, and --prepared measures what it made.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Before NumPy: its thread pool would keep the second core busy beside the engines.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

from machine_facts import facts
from peers.catalogue import ENGINES, NETWORKS, Engine
from peers.engine_process import EngineProcess, serving_process
from peers.failures import EngineError
from peers.preparation import TASK, compile_artifact, prepare_engine, prepare_network

SECONDS_A_TURN = 0.5
NEIGHBOURS = ("half", "busy")
TURN = 2e-4  # Seconds that `half` works, and rests.
THREADS = (1, 2)


@dataclass
class Measured:
    """An engine with a number of threads on a network.

    Attributes:
        title: of the engine.
        threads: that it has.
        process: in which it runs.
        seconds: of each inference, by the neighbour, as `neighbour` calls it.
    """

    title: str
    threads: int
    process: EngineProcess
    seconds: dict[str, list[float]] = field(default_factory=dict)


@contextlib.contextmanager
def neighbour(kind: str, core: int) -> Iterator[str]:
    """A process that takes half of a core, at work until the block ends; none of kind "". Gives what it is called.

    Raises:
        EngineError: it did not begin, or ended before the block did.
    """
    if not kind:
        yield "none"
        return
    command = [sys.executable, __file__, "--be", kind, "--core", str(core)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        policy = process.stdout.readline().strip()  # Its imports take as long as a turn.
        if policy:
            yield f"{kind}, {policy}"
        if not policy or process.poll() is not None:
            raise EngineError(f"the neighbour '{kind}' ended with status {process.wait()}")
    finally:
        process.kill()
        process.communicate()


def be_neighbour(kind: str, core: int) -> None:
    """Takes half of a core, for good, and first prints by which policy the system schedules it."""
    os.sched_setaffinity(0, {core})
    if kind == "half":
        # Otherwise it would get its turns late.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("in real time" if os.sched_getscheduler(0) == os.SCHED_FIFO else "not in real time", flush=True)
    while True:
        end = time.perf_counter() + TURN
        while time.perf_counter() < end or kind == "busy":
            pass
        time.sleep(TURN)


@dataclass(frozen=True)
class Side:
    """An engine, and where ksm-hw compiles.

    Attributes:
        engine: that runs.
        checkout: another one of ksm-hw, which compiles and runs.
        cpu: for which it compiles, if not for this machine's.
    """

    engine: Engine
    checkout: Path | None = None
    cpu: str = ""

    def prepare(self, network: Path) -> None:
        """Makes what is measured of a network."""
        prepare_engine(self.engine, network / TASK)
        for threads in THREADS if self.engine.ours else ():
            compile_artifact(network, self.engine.variant, threads, checkout=self.checkout, cpu=self.cpu)

    def start(self, network: Path, stack: contextlib.ExitStack) -> Iterator[Measured]:
        """The engine's processes on a network, one for each number of threads."""
        for threads in THREADS:
            process = serving_process(self.engine, network / TASK, threads)
            yield Measured(self.engine.title, threads, stack.enter_context(process))


def sides(engines: list[str], before: Path | None, cpu: str) -> list[Side]:
    """What is measured; artifacts for another CPU, or of another checkout, have a name of their own."""
    found = []
    for engine in (one for one in ENGINES if one.name in engines):
        if engine.ours and cpu:
            engine = dataclasses.replace(engine, variant=f"{engine.variant}-{cpu}")
        found.append(Side(engine, cpu=cpu))
        if before is not None and engine.name == "ksm-hw":
            variables = {**engine.variables, "PYTHONPATH": str(before)}
            names = {"title": f"{engine.title}, before", "variant": f"{engine.variant}-before"}
            found.append(Side(dataclasses.replace(engine, variables=variables, **names), before, cpu))
    return found


def measure(arguments: argparse.Namespace, name: str, cores: list[int]) -> list[dict[str, Any]]:
    """The results of a network."""
    network = prepare_network(name)
    compared = sides(arguments.engines, arguments.before and arguments.before.resolve(), arguments.cpu)
    for side in () if arguments.prepared else compared:
        side.prepare(network)
    if arguments.prepare:
        return []
    with contextlib.ExitStack() as stack:
        running = [one for side in compared for one in side.start(network, stack)]
        for number in range(arguments.rounds):
            print(f"{NETWORKS[name]}: round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for one in running[number % len(running) :] + running[: number % len(running)]:
                for kind in ("", *arguments.neighbours):
                    with neighbour(kind, cores[1]) as called:
                        seconds = one.process.ask(seconds=SECONDS_A_TURN)["seconds"]
                    one.seconds.setdefault(called, []).extend(seconds)
    return [
        {
            "network": NETWORKS[name],
            "engine": one.title,
            "version": one.process.facts["version"],
            "threads": one.threads,
            "neighbour": kind,
            "runs": len(seconds),
            "least_ms": min(seconds) * 1e3,
            "median_ms": statistics.median(seconds) * 1e3,
        }
        for one in running
        for kind, seconds in one.seconds.items()
    ]


def markdown(results: list[dict[str, Any]]) -> str:
    """A table with a line for each network, engine and neighbour."""
    lines = [
        "| network | neighbour | engine | 1 thread, ms | 2 threads, ms | what the second gains |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    cells = {(one["network"], one["neighbour"], one["engine"], one["threads"]): one for one in results}
    for network, kind, engine in sorted(dict.fromkeys(key[:3] for key in cells)):
        one, two = (cells[network, kind, engine, threads] for threads in THREADS)
        times = [f"{cell['median_ms']:.1f} ({cell['least_ms']:.1f})" for cell in (one, two)]
        gains = [one[which] / two[which] for which in ("median_ms", "least_ms")]
        gain = f"{gains[0]:.2f} ({gains[1]:.2f})"
        lines.append(f"| {network} | {kind} | {engine} {one['version']} | {' | '.join([*times, gain])} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [engine.name for engine in ENGINES]
    parser.add_argument("--models", nargs="+", choices=[*NETWORKS], default=[*NETWORKS], metavar="NAME")
    parser.add_argument("--engines", nargs="+", choices=names, default=["ksm-hw", "onnxruntime"], metavar="NAME")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout of ksm-hw")
    parser.add_argument("--cpu", default="", metavar="NAME", help="compile ksm-hw for this CPU, by LLVM's name")
    parser.add_argument("--neighbours", nargs="*", choices=NEIGHBOURS, default=[*NEIGHBOURS], metavar="KIND")
    parser.add_argument("--rounds", type=int, default=8)
    prepared = parser.add_mutually_exclusive_group()
    prepared.add_argument("--prepare", action="store_true", help="make and compile what is measured; measure nothing")
    prepared.add_argument("--prepared", action="store_true", help="measure what --prepare made")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--be", choices=NEIGHBOURS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """The command."""
    arguments = parse_arguments()
    if arguments.be:
        be_neighbour(arguments.be, arguments.core)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("error: it takes two cores.")
    os.sched_setaffinity(0, cores)  # And all that it starts.
    results = [one for name in arguments.models for one in measure(arguments, name, cores)]
    if arguments.prepare:
        return
    found = facts()
    if arguments.json:
        print(json.dumps({**found, "results": results}, indent=1))
        return
    machine = found["machine"]
    print(f"{machine['cpu']}, two cores, load at the end {machine['load']:.1f}; medians (minima)\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
