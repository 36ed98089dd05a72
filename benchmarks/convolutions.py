"""Measures each convolution of a network, as a share of the multiply-adds that the machine can do.

    .venv/bin/python benchmarks/convolutions.py
    .venv/bin/python benchmarks/convolutions.py --network resnet18 --threads 1 --runs 200

Compiles the network untuned for this machine, measures the machine's peak anew, profiles inferences (`ksm-hw profile`),
and prints a line for each shape. Winograd's form does fewer operations than the convolution has: `GFLOP/s` are the
convolution's own operations by the time, and may pass the peak; `busy` counts the operations that are done.
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from peers.catalogue import NETWORKS
from peers.preparation import compile_artifact, prepare_network

from ksm_hw.report.profile import ArtifactProfile, OperatorProfile, profile_artifact


@dataclass(frozen=True)
class Convolution:
    """One shape of a network.

    Attributes:
        name: kernel, stride and what is fused, such as `conv2d 3×3 s2 + add + relu`.
        data, result: shapes [height, width, channels].
        calls: in an inference; `milliseconds` of each.
        gigaflops: of each, as a direct convolution; `done` as it is computed, which Winograd makes fewer.
        peak_share, busy_share: both by the time and the machine's peak.
        bound: what the least possible time depends on, `compute` or `memory`.
    """

    name: str
    data: tuple[int, ...]
    result: tuple[int, ...]
    calls: int
    milliseconds: float
    gigaflops: float
    done: float
    peak_share: float
    busy_share: float
    bound: str


def convolutions(profile: ArtifactProfile) -> list[Convolution]:
    """The convolutions of a profile, as the network has them: large maps first."""
    found = [_convolution(profile, one) for one in profile.operators if "conv2d" in one.name and one.flops is not None]
    return sorted(found, key=lambda one: (-math.prod(one.data[:2]), one.data[2], one.name))


def _convolution(profile: ArtifactProfile, operator: OperatorProfile) -> Convolution:
    data, result = operator.shapes[0][1:], operator.shapes[-1][1:]
    seconds = operator.seconds / operator.calls
    done = direct = operator.flops / operator.calls  # type: ignore[operator]
    if operator.name.startswith("winograd"):
        direct = 2.0 * math.prod(result) * data[2] * 9
    peak = profile.peak.flops_per_second  # type: ignore[union-attr]
    return Convolution(
        name=operator.name.replace("winograd conv2d", "conv2d 3×3 Winograd"),
        data=data,
        result=result,
        calls=operator.calls,
        milliseconds=1e3 * seconds,
        gigaflops=direct / 1e9,
        done=done / 1e9,
        peak_share=direct / seconds / peak,
        busy_share=done / seconds / peak,
        bound=str(operator.bound),
    )


def measure(network: str, threads: int, runs: int) -> ArtifactProfile:
    """Compiles a network of the peers benchmark, and profiles it."""
    folder = prepare_network(network)
    artifact = compile_artifact(folder, "untuned", threads)
    return profile_artifact(artifact, threads=threads, runs=runs, measure_peak=True)


def print_table(profile: ArtifactProfile) -> None:
    """As Markdown."""
    assert profile.peak is not None
    peak, inference = profile.peak.flops_per_second / 1e9, 1e3 * profile.inference.median_seconds
    threads = "1 thread" if profile.threads == 1 else f"{profile.threads} threads"
    print(f"{profile.backbone}, {threads}: {inference:.2f} ms an inference; the machine's peak {peak:.0f} GFLOP/s.\n")
    print("| calls | convolution | data → result | ms a call | GFLOP/s | of peak | busy |")
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for one in convolutions(profile):
        flow = " → ".join("×".join(map(str, shape)) for shape in (one.data, one.result))
        rate = 1e3 * one.gigaflops / one.milliseconds
        shares = f"{one.peak_share:.0%} | {one.busy_share:.0%}"
        print(f"| {one.calls} | {one.name} | {flow} | {one.milliseconds:.3f} | {rate:.1f} | {shares} |")
    print()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*NETWORKS], default="resnet50")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=100, help="inferences in which operators are measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    profiles = [measure(arguments.network, threads, arguments.runs) for threads in arguments.threads]
    if arguments.json:
        print(json.dumps([_as_json(profile) for profile in profiles], indent=2))
        return
    machine = profiles[0].machine
    print(f"{machine.cpu}, {machine.cores} cores, load {machine.load:.1f}\n")
    for profile in profiles:
        print_table(profile)


def _as_json(profile: ArtifactProfile) -> dict[str, Any]:
    rows = [asdict(one) for one in convolutions(profile)]
    return {"machine": asdict(profile.machine), "threads": profile.threads, "convolutions": rows}


if __name__ == "__main__":
    main()
