"""WriteIntegerKernels: convolutions of bytes are written as loops.

In:  descriptions (`kernels/integer_kernel.py`) with the way that a rule or a record of a tune chose.
Out: kernels, with the attributes of their descriptions.
"""

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext

from tvm_passes.relax.kernels.integer_kernel import written
from tvm_passes.relax.kernels.integer_vectors import integer_vectors


@tvm.transform.module_pass(opt_level=0, name="WriteIntegerKernels")
class WriteIntegerKernels:
    """Writes the kernels of the current target's CPU."""

    def transform_module(self, module: tvm.IRModule, _context: PassContext) -> tvm.IRModule:
        """The module without descriptions."""
        vectors = integer_vectors(tvm.target.Target.current(allow_none=False))
        if vectors is not None:
            for variable, function in module.functions_items():
                if isinstance(function, tirx.PrimFunc):
                    module[variable] = written(function, vectors)
        return module
