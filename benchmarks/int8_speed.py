"""How much faster int8 is than float32: the same networks compiled in both, measured in turns in one process.

    .venv/bin/python benchmarks/int8_speed.py
    .venv/bin/python benchmarks/int8_speed.py --models mobilenet_v2 --threads 1 --rounds 20 --mcpu haswell
    .venv/bin/python benchmarks/int8_speed.py --artifacts FOLDER --prepare; the same without it measures them

The machine may be shared: a ratio is the median of the ratios of rounds, in each of which both run next to each other.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from peers.networks import make_bundle

from ksm_hw.artifact.modes import PRECISIONS
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import CompileTarget, load_target

NETWORKS = ("resnet50", "resnet18", "vgg16_bn", "mobilenet_v2", "efficientnet-lite0", "shufflenet_v2_x1_0")


@dataclass(frozen=True)
class Speed:
    """One network with some threads; milliseconds an image."""

    network: str
    threads: int
    float32: float
    int8: float
    least_float32: float
    least_int8: float
    ratio: float


def calibrated_bundle(network: str) -> Bundle:
    """A network with one task, whose ranges are those of random images."""
    bundle = make_bundle(network, tasks=1, classes=1000)
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
    (pack,) = bundle.packs.values()
    pack = dataclasses.replace(pack, calibration=calibrate(bundle, pack, [images], "minmax"))
    return dataclasses.replace(bundle, packs={pack.task: pack})


def target_of(mcpu: str | None) -> CompileTarget:
    """This machine, or another CPU of its class."""
    target = load_target("host")
    return target if mcpu is None else dataclasses.replace(target, tvm={**target.tvm, "mcpu": mcpu})


def compile_both(network: str, target: CompileTarget, folder: Path) -> dict[str, Path]:
    """The artifacts in the folder, by precision; compiled unless they are there."""
    artifacts = {precision: folder / f"{network}-{precision}" for precision in PRECISIONS}
    missing = [precision for precision, artifact in artifacts.items() if not artifact.exists()]
    bundle = calibrated_bundle(network) if missing else None
    for precision in missing:
        assert bundle is not None
        compile_bundle(bundle, target, artifacts[precision], precision=precision)
    return artifacts


def measure(network: str, artifacts: dict[str, Path], threads: int, rounds: int) -> Speed:
    """Runs both in turns."""
    float32, int8 = rounds_in_turns([artifacts[precision] for precision in PRECISIONS], threads, rounds)
    ratio = statistics.median(one / other for one, other in zip(float32, int8, strict=True))
    medians = (1e3 * statistics.median(values) for values in (float32, int8))
    return Speed(network, threads, *medians, 1e3 * min(float32), 1e3 * min(int8), ratio)


def rounds_in_turns(artifacts: Sequence[Path], threads: int, rounds: int) -> list[list[float]]:
    """Seconds of an inference in each round, of each artifact."""
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224), np.float32)
    sessions = [Session.load(artifact, threads=threads) for artifact in artifacts]
    seconds: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.switch(next(iter(session.manifest.tasks)))
        session.run(image)
    for _ in range(rounds):
        for session, own in zip(sessions, seconds, strict=True):
            session.measure_run(2)
            own.append(statistics.median(session.measure_run(8)))
    return seconds


def row(one: Speed) -> str:
    """Of the table."""
    times = f"{one.float32:.2f} ({one.least_float32:.2f}) | {one.int8:.2f} ({one.least_int8:.2f})"
    return f"| {one.network} | {one.threads} | {times} | {one.ratio:.2f} |"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="1 or more")
    parser.add_argument("--rounds", type=int, default=20, help="1 or more")
    parser.add_argument("--mcpu", help="compile for this CPU instead of the host's, by LLVM's name")
    parser.add_argument("--artifacts", type=Path, help="folder in which compiled networks stay; those there are taken")
    parser.add_argument("--prepare", action="store_true", help="compile into --artifacts, and measure nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.prepare and arguments.artifacts is None:
        parser.error("--prepare needs --artifacts FOLDER.")
    speeds = []
    if not arguments.json and not arguments.prepare:
        print("| network | threads | float32 ms (least) | int8 ms (least) | float32 : int8 |")
        print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.models:
            artifacts = compile_both(network, target_of(arguments.mcpu), arguments.artifacts or Path(folder))
            for threads in () if arguments.prepare else arguments.threads:
                speeds.append(measure(network, artifacts, threads, arguments.rounds))
                if not arguments.json:
                    print(row(speeds[-1]), flush=True)
    if arguments.prepare:
        return
    if arguments.json:
        print(json.dumps([asdict(speed) for speed in speeds], indent=1))
        return
    for threads in arguments.threads:
        mean = statistics.geometric_mean(one.ratio for one in speeds if one.threads == threads)
        print(f"\nGeometric mean, threads {threads}: {mean:.2f}")


if __name__ == "__main__":
    main()
