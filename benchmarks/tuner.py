"""Measures how many trials a second the tuner makes, beside TVM's stock tuner.

    python benchmarks/tuner.py

Both tune the operators of one network for this machine, as many trials each, in turns, each turn in a process of its
own with new records. The stock one is MetaSchedule's `tune_relax` with `LocalBuilder` and `LocalRunner`, its own design
space, cost model and search, and as many seconds a measurement as ours. Time counts from the call to the last result;
lowering the network, which both need, is not in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine_facts import facts

SIDES = ("ksm-hw", "tune_relax")


def tune_once(side: str, trials: int) -> dict[str, Any]:
    """One turn, in this process: seconds, trials, and how many of them failed."""
    from ksm_hw.compiler.relax import main_functions
    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.resources import shipped_bundle
    from ksm_hw.toolchains.targets import load_target

    target = load_target("host")
    functions = main_functions(load_bundle(shipped_bundle()), target)
    turn = tune_with_ksm_hw if side == "ksm-hw" else tune_with_tune_relax
    with tempfile.TemporaryDirectory(prefix="tuner-") as folder:
        start = time.monotonic()
        measured, failed = turn(functions, target, Path(folder) / "records", trials)
        seconds = time.monotonic() - start
    return {"seconds": seconds, "trials": measured, "failed": failed, "facts": facts()}


def tune_with_ksm_hw(functions: Any, target: Any, folder: Path, trials: int) -> tuple[int, int]:
    """Ours; how many candidates, each counted once, and how many of them failed."""
    from ksm_hw.compiler.tuning.measure_candidates import CandidateMeasurer
    from ksm_hw.compiler.tuning.tune import tune_functions
    from ksm_hw.compiler.tuning.tuning_records import create_records

    with CandidateMeasurer(target, None) as measurer:
        result = tune_functions(functions, create_records(folder, target), measurer, trials=trials)
    return result.measured, result.failed


def tune_with_tune_relax(functions: Any, target: Any, folder: Path, trials: int) -> tuple[int, int]:
    """MetaSchedule's; how many trials, and how many of them failed."""
    import tvm
    from tvm.s_tir import meta_schedule

    from tvm_passes.relax.pipeline import fuse_kernels
    from tvm_passes.relax.schedules.base.tuned import LONGEST_RUN

    tvm_target = tvm.target.Target(dict(target.tvm))
    folder.mkdir()
    database = meta_schedule.relax_integration.tune_relax(
        fuse_kernels(functions, tvm_target),
        {},
        tvm_target,
        str(folder),
        max_trials_global=trials,
        # Its processes import TVM and torch for longer than the 30 seconds that they have by default.
        builder=meta_schedule.builder.LocalBuilder(max_workers=target.cpu.get("num-cores", 1), timeout_sec=300),
        runner=meta_schedule.runner.LocalRunner(
            timeout_sec=300, evaluator_config=meta_schedule.runner.EvaluatorConfig(number=1, repeat=5, min_repeat_ms=15)
        ),
    )
    seconds = [float(record.run_secs[0]) for record in database.get_all_tuning_records()]
    return len(seconds), sum(one > LONGEST_RUN for one in seconds)


def summary(turns: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Trials a second of each side, the median of its turns, and the ratio."""
    rates = {side: [turn["trials"] / turn["seconds"] for turn in done] for side, done in turns.items()}
    medians = {side: statistics.median(values) for side, values in rates.items()}
    ratio = medians["ksm-hw"] / medians["tune_relax"]
    return {"trials_a_second": medians, "all": rates, "turns": turns, "ratio": ratio}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64, help="of a turn; default: 64")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side; default: 3")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--turn", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn is not None:
        result = tune_once(arguments.turn, arguments.trials)
        print(json.dumps(result))
        return
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, "--turn", side, "--trials", str(arguments.trials)]
            process = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            turns[side].append(json.loads(process.stdout.splitlines()[-1]))
            print(f"{side}: {turns[side][-1]['seconds']:.1f} s", file=sys.stderr)
    result = summary(turns)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    machine = turns["ksm-hw"][0]["facts"]["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; TVM {turns['ksm-hw'][0]['facts']['tvm']}")
    for side in SIDES:
        rates = ", ".join(f"{rate:.2f}" for rate in result["all"][side])
        failed = sum(turn["failed"] for turn in turns[side])
        print(f"{side:12} {result['trials_a_second'][side]:6.2f} trials a second ({rates}); {failed} failed")
    print(f"ratio: {result['ratio']:.1f}")


if __name__ == "__main__":
    main()
