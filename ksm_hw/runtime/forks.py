"""Sessions in forked processes, as multiprocessing and web servers make them.

Of the threads of a forked process only the one that forked lives on. If it has a pool of TVM's, the pool's threads are
gone: every loop would wait for them forever, and so would the end of the process, where C++ destroys the pool. So in
the child other threads, whose pools are their own, do that thread's work, and the process ends without C++'s part.

What else holds a place in the parent, a GPU's context or a connection, cannot be used in a child: `check_process`.
"""

import atexit
import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from ksm_hw.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_owned = threading.local()  # `process`: the number of the process in which this thread's pool was made.
_locks: "weakref.WeakSet[Any]" = weakref.WeakSet()
_held: list[Any] = []  # Locks, while this process is forked.


def own_pool() -> None:
    """Notes that the calling thread has a pool of TVM's from now on.

    Raises:
        UserError: its pool was lost in a fork.
    """
    if _is_stranded():
        raise UserError(
            f"TVM's threads stayed in process {_owned.process}, from which this process {os.getpid()} was forked. "
            "Do this in a new thread, or start processes with multiprocessing's method `spawn`."
        )
    _owned.process = os.getpid()


def survives_forks(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that uses TVM's pool; where the calling thread's was lost in a fork, another thread runs it."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        if _is_stranded():
            return _substitute(os.getpid()).submit(function, *arguments, **options).result()
        return function(*arguments, **options)

    return call


def hold_while_forking(lock: Any) -> None:
    """Has every fork wait for a lock, which the child would find locked for good if another thread held it."""
    _locks.add(lock)


def check_process(process: int, what: str) -> None:
    """Checks that this is the process in which something was opened.

    Raises:
        UserError: it was forked from that.
    """
    if process != os.getpid():
        raise UserError(
            f"{what} was opened in process {process}, and does not work in process {os.getpid()}, which was forked "
            "from it. Open it in the process that uses it alone, or start that with multiprocessing's method `spawn`."
        )


def _is_stranded() -> bool:
    return getattr(_owned, "process", os.getpid()) != os.getpid()


@functools.cache
def _substitute(process: int) -> ThreadPoolExecutor:
    """The thread that works for the stranded one of a process."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"ksm-hw of {process}")


def _before_fork() -> None:
    for lock in list(_locks):
        lock.acquire()
        _held.append(lock)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    if _is_stranded():
        _note_exits()


_exits: list[Any] = []  # What `sys.exit` was called with in a child, whose status Python tells nobody else.


def _note_exits() -> None:
    leave = sys.exit

    def noted_exit(code: Any = None, /) -> Any:
        _exits.append(code)
        leave(code)

    sys.exit = noted_exit


@atexit.register  # Early, and so called late.
def _end_stranded_process() -> None:
    """Ends a process as Python would, but without what C++ does at its end."""
    if not _is_stranded():
        return
    code = _exits[-1] if _exits else 1 if hasattr(sys, "last_type") else None
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # Closed, full, or there is none.
            stream.flush()
    os._exit(code & 0xFF if isinstance(code, int) else 0 if code is None else 1)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
