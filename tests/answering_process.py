"""A child process for tests of `child_process`: it answers, fails, prints and dies as it is asked to."""

import os
import sys

import numpy as np

from ksm_hw.errors import UserError
from ksm_hw.runtime.child_process import ParentProcess


def add(left: int, right: int) -> int:
    print("libraries print where they want")
    return left + right


def double(factor: int, array: np.ndarray) -> np.ndarray:
    return factor * array.T


def refuse(what: str) -> None:
    raise UserError(f"no {what} here")


def die(status: int) -> None:
    print("these are the last words", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    parent = ParentProcess()

    def count(to: int) -> int:
        for number in range(to):
            parent.tell("counted", number)
        return parent.ask("doubled", to)

    parent.serve({"add": add, "double": double, "refuse": refuse, "die": die, "abort": os.abort, "count": count})
