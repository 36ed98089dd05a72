"""FuseExpansions: a 1×1 convolution and the depthwise convolution that alone reads its result become one function.

In:  a Relax module as `FuseOps` leaves it, for a CPU.
Out: the same module; where the map between the two is larger than a core's second-level cache, `main` calls one
     primitive function in place of two. `ExpandedDepthwise` schedules it so that the map never leaves the cache.
"""

from collections import Counter
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.schedules.cpu.expanded_depthwise import expansion_pays
from tvm_passes.relax.schedules.cpu.vector_unit import VectorUnit

_PRIMITIVE = "Primitive"  # As `FuseOps` marks what it fused.


@tvm.transform.module_pass(opt_level=0, name="FuseExpansions")
class FuseExpansions:
    """Joins such pairs.

    Args:
        unit: of the CPU.
    """

    def __init__(self, unit: VectorUnit) -> None:
        self.unit = unit

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Rewrites every function that calls fused ones; those that nothing calls any more stay."""
        joiner = _Joiner(module)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function) and _PRIMITIVE not in (function.attrs or {}):
                pairs = _pairs(module, function, self.unit)
                if pairs:
                    joiner.builder_.update_func(name, joiner.join(function, pairs))
        return joiner.builder_.get()


_Pairs = dict[relax.Var, relax.VarBinding]
"""By the variable of a depthwise convolution's result, the binding of the expansion that it reads."""


@mutator
class _Joiner(PyExprMutator):
    """Joins pairs; `joined` are the functions of the whole module, by those that they were, and `pairs` one's."""

    def __init__(self, module: IRModule) -> None:
        super().__init__(module)
        self.module = module
        self.joined: dict[tuple[tvm.ir.GlobalVar, tvm.ir.GlobalVar, int], tvm.ir.GlobalVar] = {}
        self.pairs: _Pairs = {}

    def join(self, function: relax.Function, pairs: _Pairs) -> relax.Function:
        """The function with one call for each pair."""
        self.pairs = pairs
        return self.visit_expr(function)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if any(binding.var.same_as(one.var) for one in self.pairs.values()):
            return
        expansion = self.pairs.get(binding.var)
        if expansion is None:
            super().visit_var_binding_(binding)
            return
        first, second = expansion.value, binding.value
        place = next(index for index, one in enumerate(second.args) if one.same_as(expansion.var))
        key = (first.op, second.op, place)
        if key not in self.joined:
            name = f"{first.op.name_hint}_{second.op.name_hint.removeprefix('fused_')}"
            self.joined[key] = self.builder_.add_func(
                _joined(self.module[first.op], self.module[second.op], place), name
            )
        rest = [argument for index, argument in enumerate(second.args) if index != place]
        call = relax.Call(self.joined[key], [self.visit_expr(one) for one in (*first.args, *rest)])
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))


def _joined(first: relax.Function, second: relax.Function, place: int) -> relax.Function:
    """The function that computes `second`, whose parameter at `place` is what `first` computes."""
    first, second = relax.utils.copy_with_new_vars(first), relax.utils.copy_with_new_vars(second)
    second = second.bind_params({second.params[place]: first.body.body})
    bindings = [binding for one in (first, second) for block in one.body.blocks for binding in block.bindings]
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], second.body.body)
    return relax.Function([*first.params, *second.params], body, second.ret_ty, True, second.attrs)


def _pairs(module: IRModule, function: relax.Function, unit: VectorUnit) -> _Pairs:
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    uses = Counter(variable for binding in bindings for variable in relax.analysis.free_vars(binding.value))
    bound = {binding.var: binding for binding in bindings if isinstance(binding.var, relax.DataflowVar)}
    found: _Pairs = {}
    for binding in bindings:
        depthwise = _convolution(module, binding.value)
        expansion = None if depthwise is None else bound.get(binding.value.args[depthwise.place])
        pixelwise = None if expansion is None else _convolution(module, expansion.value)
        if depthwise is None or expansion is None or pixelwise is None or uses[expansion.var] > 1:
            continue
        alone = depthwise.is_depthwise and not depthwise.read_again
        fit = alone and pixelwise.is_pixelwise and pixelwise.dtype == "float32"
        if fit and expansion_pays(pixelwise.result, pixelwise.weight[-1], depthwise.weight[0], unit):
            found[binding.var] = expansion
    return found


@dataclass(frozen=True)
class _Convolution:
    """What a fused function begins with.

    Attributes:
        dtype: of data.
        place: of the data among its arguments.
        read_again: whether what follows the convolution reads the data too.
        data, weight, result: shapes.
    """

    dtype: str
    place: int
    read_again: bool
    data: tuple[int, ...]
    weight: tuple[int, ...]
    result: tuple[int, ...]

    @property
    def is_depthwise(self) -> bool:
        """Whether its weights are [kH, kW, 1, C], for C channels."""
        return len(self.weight) == 4 and self.weight[2] == 1 and self.weight[3] == self.data[-1] > 1

    @property
    def is_pixelwise(self) -> bool:
        """Whether its weights are packed, not filled up, and it computes each pixel from the one at its place."""
        packed = len(self.weight) == 5 and self.weight[0] * self.weight[-1] == self.result[-1]
        return packed and self.weight[1:3] == (1, 1) and self.data[:3] == self.result[:3]


def _convolution(module: IRModule, value: relax.Expr) -> _Convolution | None:
    """The convolution that a call of a fused function begins with, whose shape all else has; None if it is none."""
    if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
        return None
    function = module[value.op]
    if _PRIMITIVE not in (function.attrs or {}):
        return None
    call, *behind = (binding.value for binding in function.body.blocks[0].bindings)
    if not isinstance(call, relax.Call) or call.op != tvm.ir.Op.get("relax.call_tir"):
        return None
    if "conv2d" not in call.args[0].name_hint or len(call.args[1]) != 2:
        return None
    data, weight = call.args[1]
    shapes = (tuple(map(int, one.ty.shape)) for one in (data, weight, call))
    place = next((index for index, one in enumerate(function.params) if one.same_as(data)), None)
    again = any(one.same_as(data) for later in behind for one in relax.analysis.free_vars(later))
    # What is computed for all pixels at once, such as a factor of each channel, belongs to no part of a map.
    same_shape = all(
        isinstance(one.ty, relax.TensorType) and list(one.ty.shape) == list(call.ty.shape) for one in (value, *behind)
    )
    return _Convolution(str(data.ty.dtype), place, again, *shapes) if same_shape and place is not None else None
