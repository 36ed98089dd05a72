"""Loops are shared out as threads become free, whatever happens in a part, and are whole where there is one thread."""

import ctypes
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from operator_cases import HOST
from tvm import te
from tvm.script import tirx as T

from ksm_hw.compiler.build import Built, build_executable, export_library
from ksm_hw.compiler.loop_sharing import loop_sharing_object
from ksm_hw.runtime.session import Session
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a function of units as a parallel loop on the calling thread's pool, and gives the loop's status."""
    folder = tmp_path_factory.mktemp("loops")
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


def linked(module: tvm.IRModule, folder: Path) -> Any:
    """`main` of a module, compiled and linked as artifacts are."""
    export_library(Built(build_executable(module, HOST)), folder / "loops.so", platform.machine())
    return tvm.runtime.load_module(str(folder / "loops.so"))["main"]


@pytest.mark.parametrize("threads", [1, 2, 3, 40, 70])
def test_each_step_is_done_once(run: Run, threads: int) -> None:
    done: list[range] = []
    assert on_threads(threads, lambda: run(lambda units: done.append(units) or 0)) == 0  # type: ignore[func-returns-value]
    done.sort(key=lambda units: units.start)
    assert [unit for units in done for unit in units] == [*range(UNITS)]
    lengths = [len(units) for units in done]
    if threads == 1:
        assert lengths == [UNITS]
    else:
        # As many regions, up to 16, each cut alike, its parts ever shorter.
        regions = min(1 << (threads - 1).bit_length(), 16)
        region = lengths[: len(lengths) // regions]
        assert lengths == region * regions
        assert region == sorted(region, reverse=True) and (region[0], region[-1]) == (UNITS // regions // 4, 1)


def test_a_thread_keeps_to_its_region_while_there_is_something_left_in_it(run: Run) -> None:
    regions: dict[int, list[int]] = {}

    def body(units: range) -> int:
        time.sleep(len(units) * 1e-3)
        regions.setdefault(threading.get_ident(), []).append(units.start // (UNITS // 2))
        return 0

    caller = on_threads(2, lambda: [run(body), threading.get_ident()])[1]
    helper = next(other for other in regions if other != caller)
    assert 0 in regions[caller] and regions[caller] == sorted(regions[caller])
    assert 1 in regions[helper] and regions[helper] == sorted(regions[helper], reverse=True)


@pytest.mark.parametrize("threads", [2, 4])
def test_a_slow_thread_does_less(run: Run, threads: int) -> None:
    work: dict[int, int] = {}

    def body(units: range) -> int:
        me = threading.get_ident()
        slow = me == caller[0]
        time.sleep(len(units) * (4e-3 if slow else 1e-3))
        work[me] = work.get(me, 0) + len(units)
        return 0

    caller: list[int] = []
    on_threads(threads, lambda: [caller.append(threading.get_ident()), run(body)])
    assert len(work) == threads and sum(work.values()) == UNITS
    assert work[caller[0]] < 0.7 * UNITS / threads  # An equal part is what all would wait for.


def test_a_loop_in_a_loop_is_its_threads_own(run: Run) -> None:
    inner: list[tuple[int, int, range]] = []

    def body(_units: range) -> int:
        me = threading.get_ident()
        time.sleep(1e-3)  # So that both threads have some.
        return run(lambda units: inner.append((me, threading.get_ident(), units)) or 0)  # type: ignore[func-returns-value]

    assert on_threads(2, lambda: (run(body), run(lambda _: 0))) == (0, 0)
    assert len({outer for outer, _, _ in inner}) == 2
    assert all(outer == own and units == range(UNITS) for outer, own, units in inner)


def test_loops_of_several_threads_keep_apart(run: Run) -> None:
    def total() -> int:
        done: list[int] = []

        def body(units: range) -> int:
            done.extend(units)
            return 0

        for _ in range(50):
            run(body)
        return sum(done)

    with ThreadPoolExecutor(4) as callers:
        totals = [callers.submit(on_threads, 2, total) for _ in range(4)]
    assert [one.result() for one in totals] == [50 * sum(range(UNITS))] * 4


@T.prim_func
def failing(values: T.Buffer((100,), "int32"), bad: T.Buffer((1,), "int32")):  # type: ignore[no-untyped-def]
    for i in T.parallel(100):
        T.evaluate(T.call_packed("tests.fail_at", i, bad[0]))
        values[i] = values[i] + 1


def test_a_part_that_fails_fails_its_loop_alone(tmp_path: Path) -> None:
    @tvm.register_global_func("tests.fail_at", override=True)
    def fail_at(step: int, bad: int) -> None:
        if step == bad:
            raise ValueError("a part failed")

    loop = linked(tvm.IRModule({"main": failing.with_attr("global_symbol", "main")}), tmp_path)

    def run_three() -> None:
        for bad in (3, 97):
            values = tvm.runtime.tensor(np.zeros(100, "int32"))
            with pytest.raises(Exception, match="a part failed"):
                loop(values, tvm.runtime.tensor(np.array([bad], "int32")))
            assert values.numpy()[bad] == 0
        values = tvm.runtime.tensor(np.zeros(100, "int32"))
        loop(values, tvm.runtime.tensor(np.array([-1], "int32")))
        assert values.numpy().tolist() == [1] * 100

    for threads in (1, 2, 3):
        on_threads(threads, run_three)


@pytest.mark.parametrize("extent", [1, 7, 64, 100, 1000])
def test_compiled_loops_do_every_iteration(extent: int, tmp_path: Path) -> None:
    data = te.placeholder((extent,), name="data")
    result = te.compute((extent,), lambda i: data[i] * 2 + i, name="result")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([data, result]).with_attr("global_symbol", "main"))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("result"))[0])
    main = linked(schedule.mod, tmp_path)
    values = np.arange(extent, dtype="float32")

    def computed() -> np.ndarray:
        found = tvm.runtime.tensor(np.zeros(extent, "float32"))
        main(tvm.runtime.tensor(values), found)
        return found.numpy()

    for threads in (1, 2, 3):
        assert on_threads(threads, computed).tolist() == (values * 3).tolist()


def test_tvm_leaves_an_artifacts_pointer_alone(artifact: Path) -> None:
    library = ctypes.CDLL(str(artifact / "model.so"))
    assert hasattr(library, "__tvm_ffi__library_bin")
    assert not hasattr(library, POINTER)


def test_logits_are_the_same_on_every_number_of_threads(artifact: Path) -> None:
    def logits(threads: int) -> bytes:
        session = Session.load(artifact, threads=threads)
        image = np.random.default_rng(0).standard_normal(session.manifest.input_shape, dtype="float32")
        return session.run(image).tobytes()

    assert logits(1) == logits(2)
