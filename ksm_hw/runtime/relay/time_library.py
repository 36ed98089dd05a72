"""Measuring a library of one operator. Runs in Relay's environment, on the desk or on a board."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm

from ksm_hw.runtime.operator_timing import Tensors, before_each_run, steady_seconds
from ksm_hw.runtime.threads import pinned, usable_cores, use_threads


def time_library(library: str, tensors: Tensors, limit: float, threads: int, cores: Sequence[int]) -> dict[str, Any]:
    """As `LibraryTimer.time`, in this process."""
    try:
        module = tvm.runtime.load_module(library)
        generator = np.random.default_rng(0)
        arguments = [
            tvm.nd.array(generator.uniform(0, 1, tuple(shape)).astype(dtype), tvm.cpu()) for dtype, shape in tensors
        ]

        def seconds_of_runs(runs: int) -> Sequence[float]:
            evaluator = module.time_evaluator(
                module.entry_name, tvm.cpu(), number=1, repeat=runs, f_preproc=before_each_run(tensors)
            )
            results: Sequence[float] = evaluator(*arguments).results
            return results

        use_threads(min(threads, len(usable_cores(cores))), cores)
        with pinned(cores):
            return {"seconds": steady_seconds(seconds_of_runs, limit)}
    except Exception as error:  # Whatever a candidate does wrong is its own fault.
        return {"error": (str(error).strip().splitlines() or [repr(error)])[-1]}
