"""Sessions: a switch gives what a fresh session gives, costs no memory, fails without harm, and never mixes threads."""

import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import tvm
from damage import unsealed
from tiny_tasks import tiny_bundle, tiny_manifest

from ksm_hw.artifact.manifest import TaskEntry, read_manifest
from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.images.decoding import read_image
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.models.task_module import task_module
from ksm_hw.runtime.device_session import start_threads, upload_tasks
from ksm_hw.runtime.machine import available_cores
from ksm_hw.runtime.session import Session
from ksm_hw.runtime.threads import usable_cores, use_threads
from ksm_hw.toolchains.targets import load_target

TASKS = ["element-task", "kernel-task", "other-task"]


@pytest.fixture(scope="module")
def images(photographs: Path, bundle: Bundle) -> list[np.ndarray]:
    """Each photograph as a batch of one."""
    preprocessing = bundle.packs["kernel-task"].preprocessing
    return [preprocess_batch([read_image(path)], preprocessing) for path in sorted(photographs.iterdir())]


@pytest.fixture(scope="module")
def expected(artifact: Path, images: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Logits of each task, each from a session that ran nothing else."""
    logits = {}
    for task in TASKS:
        session = Session.load(artifact)
        session.switch(task)
        logits[task] = [session.run(image) for image in images]
    assert not any(np.array_equal(first, second) for first, second in zip(*list(logits.values())[1:], strict=False))
    return logits


@pytest.fixture
def session(artifact: Path) -> Iterator[Session]:
    yield Session.load(artifact)


def test_a_session_starts_with_the_first_task(session: Session) -> None:
    assert session.tasks == TASKS and session.task == TASKS[0]
    assert session.weights_bytes > 1_000_000


def test_switching_gives_what_a_fresh_session_gives(
    session: Session, images: list[np.ndarray], expected: dict[str, list[np.ndarray]]
) -> None:
    for task in [*TASKS, *reversed(TASKS), TASKS[1]]:
        seconds = session.switch(task)
        assert session.task == task and seconds == (session.switch_seconds if seconds else 0.0)
        for image, logits in zip(images, expected[task], strict=True):
            assert session.run(image).tobytes() == logits.tobytes()


def test_a_task_without_a_layer_norm_of_its_own_has_the_backbone_s() -> None:
    """Whichever task comes first."""
    for tasks in (("own", "plain"), ("plain", "own")):
        bundle = tiny_bundle(*tasks)
        norm = np.full(3, 2, np.float32)
        packs = {**bundle.packs, "own": dataclasses.replace(bundle.packs["own"], parameters={"norm.weight": norm})}
        bundle = dataclasses.replace(bundle, tensors={"norm.weight": np.ones(3, np.float32)}, packs=packs)
        entries = {task: TaskEntry("main", None, ("norm.weight",)) for task in tasks}
        manifest = dataclasses.replace(tiny_manifest(bundle), tasks=entries)
        found = upload_tasks(manifest, bundle.tensors, packs.items(), lambda entry, name, array: array)
        assert {task: one.parameters[0].tolist() for task, one in found.items()} == {
            "own": [2, 2, 2],
            "plain": [1, 1, 1],
        }
        assert {task: one.own_bytes for task, one in found.items()} == {"own": 12, "plain": 0}


def test_logits_have_the_classes_of_the_task(session: Session, bundle: Bundle, images: list[np.ndarray]) -> None:
    for task in TASKS:
        assert session.run(images[0], task).shape == (1, len(bundle.packs[task].classes))
        assert session.task == task


def test_a_session_keeps_no_pack_beside_what_it_uploaded(session: Session, artifact: Path, bundle: Bundle) -> None:
    """Of what Python holds; tensors on the device are none of it."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        other = Session.load(artifact)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert other.own_bytes.keys() == set(TASKS)
    assert held < min(pack.nbytes for pack in bundle.packs.values()), "not one of them"


def test_a_thousand_switches_change_no_logit_and_take_no_memory(
    session: Session, images: list[np.ndarray], expected: dict[str, list[np.ndarray]]
) -> None:
    process = psutil.Process()
    generator = np.random.default_rng(0)
    before = 0
    for number in range(1000):
        # Any of the others, so that every switch rewrites the weights.
        task = generator.choice([other for other in TASKS if other != session.task])
        assert session.switch(task) > 0
        place = number % len(images)
        assert session.run(images[place]).tobytes() == expected[task][place].tobytes(), f"switch {number} to {task}"
        if number == 100:
            before = process.memory_info().rss
    growth = process.memory_info().rss - before
    # One set of live weights a switch, kept by mistake, would be gigabytes.
    assert growth < 5e6


def test_a_batch_takes_the_memory_of_the_one_before(
    session: Session, images: list[np.ndarray], expected: dict[str, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*arguments: object) -> None:
        raise AssertionError("a tensor was made")

    for function in ("tensor", "empty"):
        monkeypatch.setattr(tvm.runtime, function, make)
    for batch, logits in zip(images, expected[session.task], strict=True):
        assert np.array_equal(session.run(batch), logits)
        assert np.array_equal(session.run(np.asfortranarray(batch)), logits)


def test_a_switch_takes_the_memory_of_the_weights_that_it_replaces(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite, held = session._rewrite, []

    def rewrite_and_note(task: str) -> list[object]:
        held.append(len(session._kept) + len(session._weights))
        return rewrite(task)

    monkeypatch.setattr(session, "_rewrite", rewrite_and_note)

    def switch_often(count: int) -> int:
        """Pages that the system had to find meanwhile."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for number in range(count):
            others = [task for task in TASKS if task != session.task]
            assert session.switch(others[number % len(others)]) > 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    switch_often(2 * len(TASKS))
    assert session.weights_bytes > 100 * resource.getpagesize()
    # New pages for every set of weights would be thousands.
    assert switch_often(50) < 50
    assert len(held) > 50 and not any(held)


def test_kept_tasks_are_the_last_ones_within_the_budget(artifact: Path, images: list[np.ndarray]) -> None:
    first, second, third = TASKS
    keeping = Session.load(artifact, keep=2)
    for task in (second, third, second):
        keeping.switch(task)
    assert keeping.kept_tasks == [third, second]
    kept = keeping.run(images[0])
    # Going back to a kept task takes the weights as they are: the very same tensors.
    weights = keeping._kept[third]
    keeping.switch(third)
    assert keeping._weights is weights
    assert keeping.run(images[0], second).tobytes() == kept.tobytes()

    one_set = keeping.weights_bytes
    for budget, count in ((one_set - 1, 1), (one_set, 1), (2 * one_set, 2), (3 * one_set, 3)):
        limited = Session.load(artifact, keep=3, budget=budget)
        for task in (second, third, first):
            limited.switch(task)
        assert len(limited.kept_tasks) == count and limited.kept_tasks[-1] == first

    with pytest.raises(UserError, match="keep"):
        Session.load(artifact, keep=0)
    for threads in (0, -1):
        with pytest.raises(UserError, match=f"threads={threads}: an inference takes 1 or more"):
            Session.load(artifact, threads=threads)


def test_an_unknown_task_leaves_the_old_one_working(
    session: Session, images: list[np.ndarray], expected: dict[str, list[np.ndarray]]
) -> None:
    session.switch("other-task")
    for attempt in (lambda: session.switch("othr-task"), lambda: session.run(images[0], task="othr-task")):
        with pytest.raises(UserError, match="Did you mean 'other-task'"):
            attempt()
        assert session.task == "other-task"
        assert session.run(images[0]).tobytes() == expected["other-task"][0].tobytes()


def test_a_switch_that_fails_halfway_leaves_the_old_task_working(
    session: Session,
    images: list[np.ndarray],
    expected: dict[str, list[np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session.switch("kernel-task")
    rewrite = session._rewrite

    def fails_after_the_work(task: str) -> list[object]:
        rewrite(task)
        raise MemoryError("the device is full")

    with monkeypatch.context() as patch:
        patch.setattr(session, "_rewrite", fails_after_the_work)
        with pytest.raises(MemoryError):
            session.switch("other-task")
        with pytest.raises(MemoryError):
            session.run(images[0], task="element-task")
    assert session.task == "kernel-task"
    # Its weights had been given up for those that failed; the run makes them again.
    assert session.run(images[0]).tobytes() == expected["kernel-task"][0].tobytes()
    assert session.kept_tasks == ["kernel-task"]
    session.switch("other-task")
    assert session.run(images[0]).tobytes() == expected["other-task"][0].tobytes()


@pytest.mark.parametrize("keep", [1, 2])
def test_threads_never_mix_tasks(
    artifact: Path, images: list[np.ndarray], expected: dict[str, list[np.ndarray]], keep: int
) -> None:
    session = Session.load(artifact, keep=keep)
    wrong: list[str] = []
    start = threading.Barrier(6)

    def runs(seed: int) -> None:
        generator = np.random.default_rng(seed)
        start.wait()
        for _ in range(60):
            task, place = str(generator.choice(TASKS)), int(generator.integers(len(images)))
            if session.run(images[place], task=task).tobytes() != expected[task][place].tobytes():
                wrong.append(task)

    def runs_whatever_is_current(seed: int) -> None:
        start.wait()
        for _ in range(60):
            logits = session.run(images[0])
            if not any(logits.tobytes() == expected[task][0].tobytes() for task in TASKS):
                wrong.append("current")

    def switches(seed: int) -> None:
        generator = np.random.default_rng(seed)
        start.wait()
        for _ in range(60):
            session.switch(str(generator.choice(TASKS)))

    work = [runs, runs, runs, runs_whatever_is_current, switches, switches]
    failed: list[BaseException] = []

    def guarded(function, seed: int) -> None:  # type: ignore[no-untyped-def]
        try:
            function(seed)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(function, seed)) for seed, function in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and not wrong


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 3, 32, 32), np.float32),
        np.zeros((1, 3, 33, 32), np.float32),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 3, 32, 32), np.float64),
        np.zeros((1, 3, 32, 32), np.uint8),
    ],
    ids=lambda wrong: f"{wrong.dtype}{list(wrong.shape)}",
)
def test_images_of_another_shape_or_dtype_are_refused(session: Session, wrong: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"float32 \[1, 3, 32, 32\]") as error:
        session.run(wrong)
    assert f"{wrong.dtype} {list(wrong.shape)}" in str(error.value)


@pytest.mark.parametrize("wrong", [None, [[0.0]], "photo.jpg", torch.zeros(1, 3, 32, 32)])
def test_what_is_no_array_is_refused(session: Session, wrong: object) -> None:
    with pytest.raises(UserError, match=f"as a NumPy array, .*, found a {type(wrong).__name__}"):
        session.run(wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="as a NumPy array"):
        session.run_all(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused(session: Session, wrong: float) -> None:
    images = np.zeros((1, 3, 32, 32), np.float32)
    images[0, 1, 2, 3] = wrong
    with pytest.raises(UserError, match="not finite"):
        session.run(images)


def test_memory_layout_of_the_images_does_not_matter(session: Session, images: list[np.ndarray]) -> None:
    transposed = np.ascontiguousarray(images[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not transposed.flags.c_contiguous
    assert session.run(transposed).tobytes() == session.run(images[0]).tobytes()


def test_many_images_are_run_in_batches(session: Session, images: list[np.ndarray]) -> None:
    every = np.concatenate(images)
    assert session.run_all(every).tobytes() == np.concatenate([session.run(image) for image in images]).tobytes()


def reference(bundle: Bundle, task: str, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return task_module(bundle, bundle.packs[task])(torch.from_numpy(batch)).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_switch_gives_the_logits_of_pytorch(session: Session, bundle: Bundle, images: list[np.ndarray]) -> None:
    every = np.concatenate(images)
    for task in TASKS:
        session.switch(task)
        assert_close(session.run_all(every), reference(bundle, task, every))


@pytest.mark.parametrize("fold", ["bake", "fused"])
def test_other_modes_give_the_logits_of_pytorch(
    bundle: Bundle, images: list[np.ndarray], tmp_path: Path, fold: FoldMode
) -> None:
    """With a batch of two, the last of three images beside a filler; with `fused` beside a task without masks."""
    every = np.concatenate(images)
    packs = {"kernel-task": bundle.packs["kernel-task"]}
    if fold == "fused":
        head = dataclasses.replace(packs["kernel-task"], task="head-task", method="head", masks={}, batch_norms={})
        packs["head-task"] = head
    few = dataclasses.replace(bundle, packs=packs)
    (path,) = compile_bundle(few, load_target("host"), tmp_path / "artifact", fold=fold, batch=2)
    session = Session.load(path)
    for task in packs:
        session.switch(task)
        assert_close(session.run_all(every), reference(few, task, every))
    assert session.weights_bytes == 0
    # What decodes masks takes many shapes, and alone has no cost of its own.
    assert session.manifest.operators and not any("mask" in symbol for symbol in session.manifest.operators)


# Threads and cores.


def in_a_new_thread(function: Callable[[], Any]) -> Any:
    """What a function returns in a thread of Python, for which TVM has no pool yet."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function).result()


def pool_threads(configure: Callable[[], None]) -> tuple[int, list[set[int]]]:
    """How many threads a pool has that is made so, and the cores that those of them may use which are new."""

    def make() -> tuple[int, list[set[int]]]:
        before = set(os.listdir("/proc/self/task"))
        configure()
        made = [int(name) for name in set(os.listdir("/proc/self/task")) - before]
        return tvm.get_global_func("runtime.NumThreads")(), [os.sched_getaffinity(number) for number in made]

    return in_a_new_thread(make)


needs_two_cores = pytest.mark.skipif(available_cores() < 2, reason="there is one core")


@needs_two_cores
def test_a_pool_gets_the_threads_asked_for_again_and_again() -> None:
    def ask() -> list[int]:
        counts = []
        for threads in (1, 2, 1, 2, 1000):
            use_threads(threads)
            counts.append(tvm.get_global_func("runtime.NumThreads")())
        return counts

    assert in_a_new_thread(ask) == [1, 2, 1, 2, available_cores()]


@needs_two_cores
def test_every_thread_that_runs_a_session_gets_its_threads(artifact: Path, images: list[np.ndarray]) -> None:
    session = Session.load(artifact, threads=2)
    Session.load(artifact, threads=1)  # Another session's threads are no matter.

    def run() -> int:
        session.run(images[0])
        return tvm.get_global_func("runtime.NumThreads")()

    assert [in_a_new_thread(run), run()] == [2, 2]


def test_a_session_has_at_most_a_thread_for_each_core(artifact: Path) -> None:
    counts = [start_threads(read_manifest(artifact), threads) for threads in (1, 1000)]
    assert counts == [1, tvm.get_global_func("runtime.NumThreads")()] and counts[1] <= len(usable_cores())


def test_a_session_leaves_its_caller_on_all_cores(artifact: Path, images: list[np.ndarray]) -> None:
    def load_and_run() -> set[int]:
        for threads in (None, 1):
            session = Session.load(artifact, threads=threads)
            session.run(images[0], "other-task")
        return os.sched_getaffinity(0)

    assert in_a_new_thread(load_and_run) == os.sched_getaffinity(0)


@needs_two_cores
def test_threads_are_pinned_to_the_target_s_cores_while_they_work(
    copied_artifact: Path, images: list[np.ndarray]
) -> None:
    last = max(os.sched_getaffinity(0))
    content = unsealed((copied_artifact / "manifest.json").read_text())
    # Core 9999 is one of the board's that this machine lacks.
    (copied_artifact / "manifest.json").write_text(json.dumps({**content, "cores": [last, 9999]}))

    def run() -> tuple[int, set[frozenset[int]], set[int]]:
        session = Session.load(copied_artifact)
        seen = set()
        session.trace_run(lambda *call: seen.add(frozenset(os.sched_getaffinity(0))))
        return tvm.get_global_func("runtime.NumThreads")(), seen, os.sched_getaffinity(0)

    assert in_a_new_thread(run) == (1, {frozenset({last})}, os.sched_getaffinity(0))


@needs_two_cores
def test_the_threads_of_a_pool_may_use_the_named_cores_alone() -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert pool_threads(lambda: use_threads(2, [first, second])) == (2, [{first, second}])
    # Nowhere to pin to: on this machine, too, the artifact must run.
    count, cores = pool_threads(lambda: use_threads(2, [9998, 9999]))
    assert count == 2 and all(each == os.sched_getaffinity(0) for each in cores)


def test_idle_threads_leave_the_cores_to_others(artifact: Path) -> None:
    """TVM's own setting keeps a core busy for 0.1 s after each inference; a process with OpenMP would wait for it."""
    program = """
import os, sys, time
import numpy as np
from ksm_hw.runtime.session import Session

def worked():
    threads = [f"/proc/self/task/{name}/schedstat" for name in os.listdir("/proc/self/task")]
    return sum(int(open(path).read().split()[0]) for path in threads)

session = Session.load(sys.argv[1])
images = np.zeros(session.manifest.input_shape, np.float32)
session.run(images)
time.sleep(0.5)
before = worked()
for _ in range(5):
    session.run(images)
    time.sleep(0.4)
print((worked() - before) / 5)
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TVM_")}
    command = [sys.executable, "-c", program, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    # Nanoseconds of all threads: an inference of this small network, and a millisecond or two of looking for more.
    assert float(done.stdout) < 40e6
