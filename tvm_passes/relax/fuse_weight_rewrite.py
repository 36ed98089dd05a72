"""FuseWeightRewrite: all that is done to one weight becomes one kernel.

In:  a Relax module for a CPU, in which masks and BatchNorms are folded into weights (`FoldTaskMask`): the weight,
     multiplied by its mask (decode → reshape → repeat → slice), multiplied by a BatchNorm's scale, permuted to
     [kH, kW, I, O] or [I, O], packed into blocks of output channels or transformed for Winograd's form. All but the
     permutation may be missing.
Out: the same module; each such chain is one call of a kernel (`kernels/weight_rewrite.py`), which reads and writes
     memory once. What stands behind a chain stays, and so does a chain of any other form.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.kernels.mask_decoder import MASK_DECODER
from tvm_passes.relax.kernels.mask_decoding import decoding_table
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.weight_layouts import WEIGHT_TRANSFORM

_Factor = TypeVar("_Factor")


@tvm.transform.module_pass(opt_level=0, name="FuseWeightRewrite")
class FuseWeightRewrite:
    """Fuses what is done to weights.

    Args:
        target: a CPU.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Rewrites every function."""
        fuser = _Fuser(module, self.target)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                fuser.chains = _Reader(module, function).chains()
                fuser.builder_.update_func(name, fuser.visit_expr(function))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


@dataclass(frozen=True)
class _Mask:
    """A decoded mask: its values in each row, how many input channels share one, and its four parameters."""

    columns: int
    group: int
    parts: tuple[relax.Expr, ...]


@dataclass(frozen=True)
class _Norm:
    """The scale of a BatchNorm: its ε, and its weight and variance."""

    epsilon: float
    parts: tuple[relax.Expr, ...]


@dataclass(frozen=True)
class _Chain:
    """A chain that one kernel can do: what, and on what.

    Attributes:
        rewrite: what is done.
        weight: the weight.
        mask: bits, scale, row_start and scale_range of the mask, or nothing.
        norm: weight and variance of the BatchNorm, or nothing.
    """

    rewrite: WeightRewrite
    weight: relax.Expr
    mask: tuple[relax.Expr, ...]
    norm: tuple[relax.Expr, ...]


@mutator
class _Fuser(PyExprMutator):
    def __init__(self, module: IRModule, target: tvm.target.Target) -> None:
        super().__init__(module)
        self.target = target
        self.chains: Mapping[relax.Var, _Chain] = {}
        self.kernels: dict[WeightRewrite, tvm.ir.GlobalVar] = {}
        self.table = relax.const(decoding_table(), "int8")

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        chain = self.chains.get(binding.var)
        if chain is None:
            super().visit_var_binding_(binding)
            return
        rewrite = chain.rewrite
        shared = rewrite.shared
        if shared not in self.kernels:
            self.kernels[shared] = self.builder_.add_func(weight_rewrite(shared, self.target), "rewrite_weight")
        weight, *others = (self.visit_expr(argument) for argument in (chain.weight, *chain.mask, *chain.norm))
        table = [self.table] if chain.mask else []
        out_type = relax.TensorType(rewrite.result_shape, "float32")
        call = relax.call_tir(self.kernels[shared], [weight, *table, *others], out_ty=out_type)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))


class _Reader:
    """Reads the chains of a function.

    Attributes:
        calls: the call that each variable is bound to.
        users: for each variable those whose calls read it; None for what is no call.
    """

    def __init__(self, module: IRModule, function: relax.Function) -> None:
        self.module = module
        self.calls: dict[relax.Var, relax.Call] = {}
        self.users: dict[relax.Var, list[relax.Var | None]] = {}
        for block in function.body.blocks:
            for binding in block.bindings:
                is_call = isinstance(binding.value, relax.Call)
                if is_call:
                    self.calls[binding.var] = binding.value
                for used in relax.analysis.free_vars(binding.value):
                    self.users.setdefault(used, []).append(binding.var if is_call else None)

    def chains(self) -> dict[relax.Var, _Chain]:
        """The chains, by the variable of their last value."""
        found = [self._chain(variable) for variable, call in self.calls.items() if _is(call, "permute_dims")]
        return dict(pair for pair in found if pair is not None)

    def _chain(self, permuted: relax.Var) -> tuple[relax.Var, _Chain] | None:
        """The chain with this permutation, and the variable that it ends with; None if it is another permutation."""
        weight = self.calls[permuted].args[0]
        shape = _shape(weight)
        order = [*range(2, len(shape)), 1, 0]
        if len(shape) < 2 or weight.ty.dtype != "float32" or _axes(self.calls[permuted]) != order:
            return None
        weight, norm = self._factor(weight, self._norm)
        weight, mask = self._factor(weight, self._mask)
        if _shape(weight) != shape:
            return None
        packed, transformed = self._packed(permuted), self._transformed(permuted)
        end = next((variable for variable in (packed, transformed) if variable is not None), permuted)
        rewrite = WeightRewrite(
            shape,
            columns=0 if mask is None else mask.columns,
            run=1 if mask is None else _run(shape, mask),
            coded=mask is not None and mask.parts[1].ty.dtype == "uint8",
            lanes=_shape(end)[-1],
            packed=packed is not None,
            epsilon=None if norm is None else norm.epsilon,
            tile=self._mark(end, WEIGHT_TRANSFORM),
        )
        return end, _Chain(rewrite, weight, () if mask is None else mask.parts, () if norm is None else norm.parts)

    def _factor(
        self, product: relax.Expr, read: Callable[[relax.Expr], _Factor | None]
    ) -> tuple[relax.Expr, _Factor | None]:
        """A product without the factor that can be read, and that; or the value itself and None."""
        call = self.calls.get(product)
        if call is not None and _is(call, "multiply"):
            for factor, other in (call.args, reversed(call.args)):
                if (found := read(factor)) is not None:
                    return other, found
        return product, None

    def _norm(self, scale: relax.Expr) -> _Norm | None:
        """The BatchNorm of which this is the scale, as [O, 1, 1, 1]."""
        divided = self._operands(self._operand(scale, "reshape"), "divide")
        added = self._operands(self._operand(divided[1], "sqrt"), "add") if divided else []
        if not added or not isinstance(added[1], tvm.ir.GenericConst):
            return None
        return _Norm(float(added[1].value.numpy()), (divided[0], added[0]))

    def _mask(self, mask: relax.Expr) -> _Mask | None:
        """The mask that this is."""
        repeated = self._operand(mask, "strided_slice")
        group = 1
        if repeated is not None:
            if (mask := self._operand(repeated, "repeat")) is None:
                return None
            group = int(self.calls[repeated].attrs.repeats)
        decoded = self._operand(mask, "reshape")
        if self._mark(decoded, MASK_DECODER) is None:
            return None
        return _Mask(_shape(decoded)[1], group, tuple(self.calls[decoded].args[1].fields))

    def _mark(self, variable: relax.Expr | None, attribute: str) -> int | None:
        """An attribute of the kernel whose result a variable is; None if it has none."""
        call = self.calls.get(variable)
        if call is None or not _is(call, "call_tir"):
            return None
        value = (self.module[call.args[0]].attrs or {}).get(attribute)
        return None if value is None else int(value)

    def _operands(self, variable: relax.Expr | None, operator: str) -> list[relax.Expr]:
        """The operands of an operator that a variable is bound to; none if it is bound to another."""
        call = self.calls.get(variable)
        return list(call.args) if call is not None and _is(call, operator) else []

    def _operand(self, variable: relax.Expr | None, operator: str) -> relax.Expr | None:
        return next(iter(self._operands(variable, operator)), None)

    def _packed(self, weight: relax.Var) -> relax.Var | None:
        """A weight [kH, kW, I, O], or [I, O], packed to [O / lanes, kH, kW, I, lanes], if that is all that reads it."""
        blocks = self._only_user(weight, "reshape")
        packed = self._only_user(blocks, "permute_dims")
        if blocks is None or packed is None:
            return None
        *same, _outputs = _shape(weight)
        *found, _blocks, _lanes = _shape(blocks)
        rank = len(same)
        is_packed = found == same and _axes(self.calls[packed]) == [rank, *range(rank), rank + 1]
        return packed if is_packed else None

    def _transformed(self, weight: relax.Var) -> relax.Var | None:
        """A weight [3, 3, I, O] transformed for Winograd's form, if that is all that reads it."""
        transformed = self._only_user(weight, "call_tir")
        return None if self._mark(transformed, WEIGHT_TRANSFORM) is None else transformed

    def _only_user(self, variable: relax.Var | None, operator: str) -> relax.Var | None:
        users = self.users.get(variable, [])
        is_only = len(users) == 1 and users[0] is not None and _is(self.calls[users[0]], operator)
        return users[0] if is_only else None


def _run(shape: tuple[int, ...], mask: _Mask) -> int:
    """How many neighbouring values of a row of a weight share a value of the mask."""
    _, inputs, *kernel = shape
    if mask.group > 1:
        return mask.group * math.prod(kernel)
    return inputs * math.prod(kernel) // mask.columns


def _is(call: relax.Call, operator: str) -> bool:
    return bool(call.op == tvm.ir.Op.get(f"relax.{operator}"))


def _axes(permute: relax.Call) -> list[int]:
    axes = permute.attrs.axes
    return [*reversed(range(int(permute.args[0].ty.ndim)))] if axes is None else [int(axis) for axis in axes]


def _shape(expression: relax.Expr) -> tuple[int, ...]:
    """The shape; () if not all of it is known."""
    shape = expression.ty.shape
    values = shape.values if isinstance(shape, relax.ShapeExpr) else []
    return tuple(map(int, values)) if all(isinstance(extent, tvm.tirx.IntImm) for extent in values) else ()
