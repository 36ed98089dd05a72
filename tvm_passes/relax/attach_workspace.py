"""AttachWorkspace: functions tell how much memory their plan takes.

In:  Relax functions whose memory is planned (`relax.transform.StaticPlanBlockMemory`).
Out: the same functions; the attribute `workspace_bytes` of each has the bytes of activations that it holds at once.
"""

import tvm
from tvm import relax

_WORKSPACE_BYTES = "workspace_bytes"


@relax.transform.function_pass(opt_level=0, name="AttachWorkspace")
class AttachWorkspace:
    """Adds up what a function allocates."""

    def transform_function(
        self, function: relax.Function, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> relax.Function:
        """The function with its attribute."""
        return function.with_attr(_WORKSPACE_BYTES, _storage_bytes(function))


def workspace_bytes(function: relax.Function) -> int:
    """What was attached to a function."""
    return int(function.attrs[_WORKSPACE_BYTES])


def _storage_bytes(function: relax.Function) -> int:
    allocation = tvm.ir.Op.get("relax.memory.alloc_storage")
    bound = [binding.value for block in function.body.blocks for binding in block.bindings]
    return sum(
        int(value.args[0].values[0]) for value in bound if isinstance(value, relax.Call) and value.op == allocation
    )
