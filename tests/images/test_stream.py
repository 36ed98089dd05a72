"""Many images one after the other: in order, few at a time, and on past those that cannot be read."""

import threading
import time
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.images.stream import map_images

FILES = [Path(str(number)) for number in range(40)]


def number_of(path: Path) -> int:
    if int(path.name) % 10 == 3:
        raise UserError(f"{path} is bad")
    return int(path.name)


def test_results_come_in_order_and_failures_are_passed_on() -> None:
    failures: dict[Path, UserError] = {}

    def slow_at_first(path: Path) -> int:
        time.sleep(0.02 if path.name in "012" else 0)
        return number_of(path)

    found = list(map_images(slow_at_first, FILES, failures.__setitem__))
    assert found == [(path, int(path.name)) for path in FILES if int(path.name) % 10 != 3]
    assert {str(path): str(error) for path, error in failures.items()} == {
        n: f"{n} is bad" for n in ("3", "13", "23", "33")
    }


def test_the_first_failure_is_raised_where_nothing_else_is_asked_for() -> None:
    found = []
    with pytest.raises(UserError, match="3 is bad"):
        for _, number in map_images(number_of, FILES):
            found.append(number)
    assert found == [0, 1, 2]


def test_few_are_worked_on_ahead_and_none_when_it_ends() -> None:
    begun = []
    results = map_images(lambda path: begun.append(path), iter(FILES))
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 9  # Of four threads, two each and the one that was taken.
    results.close()
    assert len(begun) < len(FILES)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
