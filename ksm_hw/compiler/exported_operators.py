"""Operators of torch.export's graph that TVM can read as they are, without torch's decomposition.

To decompose traces a network twice more, which takes longer than the rest of lowering. Of the usual convolutional
networks it would only turn a few operators into others. `CONVERTERS` say these as TVM says the others, so that the
module is the same either way; with any other operator in it, a network is decomposed.
"""

import operator
from collections.abc import Callable

import torch
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.base_fx_graph_translator import BaseFXGraphImporter

Converter = Callable[[fx.Node, BaseFXGraphImporter], relax.Var]

_aten = torch.ops.aten
_SUMS = {
    _aten.add.Tensor,
    _aten.add_.Tensor,
    _aten.sub.Tensor,
    _aten.sub_.Tensor,
    _aten.rsub.Tensor,
    _aten.rsub.Scalar,
}
_IN_PLACE = {_aten.relu_.default, _aten.hardtanh_.default, _aten.add_.Tensor}
_WITH_RESULTS_OF_THEIR_OWN = {
    _aten.conv2d.default,
    _aten.batch_norm.default,
    _aten.linear.default,
    _aten.relu.default,
    _aten.hardtanh.default,
    _aten.add.Tensor,
    _aten.cat.default,
    _aten.pad.default,
    _aten.max_pool2d.default,
    _aten.avg_pool2d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.mean.dim,
}
_VIEWS = {
    _aten.flatten.using_ints,
    _aten.view.default,
    _aten.transpose.int,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.chunk.default,
    operator.getitem,
}


def needs_decomposition(graph: fx.Graph) -> bool:
    """Whether a graph has an operator that is not known here, or is not known in the form that it has there."""
    return not all(_is_known(node) for node in graph.nodes if node.op == "call_function")


def misread_operators(graph: fx.Graph) -> list[str]:
    """What TVM's importer takes for something else, silently: it passes over an argument, or computes other values."""
    named = [_misread(node) for node in graph.nodes if node.op == "call_function"]
    return list(dict.fromkeys(name for name in named if name))


def _misread(node: fx.Node) -> str | None:
    match node.target:
        case target if target in _SUMS:
            factors = [*node.args[2:], *node.kwargs.values()]
            return "sums with a factor (alpha)" if any(factor != 1 for factor in factors) else None
        case _aten.avg_pool2d.default if len(node.args) > 6 and node.args[6] is not None:
            return "avg_pool2d with divisor_override"
        case _aten.selu.default | _aten.selu_.default:
            return "SELU"
    return None


def _is_known(node: fx.Node) -> bool:
    match node.target:
        case _aten.batch_norm.default:
            *tensors, training = node.args[:6]
            return not training and all(isinstance(tensor, fx.Node) for tensor in tensors)
        case _aten.chunk.default:
            # Where there are too few values for so many parts, torch makes fewer.
            return len(node.meta["val"]) == node.args[1]
        case _aten.linear.default:
            # Of more dimensions it is decomposed into a product of matrices and changes of shape.
            data, _weight, *bias = node.args
            is_matrix = isinstance(data, fx.Node) and data.meta["val"].dim() == 2
            return is_matrix and any(isinstance(one, fx.Node) for one in bias)
        case _aten.add.Tensor | _aten.add_.Tensor if not all(isinstance(term, fx.Node) for term in node.args[:2]):
            return False
    if node.target in _IN_PLACE:
        return not _is_read_elsewhere(node.args[0])
    return node.target in _WITH_RESULTS_OF_THEIR_OWN | _VIEWS


def _is_read_elsewhere(operand: object) -> bool:
    """Whether anything but the operator that changes a value in place may read it."""
    if not isinstance(operand, fx.Node) or operand.target not in _WITH_RESULTS_OF_THEIR_OWN | _IN_PLACE:
        return True
    return len(operand.users) > 1


def _batch_norm(node: fx.Node, importer: BaseFXGraphImporter) -> relax.Var:
    # TVM's own converter reads epsilon at the place of another argument.
    data, weight, bias, mean, variance = (importer.env[argument] for argument in node.args[:5])
    _training, momentum, epsilon, _cudnn = node.args[5:]
    normed = importer.block_builder.emit(
        relax.op.nn.batch_norm(data, weight, bias, mean, variance, 1, epsilon, momentum=momentum, training=False)
    )
    return importer.block_builder.emit(normed[0])


def _linear(node: fx.Node, importer: BaseFXGraphImporter) -> relax.Var:
    data, weight, bias = (importer.env[argument] for argument in node.args)
    turned = importer.block_builder.emit(relax.op.permute_dims(weight, [1, 0]))
    product = importer.block_builder.emit(relax.op.matmul(data, turned, str(data.ty.dtype)))
    return importer.block_builder.emit(relax.op.add(bias, product))


def _adaptive_average(node: fx.Node, importer: BaseFXGraphImporter) -> relax.Var:
    data, size = importer.retrieve_args(node)
    if list(size) == [1, 1]:
        return importer.block_builder.emit(relax.op.mean(data, [-1, -2], keepdims=True))
    return importer.block_builder.emit(relax.op.nn.adaptive_avg_pool2d(data, size, layout="NCHW"))


CONVERTERS: dict[str, Converter] = {
    "batch_norm.default": _batch_norm,
    "linear.default": _linear,
    "adaptive_avg_pool2d.default": _adaptive_average,
}
"""For `from_exported_program`, of a graph that is not decomposed."""
