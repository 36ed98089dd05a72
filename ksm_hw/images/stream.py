"""Many image files, one after the other, in little memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ksm_hw.errors import UserError

_MOST_THREADS = 4  # Each may hold an image of the largest size.

Result = TypeVar("Result")
OnFailure = Callable[[Path, UserError], None]


def raise_failure(path: Path, error: UserError) -> None:
    """What to do with an image that cannot be read, where nothing else is said."""
    raise error


def map_images(
    function: Callable[[Path], Result], paths: Iterable[Path], on_failure: OnFailure = raise_failure
) -> Iterator[tuple[Path, Result]]:
    """What a function gives for each file, in order. A few are worked on ahead in threads.

    Args:
        function: from a file to what is wanted of it, which should be small; it raises UserError where that fails.
        paths: the files.
        on_failure: called with a file and its error; the file is left out. Without it the first error is raised.
    """
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    waiting: deque[tuple[Path, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(threads)

    def next_results(left: int) -> Iterator[tuple[Path, Result]]:
        while len(waiting) > left:
            path, future = waiting.popleft()
            try:
                result = future.result()
            except UserError as error:
                on_failure(path, error)
            else:
                yield path, result

    try:
        for path in paths:
            waiting.append((path, pool.submit(function, path)))
            yield from next_results(2 * threads)
        yield from next_results(0)
    finally:
        pool.shutdown(cancel_futures=True)
