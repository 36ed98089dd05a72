"""Compiles the first tasks of a bundle with ksm-hw for this machine.

python -m peers.compile_artifact BUNDLE ARTIFACT THREADS TASKS [TUNED]
"""

import dataclasses
import itertools
import sys
from pathlib import Path

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.targets import load_target
from ksm_hw.masks.bundle import load_bundle


def compile_for_threads(bundle: Path, artifact: Path, threads: int, tasks: int, tuned: Path | None) -> None:
    """Compiles for this machine, as `ksm-hw compile --target host` does, but for as many cores as threads will run."""
    loaded = load_bundle(bundle)
    loaded = dataclasses.replace(loaded, packs=dict(itertools.islice(loaded.packs.items(), tasks)))
    target = load_target("host")
    target = dataclasses.replace(target, tvm={**target.tvm, "num-cores": threads})
    compile_bundle(loaded, target, artifact, tuned=tuned)


if __name__ == "__main__":
    given = sys.argv[1:]
    compile_for_threads(
        Path(given[0]), Path(given[1]), int(given[2]), int(given[3]), Path(given[4]) if len(given) > 4 else None
    )
