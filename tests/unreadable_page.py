"""Arrays behind which no memory is, to find who reads on. Needs NumPy alone: it runs on boards too."""

import ctypes
import mmap

import numpy as np


def before_unreadable_page(array: np.ndarray) -> np.ndarray:
    """A copy in memory right behind which no page can be read: whoever reads on dies."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, size - array.nbytes).reshape(array.shape)
    copy[...] = array
    return copy
