"""What the operators of a compiled network do: floating-point operations, and bytes that they read and write."""

import math

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.analysis import estimate_tir_flops

from ksm_hw.artifact.manifest import OperatorCost


def operator_costs(module: tvm.IRModule) -> dict[str, OperatorCost]:
    """The costs of the loop nests that a `main` calls, by their symbols in the library.

    Args:
        module: scheduled loops and the functions that call them.

    Returns:
        Those whose shapes are known; what decodes masks (`fused`) takes masks of many shapes.
    """
    called = {variable.name_hint: module[variable] for variable in _called_by_main(module)}
    return {symbol: operator_cost(function) for symbol, function in called.items() if _is_static(function)}


def operator_cost(function: tirx.PrimFunc) -> OperatorCost:
    """The cost of one call of a function whose shapes are known.

    Operations are counted over the domains of the blocks and not over the loops: a tile at the border, or a block that
    is computed anew for each tile, would count what the operator does not need. A multiply-add is two operations.
    """
    schedule = Schedule(tvm.IRModule({"main": function}))
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    flops = sum(
        math.prod(int(axis.dom.extent) for axis in block.iter_vars) * estimate_tir_flops(block.body) for block in blocks
    )
    return OperatorCost(flops=int(flops), bytes=sum(map(_bytes, function.params)))


def _called_by_main(module: tvm.IRModule) -> list[tvm.ir.GlobalVar]:
    called: dict[tvm.ir.GlobalVar, None] = {}

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            called[expression.args[0]] = None

    for variable, function in module.functions.items():
        if isinstance(function, relax.Function) and variable.name_hint.startswith("main"):
            relax.analysis.post_order_visit(function, visit)
    return list(called)


def _is_static(function: tirx.PrimFunc) -> bool:
    extents = (extent for parameter in function.params for extent in parameter.ty.shape)
    return all(isinstance(extent, tirx.IntImm) for extent in extents)


def _bytes(parameter: tirx.Var) -> int:
    shape = [int(extent) for extent in parameter.ty.shape]
    return math.prod(shape) * np.dtype(str(parameter.ty.dtype)).itemsize
