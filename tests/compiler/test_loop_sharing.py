"""Loops are shared out as threads become free, whatever happens in a part, and are whole where there is one thread."""

import ctypes
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from operator_cases import HOST
from parallel_loops import POINTER, Run, loop_runner, on_threads, parts_of
from tvm import te
from tvm.script import tirx as T

from ksm_hw.compiler.build import Built, build_executable, export_library
from ksm_hw.runtime.session import Session
from tvm_passes.relax.loops.share_loops import UNITS

Body = Callable[[range], int]
SECONDS = 60  # That a test waits for a thread before it fails: on a loaded machine one may come late.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return loop_runner(tmp_path_factory.mktemp("loops"))


def begun_together(threads: int, body: Body) -> Body:
    """The body, of which each thread does its first part when all threads have one."""
    barrier, begun = threading.Barrier(threads), set[int]()

    def begin(units: range) -> int:
        me = threading.get_ident()
        if me not in begun:
            begun.add(me)
            barrier.wait(SECONDS)
        return body(units)

    return begin


def linked(module: tvm.IRModule, folder: Path) -> Any:
    """`main` of a module, compiled and linked as artifacts are."""
    export_library(Built(build_executable(module, HOST)), folder / "loops.so", platform.machine())
    return tvm.runtime.load_module(str(folder / "loops.so"))["main"]


@pytest.mark.parametrize("threads", [1, 2, 3, 40, 70])
def test_each_step_is_done_once(run: Run, threads: int) -> None:
    done = parts_of(run, threads)
    assert [unit for units in done for unit in units] == [*range(UNITS)]
    assert threads > 1 or done == [range(UNITS)]


@pytest.mark.parametrize("held", [0, 1])
def test_a_thread_keeps_to_its_region_while_there_is_something_left_in_it(run: Run, held: int) -> None:
    """One of two threads is held in its first part until the other begins to help it."""
    regions: tuple[list[int], list[int]] = ([], [])
    helped = threading.Event()
    caller: list[int] = []

    def body(units: range) -> int:
        me = 0 if threading.get_ident() == caller[0] else 1
        region = units.start // (UNITS // 2)
        regions[me].append(region)
        if me != held and region == held:
            helped.set()
        return 0 if me != held or helped.wait(SECONDS) else 1

    on_threads(2, lambda: [caller.append(threading.get_ident()), run(begun_together(2, body))])
    free = 1 - held
    assert regions[free] == sorted(regions[free], reverse=free == 1) and {*regions[free]} == {0, 1}
    assert {*regions[held]} == {held}


@pytest.mark.parametrize("threads", [2, 4])
def test_a_slow_thread_does_less(run: Run, threads: int) -> None:
    """The caller is in its first part until all else is taken."""
    work: dict[int, int] = {}
    lock, all_taken = threading.Lock(), threading.Event()
    caller: list[int] = []

    def body(units: range) -> int:
        me = threading.get_ident()
        with lock:
            work[me] = work.get(me, 0) + len(units)
            if sum(work.values()) == UNITS:
                all_taken.set()
        return 0 if me != caller[0] or all_taken.wait(SECONDS) else 1

    on_threads(threads, lambda: [caller.append(threading.get_ident()), run(begun_together(threads, body))])
    assert len(work) == threads and sum(work.values()) == UNITS
    assert work[caller[0]] < 0.7 * UNITS / threads  # An equal part is what all would wait for.


def test_a_loop_in_a_loop_is_its_threads_own(run: Run) -> None:
    inner: list[tuple[int, int, range]] = []

    def body(_units: range) -> int:
        me = threading.get_ident()
        return run(lambda units: inner.append((me, threading.get_ident(), units)) or 0)  # type: ignore[func-returns-value]

    assert on_threads(2, lambda: (run(begun_together(2, body)), run(lambda _: 0))) == (0, 0)
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
