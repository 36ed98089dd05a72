"""From scheduled loops to what LLVM takes: TVM's own passes, and two more around them.

TVM takes the accumulators of a tile from its pool of workspaces, by a call for each task. LLVM can keep values there in
registers only while nothing else in the loop touches memory, and a prefetch counts as that. So they go on the stack,
where LLVM makes registers of them early.
"""

import math

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext, Sequential
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline
from tvm.tirx.transform import prim_func_pass

from tvm_passes.relax.prefetch import InsertPrefetch
from tvm_passes.relax.statements import replaced

CPU_PIPELINE = "ksm-hw-cpu"
# More than any tile that registers hold: 32 registers of 512 bits are 2 KiB.
_STACK_BYTES = 4 << 10


@prim_func_pass(opt_level=0, name="AllocateOnStack")
class AllocateOnStack:
    """Leaves small buffers of scope `local` to LLVM, in functions before `LowerTVMBuiltin`."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it has no such buffer."""
        body = replaced(func.body, _on_stack)
        return func if body.same_as(func.body) else func.with_body(body)


def _on_stack(statement: tirx.Stmt) -> tirx.Stmt | None:
    if not isinstance(statement, tirx.AllocBuffer) or statement.buffer.scope() != "local":
        return None
    values = math.prod(int(extent) for extent in statement.buffer.shape)
    if values * statement.buffer.dtype.itemsize > _STACK_BYTES:
        return None
    # What LowerTVMBuiltin looks for.
    annotations = {**statement.annotations, "disable_lower_builtin": tirx.const(True, "bool")}
    return tirx.AllocBuffer(statement.buffer, annotations)


def _cpu_pipeline() -> tuple[tvm.transform.Pass, object, object]:
    lower, finalize_host, finalize_device = default_s_tir_pipeline()

    def finalize() -> tvm.transform.Pass:
        return Sequential([AllocateOnStack(), finalize_host()])

    return Sequential([InsertPrefetch(), lower]), finalize, finalize_device


register_tir_pipeline(CPU_PIPELINE, _cpu_pipeline)
