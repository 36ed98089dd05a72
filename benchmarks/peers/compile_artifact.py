"""Compiles the first tasks of a bundle with ksm-hw for this machine.

python -m peers.compile_artifact BUNDLE ARTIFACT VARIANT THREADS TASKS TRIALS RECORDS [CPU]

Older checkouts of ksm-hw run this file too (`disturbed_cores.py --before`): it asks for nothing that they lack.
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any


def compile_for_threads(
    bundle: Path, artifact: Path, variant: str, threads: int, tasks: int, trials: int, records: Path, cpu: str = ""
) -> None:
    """Compiles for this machine, as `ksm-hw compile --target host` does, but for as many cores as threads will run.

    With `trials` it is tuned before, as `ksm-hw tune` does; `records` is the folder for that. The variant "relay" goes
    through Relay, and "int8" computes in int8. `cpu` is LLVM's name of one to compile for in this one's place.
    """
    # Here: the tuner's processes read this file too, and need none of these.
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.compiler.tuning.tune import tune
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.toolchains.targets import load_target

    loaded = load_bundle(bundle)
    loaded = dataclasses.replace(loaded, packs=dict(itertools.islice(loaded.packs.items(), tasks)))
    target = load_target("host")
    of_cpu = {"mcpu": cpu} if cpu else {}
    target = dataclasses.replace(target, tvm={**target.tvm, **of_cpu, "num-cores": threads})
    if trials:
        tune(loaded, target, records, trials=trials)
    of_variant: dict[str, Any] = {"relay": {"ir": "relay"}, "int8": {"precision": "int8"}}.get(variant, {})
    compile_bundle(loaded, target, artifact, tuned=records if trials else None, **of_variant)


if __name__ == "__main__":
    bundle, artifact, variant, threads, tasks, trials, records, *cpu = sys.argv[1:]
    numbers = int(threads), int(tasks), int(trials)
    compile_for_threads(Path(bundle), Path(artifact), variant, *numbers, Path(records), *cpu)
