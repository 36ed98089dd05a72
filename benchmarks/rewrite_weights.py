"""Measures a switch between tasks against a plain copy of as many bytes as the live weights.

    python benchmarks/rewrite_weights.py

Compiles the shipped tasks (EfficientNet-Lite0) and two tasks with random kernel-wise masks over ResNet-50 for this
machine, with `--fold switch`. In a process of its own for each network and number of threads, switches and copies take
turns, each behind an inference, as in use, for else the caches would hold nothing but weights. The copy runs in TVM's
loops too, as many threads sharing one memcpy. A switch is what `Session.switch` takes, Python included; rewriting is
the compiled function in it. Page faults are those of all measured switches: memory that the system had to find.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine_facts import facts

REPOSITORY = Path(__file__).resolve().parent.parent
NETWORKS = ("efficientnet-lite0", "resnet50")
SCALED_SHARE = 0.3  # Of the kernels under a random mask, as under learned ones.
COPIED_AT_ONCE = 1 << 16  # Bytes.


def compile_network(network: str, folder: Path, precision: Any) -> None:
    """Compiles two tasks or more of a network."""
    from peers.networks import make_bundle

    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import load_target

    if network == "efficientnet-lite0":
        bundle = load_bundle(shipped_bundle())
    else:
        bundle = make_bundle(network, tasks=2, classes=10, scaled_share=SCALED_SHARE)
    compile_bundle(bundle, load_target("host"), folder, precision=precision)


def measure(artifact: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of switches, of the rewriting in them, and of copies, in turns, in this process."""
    from ksm_hw.runtime.tvm_import import hide_torch

    hide_torch()
    import resource

    from ksm_hw.runtime.session import Session

    session = Session.load(artifact, threads=threads)
    copy = parallel_copy(session.weights_bytes, threads)
    seconds: dict[str, list[float]] = {"switch": [], "rewrite": [], "copy": []}
    rewritten = session._rewrite

    def rewrite(task: str) -> list[Any]:
        start = time.perf_counter()
        weights = rewritten(task)
        seconds["rewrite"].append(time.perf_counter() - start)
        return weights

    session._rewrite = rewrite  # type: ignore[method-assign]

    def run(task: str) -> tuple[float, int]:
        session.measure_run(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return session.switch(task), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults = 0
    for number in range(rounds + 2):
        for task in reversed(session.tasks):
            taken, found = run(task)
            session.measure_run(1)
            seconds["switch"].append(taken)
            seconds["copy"].append(copy())
            if number < 2:  # Warm-up.
                seconds = {name: [] for name in seconds}
            else:
                faults += found
    return {"bytes": session.weights_bytes, "seconds": seconds, "page_faults": faults, "facts": facts()}


def parallel_copy(size: int, threads: int) -> Callable[[], float]:
    """A function that copies so many bytes in TVM's threads and returns the seconds."""
    import numpy as np
    import tvm
    from tvm.script import tirx as T

    parts = -(-size // COPIED_AT_ONCE)
    total = parts * COPIED_AT_ONCE

    @T.prim_func
    def copy(source: T.Buffer((total,), "uint8"), destination: T.Buffer((total,), "uint8")) -> None:  # type: ignore[valid-type]
        T.func_attr({"global_symbol": "copy", "tirx.is_scheduled": True})
        for part in T.parallel(parts):
            T.evaluate(
                T.call_extern(
                    "handle",
                    "memcpy",
                    T.address_of(destination[part * COPIED_AT_ONCE]),
                    T.address_of(source[part * COPIED_AT_ONCE]),
                    T.min(T.int64(COPIED_AT_ONCE), T.int64(size) - T.Cast("int64", part) * COPIED_AT_ONCE),
                )
            )

    compiled = tvm.compile(tvm.IRModule({"copy": copy}), target=tvm.target.Target("llvm"))["copy"]
    # Both are written to: memory that never was is one page of zeros.
    source, destination = (tvm.runtime.tensor(np.full(total, value, np.uint8)) for value in (1, 2))

    def run() -> float:
        start = time.perf_counter()
        compiled(source, destination)
        return time.perf_counter() - start

    run()
    assert (destination.numpy()[:size] == 1).all()
    return run


def summary(network: str, threads: int, measured: dict[str, Any]) -> dict[str, Any]:
    """Medians and minima in milliseconds, and the ratios of a switch and of the rewriting to a copy."""
    seconds = measured["seconds"]
    row: dict[str, Any] = {"network": network, "threads": threads, "megabytes": measured["bytes"] / 1e6}
    for name, values in seconds.items():
        row[name] = {"median": 1e3 * statistics.median(values), "minimum": 1e3 * min(values), "count": len(values)}
    for name in ("switch", "rewrite"):
        row[f"{name}_against_copy"] = {key: row[name][key] / row["copy"][key] for key in ("median", "minimum")}
    return {**row, "page_faults": measured["page_faults"]}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Medians, and minima in brackets."""
    print(f"{'network':20} {'threads':>7} {'MB':>6}", end="")
    print(
        "".join(f"{title:>18}" for title in ("copy ms", "rewrite ms", "switch ms", "rewrite : copy", "switch : copy"))
    )
    for row in rows:
        print(f"{row['network']:20} {row['threads']:7} {row['megabytes']:6.1f}", end="")
        for name in ("copy", "rewrite", "switch", "rewrite_against_copy", "switch_against_copy"):
            print(f"{row[name]['median']:10.2f} ({row[name]['minimum']:5.2f})", end="")
        print(f"   {row['page_faults']} page faults in {row['switch']['count']} switches")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument(
        "--precision", choices=("float32", "int8"), default="float32", help="int8: of efficientnet-lite0, with ranges"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--rounds", type=int, default=20, help="of one switch to each task, after two that do not count"
    )
    parser.add_argument("--artifacts", type=Path, help="folder for what is compiled; what is there is taken")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.threads[0], arguments.rounds)))
        return
    rows, measured = [], {}
    with tempfile.TemporaryDirectory(prefix="rewrite-weights-") as temporary:
        for network in arguments.networks:
            folder = (arguments.artifacts or Path(temporary)) / f"{network}-{arguments.precision}"
            if not folder.exists():
                compile_network(network, folder, arguments.precision)
            for threads in arguments.threads:
                command = [sys.executable, __file__, "--measure", folder, "--rounds", str(arguments.rounds)]
                process = subprocess.run([*command, "--threads", str(threads)], stdout=subprocess.PIPE, check=True)
                measured = json.loads(process.stdout)
                rows.append(summary(network, threads, measured))
    if arguments.json:
        print(json.dumps({**measured["facts"], "results": rows}, indent=2))
        return
    machine = measured["facts"]["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f}; TVM {measured['facts']['tvm']}")
    print_table(rows)


if __name__ == "__main__":
    main()
