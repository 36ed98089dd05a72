"""ShareLoops: every parallel loop gets as many steps, so that it can be shared out without knowing its length.

TVM gives each thread one equal part of a parallel loop and waits for the slowest. What a library calls in place of
TVM's own function shares a loop out as threads become free (ksm_hw/compiler/loop_sharing.c), and is told of a loop
nothing but its body. So a parallel loop gets `UNITS` steps, each of which does its share of the iterations: some that
follow each other, or none where there are fewer iterations than steps.
"""

import tvm
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

UNITS = 256
"""Steps of a parallel loop: a power of two, so that parts of half the size are as many steps each.

With so many, 96 threads wait for an eighth of the loop's time at most. More would lengthen short loops: many steps have
no iteration.
"""


@prim_func_pass(opt_level=0, name="ShareLoops")
class ShareLoops:
    """Cuts the parallel loops of lowered functions for a CPU."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if none of its loops is parallel."""
        return func.with_body(structural_map(func.body, (tirx.For, _in_units)))


def _in_units(loop: tirx.For) -> tirx.For:
    if loop.kind != tirx.ForKind.PARALLEL:
        return loop
    dtype = loop.loop_var.ty.dtype
    unit = tirx.Var("unit", dtype)
    shift = tirx.const(UNITS.bit_length() - 1, dtype)
    whole, rest = loop.extent >> shift, loop.extent & tirx.const(UNITS - 1, dtype)

    def iterations_before(unit: tirx.Expr) -> tirx.Expr:
        # Not `unit * extent >> shift`, which overflows in loops over every value of a large map.
        return unit * whole + ((unit * rest) >> shift)

    first = iterations_before(unit)
    share = tirx.For(
        loop.loop_var, loop.min + first, iterations_before(unit + 1) - first, tirx.ForKind.SERIAL, loop.body
    )
    zero, units = tirx.const(0, dtype), tirx.const(UNITS, dtype)
    return tirx.For(unit, zero, units, tirx.ForKind.PARALLEL, share, None, loop.annotations)
