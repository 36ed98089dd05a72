"""Memory that Python freed, given back to the system."""

import ctypes


def give_back_freed_memory() -> None:
    """Gives back what lies free between memory in use: of loading an artifact as much as a tenth of what stays.

    glibc keeps it else, for what may be allocated later; other C libraries are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
