"""Ticks of the system's scheduler, nearer to each other than its own: it sees then whose quota is spent.

    python -m slowed_cores.ticks CORE

Linux looks every 4 ms (CONFIG_HZ=250), in which a thread with a quota of 1 ms works on, and then rests four times as
long as it should; and each time another thread takes the core. So here one does, for a few microseconds.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from peers.children import end_child, start_child

from ksm_hw.errors import UserError

_SECONDS = 2e-4  # Between two.


@contextlib.contextmanager
def ticking(cores: Sequence[int]) -> Iterator[None]:
    """Such ticks on these cores, until the block ends.

    Raises:
        UserError: this process may start nothing that runs in real time.
    """
    with contextlib.ExitStack() as stack:
        for core in cores:
            command = [sys.executable, "-m", "slowed_cores.ticks", str(core)]
            process = start_child(command, {}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            stack.callback(end_child, process)
            if not process.stdout.readline():
                raise UserError(
                    "Cores are slowed with help of processes in real time, and none may start. Run this as root."
                )
        yield


def tick(core: int) -> None:
    """Ticks on a core as long as the process is there that started it; prints a line when it begins."""
    parent = os.getppid()
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("ticking", flush=True)
    while os.getppid() == parent:
        time.sleep(_SECONDS)


if __name__ == "__main__":
    tick(int(sys.argv[1]))
