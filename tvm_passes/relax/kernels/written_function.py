"""What all functions have that are written as loops, statement by statement, and not scheduled."""

import contextlib
from collections.abc import Iterator

from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.loops.lower_loops import WRITTEN_AS_LOOPS

ATTRIBUTES = {"op_pattern": 8, "tirx.noalias": True, "tirx.is_scheduled": True, WRITTEN_AS_LOOPS: True}
"""Of the function: nothing is fused with it, and no schedule is looked for."""


@contextlib.contextmanager
def root_block() -> Iterator[None]:
    """The block around a body: TVM looks for one in every function."""
    with T.sblock("root"):
        T.reads([])
        T.writes([])
        yield
