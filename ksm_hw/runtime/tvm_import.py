"""How a process imports TVM that needs less than all of it."""

import functools
import logging
import os
import sys
from typing import Any

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)


def hide_torch() -> None:
    """Makes `import torch` fail in this process; call it before the first import of TVM.

    TVM's bindings import torch wherever it is installed, for seconds and hundreds of megabytes, and running an artifact
    needs none of it. A board has no torch at all, so this is also what a board does.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def import_tvm_before_torch() -> None:
    """Imports TVM with its compiler, for a process that may need torch later; does nothing where either is imported.

    TVM's Python asks its library for things that it lacks. For the first that is missing the library makes an error
    with a stack, for which it reads the symbols of all that is loaded, and torch has many. TVM's bindings would import
    torch first.
    """
    if "tvm" in sys.modules or "torch" in sys.modules:
        return
    hide_torch()
    try:
        import tvm  # noqa: F401
    finally:
        del sys.modules["torch"]


def carry_errors() -> None:
    """Lets a `UserError` and Ctrl-C, raised in Python that TVM's C++ calls, come out of it as what they are.

    TVM's C++ passes on an exception by its name, and makes a RuntimeError of one whose name nobody gave it.
    """
    import tvm_ffi

    for error in (UserError, KeyboardInterrupt):
        tvm_ffi.register_error(error.__name__, error)


def import_tvm_runtime() -> None:
    """Imports TVM for a process that only runs artifacts; does nothing where TVM is imported already.

    Left out are the compiler, a second and 150 MB, and torch and CUDA's bindings, which TVM takes streams of.

    TVM's Python has hundreds of the compiler's classes, and asks the library for each. For one that is unknown this
    makes an error with a stack of C++, for which it reads the debug information of all that is loaded: a third of a
    second with a Python that has some. So the library is asked for what it knows.
    """
    if "tvm" in sys.modules:
        return
    hide_torch()
    sys.modules.setdefault("cuda.bindings", None)  # type: ignore[arg-type]
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    import tvm_ffi

    register = tvm_ffi.register_object

    def register_known(type_key: Any, **options: Any) -> Any:
        unknown = isinstance(type_key, str) and type_key not in _known_types()
        return (lambda kind: kind) if unknown else register(type_key, **options)

    # TVM imports it under either name.
    tvm_ffi.register_object = tvm_ffi.registry.register_object = register_known  # type: ignore[assignment]
    try:
        import tvm
    finally:
        tvm_ffi.register_object = tvm_ffi.registry.register_object = register
    _log.info("TVM %s is imported without its compiler", tvm.__version__)


@functools.cache
def _known_types() -> frozenset[str]:
    """The names of the classes that the loaded libraries have; TVM loads its own before it asks for the first."""
    from tvm_ffi.registry import get_registered_type_keys

    return frozenset(map(str, get_registered_type_keys()))
