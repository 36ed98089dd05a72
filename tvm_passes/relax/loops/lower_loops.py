"""LowerLoops: TVM's passes, from loops to what its code generators take, each only where it finds something.

Kernels that are written as loops have none of what a schedule leaves, and are many statements long. TVM's passes took
half of their time for these kernels to look for it.
"""

from collections.abc import Callable

import tvm
from tvm.ir.transform import Pass, PassContext, module_pass

WRITTEN_AS_LOOPS = "written_as_loops"
"""The attribute of a function that was written as loops, with buffers of the sizes that it needs."""

# They look for buffers of which a schedule left more than is used, conditions that padding put into loops, virtual
# threads of a GPU, sums of split loops, and layouts of shared memory.
_OF_SCHEDULES = (
    "s_tir.CompactBufferAllocation",
    "s_tir.HoistIfThenElse",
    "s_tir.InjectVirtualThread",
    "s_tir.RenormalizeSplitPattern",
    "s_tir.InjectPermutedLayout",
)


@module_pass(opt_level=0, name="LowerLoops")
class LowerLoops:
    """Lowers all functions.

    Args:
        lower: TVM's passes.
    """

    def __init__(self, lower: Pass | Callable[[tvm.IRModule], tvm.IRModule]) -> None:
        self.lower = lower

    def transform_module(self, module: tvm.IRModule, context: PassContext) -> tvm.IRModule:
        """The same functions, lowered."""
        written = {
            variable: function
            for variable, function in module.functions.items()
            if function.attrs and function.attrs.get(WRITTEN_AS_LOOPS)
        }
        scheduled = {variable: function for variable, function in module.functions.items() if variable not in written}
        lowered = self.lower(tvm.IRModule(scheduled, attrs=module.attrs))
        with PassContext(
            opt_level=context.opt_level,
            required_pass=context.required_pass,
            disabled_pass=[*context.disabled_pass, *_OF_SCHEDULES],
            instruments=context.instruments,
            config=dict(context.config),
        ):
            lowered.update(self.lower(tvm.IRModule(written)))
        return lowered
