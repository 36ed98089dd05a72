"""Compiles the first tasks of a bundle with ksm-hw for this machine.

python -m peers.compile_artifact BUNDLE ARTIFACT VARIANT THREADS TASKS TRIALS RECORDS
"""

import dataclasses
import itertools
import sys
from pathlib import Path


def compile_for_threads(
    bundle: Path, artifact: Path, variant: str, threads: int, tasks: int, trials: int, records: Path
) -> None:
    """Compiles for this machine, as `ksm-hw compile --target host` does, but for as many cores as threads will run.

    With `trials` it is tuned before, as `ksm-hw tune` does; `records` is the folder for that. The variant "relay" goes
    through Relay, and "int8" computes in int8.
    """
    # Here: the tuner's processes read this file too, and need none of these.
    from ksm_hw.artifact.modes import IntermediateRepresentation, Precision
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.compiler.tuning.tune import tune
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.toolchains.targets import load_target

    loaded = load_bundle(bundle)
    loaded = dataclasses.replace(loaded, packs=dict(itertools.islice(loaded.packs.items(), tasks)))
    target = load_target("host")
    target = dataclasses.replace(target, tvm={**target.tvm, "num-cores": threads})
    if trials:
        tune(loaded, target, records, trials=trials)
    ir: IntermediateRepresentation = "relay" if variant == "relay" else "relax"
    precision: Precision = "int8" if variant == "int8" else "float32"
    compile_bundle(loaded, target, artifact, precision=precision, tuned=records if trials else None, ir=ir)


if __name__ == "__main__":
    bundle, artifact, variant, threads, tasks, trials, records = sys.argv[1:]
    compile_for_threads(Path(bundle), Path(artifact), variant, int(threads), int(tasks), int(trials), Path(records))
