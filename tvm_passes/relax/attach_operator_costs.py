"""AttachOperatorCosts: operators tell what they do.

In:  loop nests, and the functions that call them.
Out: the same; of each loop nest that an inference calls and whose shapes are known, the attribute `flops` has the
     floating-point operations of a call, and `bytes` the bytes of its arguments and results. What decodes masks
     (`fused`) takes masks of many shapes, and has neither.
"""

import math
from dataclasses import dataclass

import tvm
from tvm import relax, tirx
from tvm.ir.transform import PassContext
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.analysis import estimate_tir_flops

from tvm_passes.relax.join_tasks import MAIN
from tvm_passes.relax.kernels.packed_convolution import OUTPUTS
from tvm_passes.relax.schedules.base.precision import value_bytes

FLOPS = "flops"
"""Of a loop nest, see above."""
_BYTES = "bytes"


@dataclass(frozen=True)
class Cost:
    """What one call of an operator does: floating-point operations, and bytes of its arguments and results."""

    flops: int
    bytes: int


@tvm.transform.module_pass(opt_level=0, name="AttachOperatorCosts")
class AttachOperatorCosts:
    """Counts what the operators of every `main` do."""

    def transform_module(self, module: tvm.IRModule, _context: PassContext) -> tvm.IRModule:
        """The module with the attributes."""
        for variable in _called_by_main(module):
            if _is_static(module[variable]):
                cost = operator_cost(module[variable])
                module[variable] = module[variable].with_attrs({FLOPS: cost.flops, _BYTES: cost.bytes})
        return module


def operator_costs(module: tvm.IRModule) -> dict[str, Cost]:
    """The costs that were attached, by the operators' symbols in the library."""
    return {
        variable.name_hint: Cost(int(function.attrs[FLOPS]), int(function.attrs[_BYTES]))
        for variable, function in module.functions.items()
        if FLOPS in (function.attrs or {})
    }


def operator_cost(function: tirx.PrimFunc) -> Cost:
    """The cost of one call of a function whose shapes are known.

    Operations are counted over the domains of the blocks and not over the loops: a tile at the border, or a block that
    is computed anew for each tile, would count what the operator does not need. A multiply-add is two operations.
    Kernels that are written as loops have no such blocks, and tell theirs themselves.
    """
    if FLOPS in (function.attrs or {}):
        return Cost(flops=int(function.attrs[FLOPS]), bytes=sum(map(_bytes, function.params)))
    schedule = Schedule(tvm.IRModule({"main": function}))
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    return Cost(flops=sum(map(_flops, blocks)), bytes=sum(map(_bytes, function.params)))


def _flops(block: SBlock) -> int:
    """What a block does over its domain, but for channels that are filled up."""
    flops = math.prod(int(axis.dom.extent) for axis in block.iter_vars) * int(estimate_tir_flops(block.body))
    if OUTPUTS not in block.annotations:
        return flops
    return flops * int(block.annotations[OUTPUTS]) // int(block.writes[0].source.shape[-1])


def _called_by_main(module: tvm.IRModule) -> list[tvm.ir.GlobalVar]:
    mains = [
        function
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function) and variable.name_hint.startswith(MAIN)
    ]
    values = [binding.value for main in mains for block in main.body.blocks for binding in block.bindings]
    call_tir = tvm.ir.Op.get("relax.call_tir")
    calls = [value for value in values if isinstance(value, relax.Call) and value.op == call_tir]
    return list(dict.fromkeys(call.args[0] for call in calls))


def _is_static(function: tirx.PrimFunc) -> bool:
    extents = (extent for parameter in function.params for extent in parameter.ty.shape)
    return all(isinstance(extent, tirx.IntImm) for extent in extents)


def _bytes(parameter: tirx.Var) -> int:
    shape = [int(extent) for extent in parameter.ty.shape]
    return math.prod(shape) * value_bytes(str(parameter.ty.dtype))
