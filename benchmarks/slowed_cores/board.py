"""Runs on the board: artifacts, on as many threads as it has cores.

    python -m slowed_cores.board CORES ARTIFACT...

answers with a line of JSON that has the system's numbers of the threads, the caller's first, and of each artifact
whether TVM gives its loops out, in equal parts; and then with a line for each line that it reads: seconds of an
inference of the artifact of a number, and the SHA-256 of its logits. All artifacts run on the same threads.
"""

import ctypes
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers.serve import answering

from ksm_hw.artifact.manifest import LIBRARY
from ksm_hw.runtime.tvm_import import import_tvm_runtime


def claim_cores(cores: int) -> None:
    """Makes a session see so many cores: it takes a thread for each, and an emulator's are those of its machine."""
    real = sorted(os.sched_getaffinity(0))
    # Those that there are must be among them: threads are kept to all of them, and the system leaves out the others.
    claimed = {*real[:cores], *range(real[-1] + 1, real[-1] + 1 + cores - len(real[:cores]))}
    os.sched_getaffinity = lambda _process: claimed


def calls_tvm(library: Path) -> bool:
    """Whether a library that is loaded calls its loops through TVM's own function."""
    try:
        called = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "__TVMBackendParallelLaunch")
    except ValueError:  # It shows no pointer that TVM could have set.
        return False
    return called.value == ctypes.cast(ctypes.CDLL(None).TVMBackendParallelLaunch, ctypes.c_void_p).value


def _threads() -> set[int]:
    return set(map(int, os.listdir("/proc/self/task")))


def serve(cores: int, artifacts: list[Path], answer: Callable[..., None]) -> None:
    """Answers as the module says."""
    claim_cores(cores)
    import_tvm_runtime()
    from ksm_hw.runtime.session import Session

    before = _threads()
    sessions = [Session.load(artifact, threads=cores) for artifact in artifacts]
    image = np.random.default_rng(0).standard_normal(sessions[0].manifest.input_shape, dtype=np.float32)

    def infer(session: Session) -> dict[str, Any]:
        start = time.perf_counter()
        logits = session.run(image)
        return {"seconds": time.perf_counter() - start, "logits": hashlib.sha256(logits.tobytes()).hexdigest()}

    for session in sessions:
        infer(session)  # The emulator translates each loop when it is run first.
    threads = [os.getpid(), *sorted(_threads() - before)]
    answer(threads=threads, equal_parts=[calls_tvm(artifact / LIBRARY) for artifact in artifacts])
    for line in sys.stdin:
        answer(**infer(sessions[json.loads(line)["artifact"]]))


if __name__ == "__main__":
    answering(lambda answer: serve(int(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]], answer))
