"""What a pass raises where values have a type that it was not written for."""

from collections.abc import Collection

import tvm_ffi


@tvm_ffi.register_error  # TVM calls the passes: of errors that it does not know only the message comes through.
class UnknownDtype(TypeError):
    """A pass met a type of values that it does not know, and would be wrong or slow to leave them alone.

    Its only argument is the message, because TVM makes it anew from that.
    """


def check_dtype(place: str, variable: str, dtype: object, *known: str) -> None:
    """Checks the type of values.

    Args:
        place: the pass or kernel.
        variable: whose values these are: a parameter's path in the network.
        dtype: their type.
        known: the types that are known there.

    Raises:
        UnknownDtype: it is another.
    """
    if str(dtype) not in known:
        raise unknown_dtype(place, f"'{variable}'", str(dtype), known)


def unknown_dtype(place: str, variable: str, dtype: str, known: Collection[str]) -> UnknownDtype:
    """The error.

    Args:
        place: the pass or kernel.
        variable: whose values these are.
        dtype: their type.
        known: the types that are known there.
    """
    return UnknownDtype(f"{place} knows {', '.join(sorted(known))}, and {variable} is {dtype}.")
