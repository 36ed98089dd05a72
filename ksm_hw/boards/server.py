"""The board's side: TVM's own RPC server, with functions that keep artifacts and run sessions.

A session on a board is one process of the server, so what it holds ends with it.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.manifest import checked_files
from ksm_hw.boards.protocol import FUNCTIONS, answered, function_name, kept_name
from ksm_hw.errors import UserError
from ksm_hw.files import sha256_of_file
from ksm_hw.runtime.machine import available_cores

CACHE_LIMIT = 4 << 30  # Bytes of kept files; the ones that were not used for longest go first.
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
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ksm-hw" / "board"


def serve_board(options: ServerOptions, on_start: Callable[[int], None] = lambda port: None) -> None:
    """Serves sessions, one after the other, until it is interrupted.

    A session that crashes takes TVM's server with it, so the server is started again.

    Args:
        options: how.
        on_start: called with the port each time that the server listens.

    Raises:
        UserError: TVM's server does not start: the port is taken, or the tracker does not answer.
    """
    # Only the runtime: without this TVM's bindings load the compiler, 150 MB that a board does not need.
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    # What is measured without a `Session`, as a tune does, shall use all cores; TVM takes half of an x86-64 machine's.
    os.environ.setdefault("TVM_NUM_THREADS", str(available_cores()))
    from ksm_hw.runtime.without_torch import hide_torch

    hide_torch()
    import tvm
    from tvm.rpc.server import Server

    options.cache.mkdir(parents=True, exist_ok=True)
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
                server_init_callback=functools.partial(_prepare_server, options.cache),
            )
        except Exception as error:
            raise UserError(f"The board's server does not start: {str(error).strip().splitlines()[-1]}") from error
        on_start(server.port)
        try:
            while server.proc.is_alive():
                time.sleep(0.2)
        finally:
            server.terminate()


def _prepare_server(cache: Path) -> None:
    """Runs in the server's process, before it listens; sessions are forked from it."""

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
    """What one session of the server holds."""

    def __init__(self, cache: Path) -> None:
        self.files, self.artifacts = cache / "files", cache / "artifacts"
        self.crash = cache / _CRASH
        self.session: Any = None
        self.measured: list[Any] = []
        self.timer: Any = None
        self.open_processes = contextlib.ExitStack()
        for folder in (self.files, self.artifacts):
            folder.mkdir(parents=True, exist_ok=True)

    @answered
    def missing(self, names: str) -> list[str]:
        return [name for name in json.loads(names) if not (self.files / name).exists()]

    @answered
    def keep(self, name: str) -> None:
        uploaded = Path.cwd() / name  # A session's working folder is where TVM puts what is uploaded.
        found = kept_name(name, sha256_of_file(uploaded))
        if found != name:
            raise UserError(f"A file arrived as {found} where {name} was sent. Try again.")
        self._make_room(uploaded.stat().st_size)
        incomplete = self.files / f"{name}.incomplete"
        try:
            shutil.move(uploaded, incomplete)
            incomplete.replace(self.files / name)
        except OSError as error:
            incomplete.unlink(missing_ok=True)
            raise UserError(f"The board cannot keep the artifact: {error.strerror}. Free space on it.") from error

    def _make_room(self, size: int) -> None:
        oldest_first = sorted(self.files.iterdir(), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in oldest_first) + size
        for path in oldest_first:
            if total <= CACHE_LIMIT:
                break
            total -= path.stat().st_size
            path.unlink()

    def _artifact(self, manifest: str) -> Path:
        """A folder with the files that a manifest lists: links to the kept ones."""
        folder = self.artifacts / hashlib.sha256(manifest.encode()).hexdigest()
        for name, entry in checked_files(json.loads(manifest)).items():
            link, kept = folder / name, self.files / kept_name(name, entry["sha256"])
            os.utime(kept)
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(kept)
        (folder / "manifest.json").write_text(manifest)
        return folder

    @answered
    def load(self, manifest: str, threads: int) -> dict[str, Any]:
        from ksm_hw.runtime.local_session import local_session

        opened = local_session(self._artifact(manifest), threads or None)
        self.session = self.open_processes.enter_context(opened)
        return {"task": self.session.task}

    @answered
    def switch(self, task: str) -> float:
        return self.session.switch(task)

    def run(self, images: Any) -> Any:
        import tvm

        return tvm.runtime.tensor(self.session.run(images.numpy()))

    @answered
    def measure_load(self, manifest: str, threads: int) -> tuple[int, dict[str, Any]]:
        from ksm_hw.measuring.process import measuring_process

        process = self.open_processes.enter_context(measuring_process(self._artifact(manifest), threads or None))
        self.measured.append(process)
        return len(self.measured) - 1, process.facts

    @answered
    def measure(self, number: int, command: str) -> Any:
        return self.measured[number].ask(**json.loads(command))

    @answered
    def time_library(self, name: str, request: str) -> dict[str, Any]:
        from ksm_hw.measuring.relay_library import LibraryTimer

        if self.timer is None:
            self.timer = self.open_processes.enter_context(LibraryTimer())
        library = Path.cwd() / name
        try:
            return self.timer.time(library, **json.loads(request))
        finally:
            library.unlink()

    @answered
    def last_crash(self) -> str:
        text = self.crash.read_text() if self.crash.exists() else ""
        self.crash.unlink(missing_ok=True)
        return text
