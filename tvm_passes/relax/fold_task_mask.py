"""FoldTaskMask: a task becomes ordinary ops on weights.

In:  `main(input, *parameters)`, a network over plain parameters, with `relax.nn.batch_norm` in inference form. A
     parameter's name is its path in the network (`layer1.0.conv1.weight`).
Out: the same `main` without BatchNorms, whose masked parameters W are read as `soft_mask · W`. Each mask adds its
     parameters (`mask_parameters`) behind the others.

     A BatchNorm over a convolution that nothing else reads is folded: with s = γ/√(σ² + ε) the weight becomes
     s[o]·soft_mask·W and the bias β + (b - μ)·s. Any other BatchNorm (DenseNet's come before the convolution) becomes
     the affine x·s + (β - μ·s).

Everything new but that affine depends on parameters alone, so `relax.transform.LiftTransformParams` can move it out of
`main`: inference then never pays for a mask.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.parameters import mask_parameters
from tvm_passes.relax.kernels.mask_decoder import MASK_DTYPE, mask_decoder
from tvm_passes.unknown_dtype import check_dtype

Shape = tuple[int, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskLayout:
    """The mask of one parameter.

    Attributes:
        shape: of the mask.
        group_size: how many input channels share a value (more than 1 in groups).
        coded: whether soft values are codes, uint8; else they are float32.
    """

    shape: Shape
    group_size: int = 1
    coded: bool = False


@tvm.transform.module_pass(opt_level=0, name="FoldTaskMask")
class FoldTaskMask:
    """Folds masks and BatchNorms into the weights of `main`.

    Args:
        masks: the mask of each masked layer, by its path, where the parameter is `<path>.weight`, or by the parameter's
            own name.
        name: goes into the names of the decoders, so that modules folded with other masks can be joined.
        rounds: whether decoders round code · step before low is added, as int8 wants it; for CPUs alone.
    """

    def __init__(self, masks: Mapping[str, MaskLayout], name: str = "", rounds: bool = False) -> None:
        self.masks = masks
        self.name = name
        self.rounds = rounds

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrites `main`."""
        folder = _Folder(module, self.masks, self.name, self.rounds)
        module = folder.fold()
        clean = [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
        return tvm.transform.Sequential(clean)(module)


@mutator
class _Folder(PyExprMutator):
    def __init__(self, module: tvm.IRModule, masks: Mapping[str, MaskLayout], name: str, rounds: bool) -> None:
        super().__init__(module)
        self.module = module
        self.masks = masks
        self.name = name
        self.rounds = rounds
        self.mask_parameters: dict[str, list[relax.Var]] = {}
        self.decoders: dict[tuple[int, int, bool], tvm.ir.GlobalVar] = {}
        self.uses = _count_uses(module["main"])

    def fold(self) -> tvm.IRModule:
        main = self.module["main"]
        self.mask_parameters = {layer: _mask_parameters(layer, layout) for layer, layout in self.masks.items()}
        self.parameters = {parameter.name: parameter for parameter in main.params}
        body = self.visit_expr(main.body)
        added = [parameter for parameters in self.mask_parameters.values() for parameter in parameters]
        folded = relax.Function([*main.params, *added], body, main.ret_ty, attrs=main.attrs)
        self.builder_.update_func(self.module.get_global_var("main"), folded)
        return self.builder_.get()

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        self.builder_._begin_dataflow_block()
        for layer, layout in self.masks.items():
            weight = self.parameters[layer if layer in self.parameters else f"{layer}.weight"]
            self.set_var_remap(weight, self._masked(layer, layout, weight))
        for binding in block.bindings:
            self.visit_binding(binding)
        return self.builder_._end_block()

    def _masked(self, layer: str, layout: MaskLayout, weight: relax.Var) -> relax.Var:
        rows, columns = layout.shape[0], math.prod(layout.shape[1:])
        check_dtype("FoldTaskMask", weight.name, weight.ty.dtype, MASK_DTYPE)
        key = (rows, columns, layout.coded)
        if key not in self.decoders:
            decoder = mask_decoder(*key, self.rounds)
            self.decoders[key] = self.builder_.add_func(decoder, f"unpack_mask{self.name}_{rows}x{columns}")
        flat = relax.call_tir(
            self.decoders[key], self.mask_parameters[layer], out_ty=relax.TensorType((rows, columns), MASK_DTYPE)
        )
        mask = relax.op.reshape(flat, layout.shape)
        if layout.group_size > 1:
            inputs = int(weight.ty.shape[1])
            mask = relax.op.repeat(mask, layout.group_size, axis=1)
            mask = relax.op.strided_slice(mask, axes=[1], begin=[0], end=[inputs])
        return self.builder_.emit(relax.op.multiply(weight, mask))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        original = call.args[0] if call.args else None
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.nn.batch_norm"):
            return call
        data, gamma, beta, mean, variance = call.args
        epsilon = relax.const(call.attrs.epsilon, str(variance.ty.dtype))
        scale = self.builder_.emit(gamma / relax.op.sqrt(variance + epsilon))
        layer = gamma.name.removesuffix(".weight")
        folded = self._fold_into_convolution(layer, original, data, scale, beta, mean)
        if folded is None:
            shift = self.builder_.emit(beta - mean * scale)
            folded = self.builder_.emit(data * _channels(scale)) + _channels(shift)
        return relax.Tuple([self.builder_.emit(folded), mean, variance])

    def _fold_into_convolution(
        self, layer: str, original: relax.Expr, data: relax.Expr, scale: relax.Expr, beta: relax.Expr, mean: relax.Expr
    ) -> relax.Expr | None:
        """The convolution with BatchNorm `layer` in its weight; None where that is not possible."""
        convolution, bias = self._split_bias(data)
        if convolution is None:
            _log.info("BatchNorm %s becomes an affine: it stands behind no convolution", layer)
            return None
        if self.uses.get(original, 0) != 1:
            _log.info("BatchNorm %s becomes an affine: something else reads the convolution before it", layer)
            return None
        _log.debug("BatchNorm %s is folded into the weight of its convolution", layer)
        weight = self.builder_.emit(convolution.args[1] * relax.op.reshape(scale, (-1, 1, 1, 1)))
        shift = beta - mean * scale if bias is None else beta + (bias - mean) * scale
        scaled = relax.Call(convolution.op, [convolution.args[0], weight], convolution.attrs)
        return self.builder_.emit(scaled) + _channels(self.builder_.emit(shift))

    def _split_bias(self, data: relax.Expr) -> tuple[relax.Call | None, relax.Expr | None]:
        """The convolution that `data` is, and its bias [O]: data = conv2d(…) or data = conv2d(…) + reshape(bias)."""
        call = self.lookup_binding(data)
        if _is_call(call, "relax.nn.conv2d"):
            return call, None
        if _is_call(call, "relax.add"):
            convolution, bias = (self.lookup_binding(argument) for argument in call.args)
            if _is_call(convolution, "relax.nn.conv2d") and _is_call(bias, "relax.reshape"):
                return convolution, bias.args[0]
        return None, None


def _is_call(expression: Any, op: str) -> bool:
    return isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get(op)


def _channels(vector: relax.Expr) -> relax.Expr:
    """A vector [C] in a shape that broadcasts over [N, C, H, W]."""
    return relax.op.reshape(vector, (1, -1, 1, 1))


def _count_uses(function: relax.Function) -> dict[relax.Var, int]:
    uses: dict[relax.Var, int] = {}

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call):
            operands = expression.args
        elif isinstance(expression, relax.Tuple):
            operands = expression.fields
        else:
            return
        for operand in operands:
            uses[operand] = uses.get(operand, 0) + 1

    relax.analysis.post_order_visit(function, visit)
    return uses


def _mask_parameters(layer: str, layout: MaskLayout) -> list[relax.Var]:
    zeros = tvm.tirx.Var("zeros", "int64")
    return [
        relax.Var(parameter.name, relax.TensorType(parameter.shape, parameter.dtype))
        for parameter in mask_parameters(layer, layout.shape, layout.coded, zeros)
    ]
