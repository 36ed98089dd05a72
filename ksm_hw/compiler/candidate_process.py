"""What a process that builds or measures schedules does first, before it imports TVM."""

import os

from ksm_hw.runtime.without_torch import hide_torch


def prepare_process() -> None:
    """Hides torch, and drops all that is printed: what compilers say of a schedule is no message to the user."""
    hide_torch()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
