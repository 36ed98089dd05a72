"""Python functions as bodies of parallel loops, which ksm_hw/compiler/loop_sharing.c shares out among TVM's threads."""

import ctypes
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tvm

from ksm_hw.compiler.loop_sharing import loop_sharing_object
from ksm_hw.toolchains.linker import compile_c, link_shared_library, linker_command
from tvm_passes.relax.loops.share_loops import UNITS

POINTER = "__TVMBackendParallelLaunch"

# A library with the pointer and a call through it, as LLVM makes them of a parallel loop.
CALLER = f"""
typedef int (*Loop)(int part, void* group, void* data);
__attribute__((weak)) int (*{POINTER})(Loop, void*, int);
int run(Loop loop) {{ return {POINTER}(loop, 0, 0); }}
"""


class Group(ctypes.Structure):
    """`TVMParallelGroupEnv`."""

    _fields_ = (("sync_handle", ctypes.c_void_p), ("parts", ctypes.c_int))


LOOP = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Group), ctypes.c_void_p)
Run = Callable[[Callable[[range], int]], int]


def loop_runner(folder: Path) -> Run:
    """What runs a function of units as a parallel loop on the calling thread's pool, and gives the loop's status."""
    command = linker_command(platform.machine())
    (folder / "caller.c").write_text(CALLER)
    compile_c(command, folder / "caller.c", folder / "caller.o")
    (folder / "sharing.o").write_bytes(loop_sharing_object(tuple(command)))
    link_shared_library(command, str(folder / "loops.so"), [str(folder / "caller.o"), str(folder / "sharing.o")])
    library = ctypes.CDLL(str(folder / "loops.so"))

    def run_loop(body: Callable[[range], int]) -> int:
        def part(number: int, group: Any, _data: object) -> int:
            size = UNITS // group.contents.parts
            return body(range(number * size, (number + 1) * size))

        return int(library.run(LOOP(part)))

    return run_loop


def on_threads(count: int, function: Callable[[], Any]) -> Any:
    """What a function gives in a new thread with a pool of so many, on however few cores."""

    def configured() -> Any:
        tvm.get_global_func("runtime.config_threadpool")(-3, count, ["0"] * count)
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(configured).result()


def parts_of(run: Run, threads: int) -> list[range]:
    """The units of all parts that so many threads are handed out, in the order of the units."""
    done: list[range] = []
    assert on_threads(threads, lambda: run(lambda units: done.append(units) or 0)) == 0  # type: ignore[func-returns-value]
    return sorted(done, key=lambda units: units.start)
