"""The board's side: TVM's own RPC server, with functions that keep artifacts and run sessions.

A session on a board is one process of the server, so what it holds ends with it.
"""

import contextlib
import functools
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw import __version__
from ksm_hw.boards.kept_files import KeptFiles
from ksm_hw.boards.protocol import FUNCTIONS, VERSION, answered, failure, function_name
from ksm_hw.errors import UserError
from ksm_hw.files.written import check_folder
from ksm_hw.measuring.process import Measured, measuring_process
from ksm_hw.measuring.relay_library import LibraryTimer
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.local_session import local_session
from ksm_hw.runtime.machine import available_cores
from ksm_hw.user_folders import cache_folder

_CRASH = "last_crash.txt"


@dataclass(frozen=True)
class ServerOptions:
    """How a board is served.

    Attributes:
        key: what the board calls itself at the tracker.
        tracker: host and port of the tracker; None for a board that is addressed directly.
        bind: address to listen on; `port` the first port to try, of a hundred.
        advertise: address under which the tracker tells others of the board; the one that it sees without it.
        cache: folder of the files that are kept.
        libraries: shared libraries to load into each session.
    """

    key: str
    tracker: tuple[str, int] | None
    bind: str
    port: int
    advertise: str | None
    cache: Path
    libraries: tuple[Path, ...] = ()


def default_cache() -> Path:
    """Where a board keeps files unless it is told otherwise."""
    return cache_folder("board")


def serve_board(
    options: ServerOptions,
    prepare: Callable[[], None],
    on_start: Callable[[int], None] = lambda port: None,
) -> None:
    """Serves sessions, one after the other, until it is interrupted.

    A session that crashes takes TVM's server with it, so the server is started again.

    Args:
        options: how.
        prepare: called in the server's process first, to which it is pickled.
        on_start: called with the port each time that the server listens.

    Raises:
        UserError: the cache cannot be written, or TVM's server does not start: the port is taken, or the tracker does
            not answer.
    """
    # What is measured without a `Session`, as a tune does, shall use all cores; TVM takes half of an x86-64 machine's.
    os.environ.setdefault("TVM_NUM_THREADS", str(available_cores()))
    from ksm_hw.runtime.tvm_import import import_tvm_runtime

    import_tvm_runtime()
    import tvm
    from tvm.rpc.server import Server

    cache = options.cache.absolute()  # Each session has a working folder of its own.
    check_folder(cache)
    # Has the function that fills tensors with random numbers, which every measurement of a tune begins with.
    extra = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_extra.so"
    libraries = [str(path) for path in (extra, *options.libraries) if path.exists()]
    while True:
        try:
            server = Server(
                host=options.bind,
                port=options.port,
                port_end=options.port + 100,
                tracker_addr=options.tracker,
                key=options.key,
                load_library=":".join(libraries),
                custom_addr=options.advertise,
                server_init_callback=functools.partial(_prepare_server, cache, prepare),
            )
        except Exception as error:
            raise UserError(f"The board's server does not start: {str(error).strip().splitlines()[-1]}") from error
        on_start(server.port)
        try:
            while server.proc.is_alive():
                time.sleep(0.2)
        finally:
            server.terminate()


def _prepare_server(cache: Path, prepare: Callable[[], None]) -> None:
    """Runs in the server's process, before it listens; sessions are forked from it."""
    prepare()

    def die_with_the_session(failure: threading.ExceptHookArgs) -> None:
        # TVM's thread that listens ends when a session's process dies of a signal: nobody would listen any more.
        (cache / _CRASH).write_text(str(failure.exc_value))
        os._exit(70)

    threading.excepthook = die_with_the_session
    threading.Thread(target=_die_with_the_parent, args=(os.getppid(),), daemon=True).start()
    register_board_functions(cache)


def _die_with_the_parent(parent: int) -> None:
    """Ends a server whose `ksm-hw board serve` was killed: nobody else would, and it would keep its port."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def register_board_functions(cache: Path) -> None:
    """Registers the functions of `protocol.py`."""
    import tvm_ffi

    served = _Served(cache)
    for name in FUNCTIONS:
        tvm_ffi.register_global_func(function_name(name), getattr(served, name), override=True)


class _Served:
    """What one session of the server holds, and its functions: see `protocol.py`."""

    session: AnySession

    def __init__(self, cache: Path) -> None:
        self.kept = KeptFiles(cache)
        self.crash = cache / _CRASH
        self.open_processes = contextlib.ExitStack()
        self.measured: list[Measured] = []
        self.timer = self.open_processes.enter_context(LibraryTimer())

    @answered
    def version(self) -> tuple[int, str]:
        return VERSION, __version__

    @answered
    def missing(self, names: str) -> list[str]:
        return self.kept.missing(json.loads(names))

    @answered
    def keep(self, name: str) -> None:
        self.kept.keep(_uploaded(name))

    @answered
    def load(self, manifest: str, threads: int) -> str:
        opened = local_session(self.kept.artifact(manifest), threads or None)
        self.session = self.open_processes.enter_context(opened)
        return self.session.task

    @answered
    def switch(self, task: str) -> float:
        return self.session.switch(task)

    def run(self, images: Any) -> Any:
        import tvm

        try:
            return tvm.runtime.tensor(self.session.run(images.numpy()))
        except Exception as error:
            return failure(error)

    @answered
    def measure_load(self, manifest: str, threads: int) -> tuple[int, dict[str, Any]]:
        opened = measuring_process(self.kept.artifact(manifest), threads or None)
        self.measured.append(self.open_processes.enter_context(opened))
        return len(self.measured) - 1, self.measured[-1].facts

    @answered
    def measure(self, number: int, request: str) -> Any:
        return self.measured[number].measure(json.loads(request))

    @answered
    def time_library(self, name: str, request: str) -> dict[str, Any]:
        library = _uploaded(name)
        try:
            return self.timer.time(library, **json.loads(request))
        finally:
            library.unlink()

    @answered
    def last_crash(self) -> str:
        text = self.crash.read_text() if self.crash.exists() else ""
        self.crash.unlink(missing_ok=True)
        return text


def _uploaded(name: str) -> Path:
    """Where TVM puts what is uploaded: a session's working folder."""
    return Path.cwd() / name
