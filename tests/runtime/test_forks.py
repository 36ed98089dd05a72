"""Forked processes: a session goes on in them, they open their own, and they end; or they say at once why not."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ksm_hw.errors import UserError
from ksm_hw.runtime.forks import check_process
from ksm_hw.runtime.remote_session import RemoteSession
from ksm_hw.runtime.session import Session
from ksm_hw.runtime.threads import use_threads

SECONDS = 30  # In which a child has long answered, unless it hangs.


def in_a_fork(function: Callable[[], object]) -> object:
    """What a function gives in a forked process, or the text of its UserError."""
    forking = multiprocessing.get_context("fork")
    answers = forking.SimpleQueue()

    def answer() -> None:
        try:
            answers.put(function())
        except UserError as error:
            answers.put(str(error))

    process = forking.Process(target=answer)
    process.start()
    process.join(SECONDS)
    try:
        assert process.exitcode == 0, "it hangs" if process.exitcode is None else f"it ended with {process.exitcode}"
    finally:
        process.kill()
    return answers.get()


@pytest.fixture(scope="module")
def session(artifact: Path) -> Session:
    return Session.load(artifact, threads=2)


@pytest.fixture(scope="module")
def images(session: Session) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(session.manifest.input_shape).astype(np.float32)


def test_a_session_goes_on_in_a_fork(session: Session, images: np.ndarray) -> None:
    def run() -> list[list[float]]:
        return [session.run(images, task)[0].tolist() for task in session.tasks] + [session.run_all(images)[0].tolist()]

    here = run()
    assert in_a_fork(run) == here and in_a_fork(lambda: in_a_fork(run)) == here
    assert run() == here


def test_a_fork_opens_a_session_of_its_own(artifact: Path, session: Session, images: np.ndarray) -> None:
    def run() -> list[float]:
        own = Session.load(artifact, threads=2)
        own.switch("other-task")
        return own.run(images)[0].tolist()

    assert in_a_fork(run) == run()


def test_a_fork_waits_for_the_runs_of_other_threads(session: Session, images: np.ndarray) -> None:
    task = session.tasks[0]
    expected, stop = session.run(images, task)[0].tolist(), threading.Event()

    def run_on() -> None:
        while not stop.is_set():
            session.run(images, task)

    other = threading.Thread(target=run_on)
    other.start()
    try:
        for _ in range(5):
            assert in_a_fork(lambda: session.run(images, task)[0].tolist()) == expected
    finally:
        stop.set()
        other.join()


def test_what_else_uses_the_pool_of_a_thread_that_forked_is_told(session: Session) -> None:
    use_threads(2)
    assert "spawn" in str(in_a_fork(lambda: use_threads(2)))


def test_what_lives_in_one_process_alone_is_told_in_a_fork(session: Session) -> None:
    class Connection:
        def call(self, command: str, /, *arguments: object) -> float:
            return 0.5

    remote = RemoteSession(Connection(), session.manifest, session.descriptions, session.task)
    assert remote.switch(session.task) == 0.5
    assert f"was opened in process {os.getpid()}" in str(in_a_fork(lambda: remote.switch(session.task)))
    with pytest.raises(UserError, match=r"The device 'opencl' was opened in process 1, .*spawn"):
        check_process(1, "The device 'opencl'")


@pytest.mark.parametrize(("end", "status"), [("", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_a_fork_ends_as_it_would(artifact: Path, end: str, status: int) -> None:
    """TVM's part of the end of a process waits for threads that a fork does not have."""
    program = f"""
import os, sys, time, atexit
from ksm_hw.runtime.tvm_import import import_tvm_runtime
import_tvm_runtime()
from ksm_hw.runtime.threads import use_threads
use_threads(2)
time.sleep(0.1)  # TVM's threads are asleep.
if os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
atexit.register(print, "registered", end=" ")
print("said", end=" ")
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout) == (status, "said registered "), done.stderr
