"""How long one operator is measured, and in which state of the caches: the same through Relax and Relay."""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

FIRST_RUNS = 3  # Their median says whether a schedule is worth more.
LEAST_SECONDS = 0.05  # That the other runs take together.
FEWEST_RUNS, MOST_RUNS = 9, 300
MANY_WEIGHTS = 1 << 16  # Bytes; fewer are read in no time.
# TVM's function that has a CPU's caches forget all arguments but the first.
_FORGET_WEIGHTS = "cache_flush_cpu_non_first_arg"

# Dtype and shape of an operator's arguments: the input, weights, and others.
Tensors = Sequence[tuple[str, Sequence[int]]]


def before_each_run(tensors: Tensors) -> str:
    """The name of TVM's function to call before each run on a CPU, or "" for none.

    Between two runs a network reads all of its other weights, so here an operator of many finds its input in the cache,
    but not these. If both were there, the fastest would often be one that reads weights again and again.
    """
    dtype, shape = tensors[1]
    return _FORGET_WEIGHTS if math.prod(shape) * np.dtype(dtype).itemsize > MANY_WEIGHTS else ""


def steady_seconds(seconds_of_runs: Callable[[int], Sequence[float]], limit: float) -> float:
    """Seconds of a run: the median of so many that they take 50 ms; beyond the limit that of 3.

    Args:
        seconds_of_runs: the seconds of each of so many runs.
        limit: seconds.
    """

    def median(runs: int) -> float:
        # Something else may have run beside one or two of them.
        return statistics.median(map(float, seconds_of_runs(runs)))

    measured = median(FIRST_RUNS)
    if measured <= limit:
        measured = median(min(max(math.ceil(LEAST_SECONDS / measured), FEWEST_RUNS), MOST_RUNS))
    return measured
