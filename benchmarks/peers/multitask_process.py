"""The process of an engine that holds several tasks, or one at a time.

    python -m peers.multitask_process MODULE VARIANT WAY NETWORK TASKS THREADS

answers with a line of JSON on memory and outputs, then to each line that it reads with the seconds of one round
of switches. Runs in every engine's environment, so it needs NumPy alone.
"""

import gc
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peers.multitask_results import ARTIFACT, HELD
from peers.serve import Run, answering, relative_error

SwitchTo = Callable[[Path], Run]


def resident_bytes() -> int:
    """Memory that this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status does not tell the resident memory")


def held(engine: Any, variant: str, folders: list[Path], threads: int) -> SwitchTo:
    """All models at once."""
    runs = {folder: engine.load(folder, threads, variant) for folder in folders}
    return runs.__getitem__


def reloaded(engine: Any, variant: str, threads: int) -> SwitchTo:
    """One model at a time: the old one goes before the new one comes."""
    current: list[Run] = []

    def switch(folder: Path) -> Run:
        current.clear()
        gc.collect()
        current.append(engine.load(folder, threads, variant))
        return current[0]

    return switch


def _serve(answer: Callable[..., None]) -> None:
    module, variant, way, network = sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4])
    tasks, threads = int(sys.argv[5]), int(sys.argv[6])
    engine = importlib.import_module(f"peers.engines.{module}")
    folders = [network / f"task-{number:02}" for number in range(tasks)]
    checks = {folder: (np.load(folder / "image.npy"), np.load(folder / "logits.npy")) for folder in folders}
    if way == ARTIFACT:
        engine.import_runtime(variant)
    before = resident_bytes()
    if way == ARTIFACT:
        switch = engine.task_switcher(network, tasks, threads, variant)
    else:
        switch = held(engine, variant, folders, threads) if way == HELD else reloaded(engine, variant, threads)
    errors = [relative_error(switch(folder)(checks[folder][0]), checks[folder][1]) for folder in folders]
    gc.collect()
    answer(version=engine.version(), before_bytes=before, loaded_bytes=resident_bytes(), error_of_logits=max(errors))
    for _ in sys.stdin:
        switches, firsts = [], []
        for folder in folders:
            start = time.perf_counter()
            run = switch(folder)
            switches.append(time.perf_counter() - start)
            run(checks[folder][0])  # Some engines leave work for the first inference.
            firsts.append(time.perf_counter() - start)
        answer(switch_seconds=switches, first_logits_seconds=firsts)


if __name__ == "__main__":
    answering(_serve)
