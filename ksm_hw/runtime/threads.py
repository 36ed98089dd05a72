"""On how many threads TVM's loops run, and on which cores of the CPU.

TVM keeps a pool of threads for each thread that calls it, and the caller itself does a share of the work. Left alone it
takes half of an x86-64 machine's cores, because it assumes hyper-threads; it pins the caller to the first cores of the
machine, for good, whatever else runs there; and a pool that was made for few threads never gets more.
"""

import contextlib
import os
import threading
from collections.abc import Collection, Iterator

import tvm

from ksm_hw.runtime.forks import own_pool

# How often a thread of the pool looks for work before it sleeps: about a millisecond, longer than what lies between the
# loops of an inference. With TVM's own 300000 it keeps a core busy for 0.1 s after each, for which OpenMP in the same
# process would wait.
SPINS = 2000

_SHARED_CORES = -3  # TVM's kSpecifyThreadShareAllCore: every thread of the pool may use every core that is named.
_pool = threading.local()


def usable_cores(cores: Collection[int] = ()) -> frozenset[int]:
    """Those of some cores of the CPU that this process may use; all that it may use where that is none of them."""
    allowed = frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    return allowed & frozenset(cores) or allowed


def use_threads(threads: int, cores: Collection[int] = ()) -> None:
    """Lets the loops that the calling thread starts in TVM run on that many threads, at most one a core.

    Args:
        threads: how many, the calling thread included.
        cores: numbers of the cores that the pool's threads are pinned to; those that this process may not use, or all
            if it may use none, are left out. The calling thread is not pinned: `pinned` does that for a while.

    Raises:
        UserError: the calling thread's pool was lost in a fork.
    """
    own_pool()
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", str(SPINS))
    configure = tvm.get_global_func("runtime.config_threadpool")
    if not hasattr(os, "sched_setaffinity"):
        os.environ["TVM_NUM_THREADS"] = str(threads)  # The most that a pool may have, read when it is made.
        configure(1, threads)
        return
    wanted = (threads, usable_cores(cores))
    if getattr(_pool, "configured", None) == wanted:
        return
    before = os.sched_getaffinity(0)
    try:
        # The pool gets as many threads as there are cores named, and uses the first `threads` of them.
        configure(_SHARED_CORES, threads, [str(core) for core in sorted(wanted[1])])
    finally:
        os.sched_setaffinity(0, before)
    _pool.configured = wanted


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Keeps the calling thread on those of some cores that this process may use, as long as the block lasts."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, usable_cores(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
