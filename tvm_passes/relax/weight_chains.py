"""Reads what is done to weights: for each the chain of ops from the parameter to the layout that `main` wants."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import tvm
from tvm import relax
from tvm.ir import IRModule

from tvm_passes.relax.kernels.integer_weights import INTEGER_WEIGHT, layer_options
from tvm_passes.relax.kernels.mask_decoder import MASK_DECODER
from tvm_passes.relax.kernels.mask_decoding import DTYPE
from tvm_passes.relax.kernels.quantised import ROUNDED_PRODUCT
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite
from tvm_passes.relax.weight_layouts import WEIGHT_TRANSFORM
from tvm_passes.unknown_dtype import unknown_dtype

_Factor = TypeVar("_Factor")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chain:
    """A chain that one kernel can do: what, and on what.

    Attributes:
        rewrite: what is done.
        weight: the weight.
        mask: bits, scale, row_start and scale_range of the mask, or nothing.
        norm: weight and variance of the BatchNorm, or nothing.
        layer: of a weight that is quantised the layer's bias, or what the BatchNorm gives it of, and the quantisations
            of its data and results; else nothing.
    """

    rewrite: WeightRewrite
    weight: relax.Expr
    mask: tuple[relax.Expr, ...]
    norm: tuple[relax.Expr, ...]
    layer: tuple[relax.Expr, ...]

    @property
    def operands(self) -> tuple[relax.Expr, ...]:
        """All that it reads."""
        return (self.weight, *self.mask, *self.norm, *self.layer)


def read_chains(module: IRModule, function: relax.Function) -> dict[relax.Var, Chain]:
    """The chains of a function of a module, by the variable of their last value.

    Raises:
        UnknownDtype: a mask or a BatchNorm is folded into a weight of a type that no kernel is for.
    """
    reader = _Reader(module, function)
    found = [reader.chain(variable) for variable, call in reader.calls.items() if _is(call, "permute_dims")]
    chains = dict(pair for pair in found if pair is not None)
    read = {part for chain in chains.values() for part in chain.mask}
    for bits in reader.masks():
        if bits not in read:
            _log.info("%s is decoded by a kernel of its own: no permuted weight is multiplied by it", _name(bits))
    return chains


@dataclass(frozen=True)
class _Mask:
    """A decoded mask.

    Attributes:
        columns: values in each row.
        group: how many input channels share one.
        rounds: whether code · step is rounded before low is added.
        parts: its four parameters.
    """

    columns: int
    group: int
    rounds: bool
    parts: tuple[relax.Expr, ...]


@dataclass(frozen=True)
class _Norm:
    """The scale of a BatchNorm: its ε, and its weight and variance."""

    epsilon: float
    parts: tuple[relax.Expr, ...]


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

    def masks(self) -> list[relax.Expr]:
        """The bits of all masks that are decoded."""
        decoders = [variable for variable in self.calls if self._mark(variable, MASK_DECODER) is not None]
        return [self.calls[variable].args[1].fields[0] for variable in decoders]

    def chain(self, permuted: relax.Var) -> tuple[relax.Var, Chain] | None:
        """The chain with this permutation, and the variable that it ends with; None if it is another permutation."""
        weight = self.calls[permuted].args[0]
        shape, dtype = _shape(weight), weight.ty.dtype
        if len(shape) < 2 or _axes(self.calls[permuted]) != [*range(2, len(shape)), 1, 0]:
            return None
        weight, norm = self._factor(weight, self._norm)
        weight, mask = self._factor(weight, self._mask)
        if _shape(weight) != shape:
            _log.info("%s stays ops: a factor makes it larger, from %s to %s", _name(weight), _shape(weight), shape)
            return None
        if dtype != DTYPE:
            if mask is not None or norm is not None:
                raise unknown_dtype("FuseWeightRewrite", _name(weight), dtype, [DTYPE])
            _log.info("%s stays a permutation: it is %s, and there are kernels for %s", _name(weight), dtype, DTYPE)
            return None
        packed, transformed = self._packed(permuted), self._only_kernel(permuted, WEIGHT_TRANSFORM)
        quantised = self._only_kernel(permuted, INTEGER_WEIGHT)
        mark = self._mark(quantised, INTEGER_WEIGHT)
        integers, clamp, packing = (None, None, None) if mark is None else layer_options(mark)
        layer = () if quantised is None else tuple(self.calls[quantised].args[1].fields[1:])
        shift = self._shift(layer[0], norm) if layer else ()
        outputs = _shape(permuted)[-1]
        coded = mask is not None and mask.parts[1].ty.dtype == "uint8"
        end = next((variable for variable in (packed, transformed, quantised) if variable is not None), permuted)
        rewrite = WeightRewrite(
            shape,
            columns=0 if mask is None else mask.columns,
            run=1 if mask is None else _run(shape, mask),
            coded=coded,
            rounds=mask is not None and mask.rounds and coded,
            lanes=_shape(end)[-1] if quantised is None else outputs // (1 if packing is None else packing.groups),
            packed=packed is not None,
            zeros=0 if packed is None else math.prod(_shape(packed)[:: len(shape)]) - outputs,
            epsilon=None if norm is None else norm.epsilon,
            tile=None if transformed is None else int(self._mark(transformed, WEIGHT_TRANSFORM)),
            integers=integers,
            clamp=clamp,
            shifted=bool(shift),
            packing=packing,
        )
        _log.debug("%s: %s", _name(weight), rewrite)
        masked, scaled = (() if one is None else one.parts for one in (mask, norm))
        return end, Chain(rewrite, weight, masked, scaled, (*shift, *layer[1:]) if shift else layer)

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
        return self._norm_of(self._operand(scale, "reshape"))

    def _norm_of(self, factor: relax.Expr | None) -> _Norm | None:
        """The BatchNorm of which this is the scale, as [O]."""
        divided = self._operands(factor, "divide")
        added = self._operands(self._operand(divided[1], "sqrt"), "add") if divided else []
        if not added or not isinstance(added[1], tvm.ir.GenericConst):
            return None
        return _Norm(float(added[1].value.numpy()), (divided[0], added[0]))

    def _shift(self, bias: relax.Expr, norm: _Norm | None) -> tuple[relax.Expr, ...]:
        """The β and mean of a BatchNorm, where a bias is β - μ · its scale; else nothing."""
        while (reshaped := self._operand(bias, "reshape")) is not None:  # To [1, O, 1, 1] and back to [O].
            bias = reshaped
        taken = self._operands(bias, "subtract")
        if norm is None or not taken or self._mark(taken[1], ROUNDED_PRODUCT) is None:
            return ()
        mean, scale = self.calls[taken[1]].args[1].fields
        divided = self._norm_of(scale)
        return (taken[0], mean) if divided == norm else ()

    def _mask(self, mask: relax.Expr) -> _Mask | None:
        """The mask that this is."""
        repeated = self._operand(mask, "strided_slice")
        group = 1
        if repeated is not None:
            if (mask := self._operand(repeated, "repeat")) is None:
                return None
            group = int(self.calls[repeated].attrs.repeats)
        decoded = self._operand(mask, "reshape")
        rounds = self._mark(decoded, MASK_DECODER)
        if rounds is None:
            return None
        return _Mask(_shape(decoded)[1], group, bool(rounds), tuple(self.calls[decoded].args[1].fields))

    def _mark(self, variable: relax.Expr | None, attribute: str) -> Any:
        """An attribute of the kernel whose result a variable is; None if it has none."""
        call = self.calls.get(variable)
        if call is None or not _is(call, "call_tir"):
            return None
        return (self.module[call.args[0]].attrs or {}).get(attribute)

    def _operands(self, variable: relax.Expr | None, operator: str) -> list[relax.Expr]:
        """The operands of an operator that a variable is bound to; none if it is bound to another."""
        call = self.calls.get(variable)
        return list(call.args) if call is not None and _is(call, operator) else []

    def _operand(self, variable: relax.Expr | None, operator: str) -> relax.Expr | None:
        return next(iter(self._operands(variable, operator)), None)

    def _packed(self, weight: relax.Var) -> relax.Var | None:
        """A weight [kH, kW, I, O], or [I, O], packed to [O / lanes, kH, kW, I, lanes], if that is all that reads it.

        O may have been filled up with zeros behind the weight's.
        """
        padded = self._only_user(weight, "nn.pad")
        blocks = self._only_user(weight if padded is None else padded, "reshape")
        packed = self._only_user(blocks, "permute_dims")
        if blocks is None or packed is None:
            return None
        *same, _outputs = _shape(weight)
        if padded is not None and not _fills_up(self.calls[padded], len(same)):
            return None
        *found, _blocks, _lanes = _shape(blocks)
        rank = len(same)
        is_packed = found == same and _axes(self.calls[packed]) == [rank, *range(rank), rank + 1]
        return packed if is_packed else None

    def _only_kernel(self, weight: relax.Var, attribute: str) -> relax.Var | None:
        """What a kernel with an attribute makes of a weight, if that is all that reads it."""
        made = self._only_user(weight, "call_tir")
        return None if self._mark(made, attribute) is None else made

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


def _fills_up(pad: relax.Call, axis: int) -> bool:
    """Whether zeros are added behind the values of one axis, the last, and nowhere else."""
    attrs = pad.attrs
    *others, behind = (int(amount) for amount in attrs.pad_width)
    zeros = attrs.pad_mode == "constant" and float(attrs.pad_value) == 0.0
    return zeros and others == [0] * (2 * axis + 1) and behind > 0


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


def _name(expression: relax.Expr) -> str:
    """What a message calls a value."""
    return str(expression.name) if isinstance(expression, relax.Var) else "a constant"
