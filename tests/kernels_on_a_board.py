"""Runs kernels of a library where there is TVM's runtime alone: a program, `KERNELS.so ARGUMENTS.npz RESULTS.npz`.

The arrays `NAME/PLACE/0`, … are arguments of the kernel NAME; the last is its result. Memory ends behind those that
fill cache lines, which TVM's alignment asks for.
"""

import sys

import numpy as np
import tvm
from unreadable_page import before_unreadable_page


def main() -> None:
    """The program."""
    library, arguments, results = sys.argv[1:]
    kernels, arrays = tvm.runtime.load_module(library), np.load(arguments)
    calls: dict[str, list[np.ndarray]] = {}
    for key in arrays.files:
        calls.setdefault(key.rpartition("/")[0], []).append(arrays[key])
    found = {}
    for call, values in calls.items():
        tensors = [
            tvm.runtime.from_dlpack(before_unreadable_page(value))
            if value.nbytes % 64 == 0
            else tvm.runtime.tensor(value)
            for value in values
        ]
        kernels[call.partition("/")[0]](*tensors)
        found[call] = tensors[-1].numpy()
    np.savez(results, **found)


if __name__ == "__main__":
    main()
