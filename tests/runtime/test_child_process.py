"""Child processes that answer commands: what goes there and back, what is told on the way, and how they end."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from ksm_hw.errors import UserError
from ksm_hw.runtime.child_process import ChildProcess, child_process

TESTS = Path(__file__).resolve().parents[1]


def answering(listeners: dict[str, Callable[[Any], Any]] | None = None) -> AbstractContextManager[ChildProcess]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    return child_process("answering_process", "The test's process", "Write it anew.", variables, listeners)


@pytest.fixture
def process() -> Iterator[ChildProcess]:
    with answering() as started:
        yield started


def test_answers_come_back_whatever_libraries_print(process: ChildProcess) -> None:
    assert [process.call("add", 1, number) for number in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
def test_arrays_go_there_and_back(process: ChildProcess, dtype: str) -> None:
    # More than a pipe holds, and in another order than C's.
    array = np.arange(300 * 400, dtype=dtype).reshape(300, 400)
    doubled = process.call("double", 2, array.T)
    assert doubled.dtype == dtype
    np.testing.assert_array_equal(doubled, 2 * array)
    assert process.call("double", 2, np.zeros((0, 3), dtype)).shape == (3, 0)


def test_what_the_user_can_mend_is_told_and_the_process_goes_on(process: ChildProcess) -> None:
    with pytest.raises(UserError, match=r"^no milk here$"):
        process.call("refuse", "milk")
    assert process.call("add", 2, 2) == 4


def test_listeners_are_told_and_asked_before_the_result() -> None:
    told: list[int] = []
    with answering({"counted": told.append, "doubled": lambda number: 2 * number}) as process:
        assert process.call("count", 3) == 6 and told == [0, 1, 2]
        assert process.call("add", 1, 1) == 2


def test_a_process_that_ends_leaves_its_last_words(process: ChildProcess) -> None:
    message = "^The test's process ended with status 3: Write it anew. Its last words:\nthese are the last words$"
    with pytest.raises(UserError, match=message):
        process.call("die", 3)
    with pytest.raises(UserError, match="ended with status 3"):
        process.call("add", 1, 1)


def test_a_process_that_crashes_tells_the_signal(process: ChildProcess) -> None:
    with pytest.raises(UserError, match="was ended by SIGABRT: Write it anew"):
        process.call("abort")


def test_a_command_that_takes_too_long_ends_the_process() -> None:
    with answering({"counted": time.sleep, "doubled": lambda number: number}) as process:
        # Within its time nothing happens, then neither.
        assert process.call("count", 1, seconds=60) == 1
        start = time.monotonic()
        with pytest.raises(UserError, match=r"was ended by SIGKILL \(perhaps the memory ran out\): "):
            process.call("count", 6, seconds=2)
        assert time.monotonic() - start < 30


def test_a_process_ends_with_its_block() -> None:
    with answering() as process:
        assert process.call("add", 1, 1) == 2
        child = psutil.Process(process._process.pid)
    assert not child.is_running()


def test_of_a_traceback_what_was_raised_is_told(process: ChildProcess) -> None:
    with pytest.raises(UserError, match=r"Its last words:\nKeyError: 'no such command'$") as told:
        process.call("no such command")
    assert "Traceback" not in str(told.value)
