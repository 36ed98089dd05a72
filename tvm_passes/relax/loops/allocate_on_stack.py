"""AllocateOnStack: small buffers become registers.

TVM takes the accumulators of a tile from its pool of workspaces, by a call for each task. LLVM can keep values there in
registers only while nothing else in the loop touches memory, and a prefetch counts as that. So they go on the stack,
where LLVM makes registers of them early.
"""

import math

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

# More than any tile that registers hold (32 of 512 bits are 2 KiB), and than kernels that wait for a transform.
_STACK_BYTES = 8 << 10


@prim_func_pass(opt_level=0, name="AllocateOnStack")
class AllocateOnStack:
    """Leaves small buffers of scope `local` to LLVM, in functions before `LowerTVMBuiltin`."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such buffer."""
        return func.with_body(structural_map(func.body, (tirx.AllocBuffer, _on_stack)))


def _on_stack(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer:
    buffer = allocation.buffer
    values = math.prod(int(extent) for extent in buffer.shape)
    if buffer.scope() != "local" or values * buffer.dtype.itemsize > _STACK_BYTES:
        return allocation
    # What LowerTVMBuiltin looks for.
    annotations = {**allocation.annotations, "disable_lower_builtin": tirx.const(True, "bool")}
    return tirx.AllocBuffer(buffer, annotations)
