"""What tuning gains in int8: the same networks untuned and tuned, measured in turns in one process.

    .venv/bin/python benchmarks/int8_tuning.py --artifacts FOLDER --trials 600 --prepare
    .venv/bin/python benchmarks/int8_tuning.py --artifacts FOLDER

The first command tunes and compiles, and goes on where it was stopped; the second measures what is there.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path


def prepare(network: str, threads: int, trials: int, folder: Path) -> None:
    """Tunes and compiles a network for so many cores of this machine."""
    from int8_speed import calibrated_bundle

    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.compiler.tuning.tune import tune
    from ksm_hw.toolchains.targets import load_target

    target = load_target("host")
    target = dataclasses.replace(target, tvm={**target.tvm, "num-cores": threads})
    bundle = calibrated_bundle(network)
    records = folder / f"{network}-{threads}-records"
    result = tune(bundle, target, records, trials=trials, precision="int8")
    print(f"{network}: {result}", flush=True)
    for artifact, tuned in zip(artifacts_of(network, threads, folder), (None, records), strict=True):
        compile_bundle(bundle, target, artifact, precision="int8", tuned=tuned)


def artifacts_of(network: str, threads: int, folder: Path) -> tuple[Path, Path]:
    """Untuned and tuned."""
    return folder / f"{network}-{threads}-untuned", folder / f"{network}-{threads}-tuned"


def main() -> None:
    """The command."""
    from int8_speed import NETWORKS, rounds_in_turns

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NETWORKS, default=["mobilenet_v2", "resnet18"], metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="tuned, compiled and measured for; default: 1")
    parser.add_argument("--rounds", type=int, default=20, help="1 or more; default: 20")
    parser.add_argument("--artifacts", type=Path, required=True, help="folder of records and compiled networks")
    parser.add_argument("--trials", type=int, default=600, help="of each network; default: 600")
    parser.add_argument("--prepare", action="store_true", help="tune and compile, and measure nothing")
    arguments = parser.parse_args()
    if arguments.prepare:
        for network in arguments.models:
            prepare(network, arguments.threads, arguments.trials, arguments.artifacts)
        return
    print("| network | threads | untuned ms (least) | tuned ms (least) | untuned : tuned |")
    print("| --- | ---: | ---: | ---: | ---: |", flush=True)
    for network in arguments.models:
        artifacts = artifacts_of(network, arguments.threads, arguments.artifacts)
        untuned, tuned = rounds_in_turns(artifacts, arguments.threads, arguments.rounds)
        ratio = statistics.median(one / other for one, other in zip(untuned, tuned, strict=True))
        times = (f"{1e3 * statistics.median(one):.2f} ({1e3 * min(one):.2f})" for one in (untuned, tuned))
        print(f"| {network} | {arguments.threads} | {' | '.join(times)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
