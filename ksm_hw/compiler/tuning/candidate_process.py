"""What a process that builds or measures schedules does first: all but its last step before it imports TVM."""

import importlib
import os

from ksm_hw.runtime.tvm_import import hide_torch

# How often a thread of TVM's pool looks for work before it sleeps: a tenth of a second. Between two measured runs
# caches are emptied, for milliseconds; in a network the next loop follows at once, and no thread has to be woken up.
_SPINS = 300000


def prepare_process() -> None:
    """Hides torch, keeps TVM's threads awake, and drops what compilers print, which is no message to the user.

    Then it imports what the first schedule would.
    """
    hide_torch()
    os.environ["TVM_THREAD_POOL_SPIN_COUNT"] = str(_SPINS)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    importlib.import_module("ksm_hw.compiler.tuning.candidate_worker")
