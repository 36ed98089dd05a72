"""A network in the terms of int8: operators between named tensors, read from the graph that is lowered as well.

A tensor has the name of the layer (convolution or dense layer) that computes it, its BatchNorm and activation included;
of other operators that of the operand whose layer comes last in the network, and behind it `/` and what the operator is
(`layer1.0.conv2/addition`). Whoever reads the same network from another form of it names its tensors by this rule too,
so that ranges which were calibrated here are those of the same tensors there.
"""

import functools
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.growth import shapes_of
from ksm_hw.masks.mask_names import layer_of
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import backbone_tensors, build_backbone, head_path, widen
from ksm_hw.quantising.activations import ActivationName
from ksm_hw.quantising.scheme import MOST_PIXELS, MOST_PRODUCTS

INPUT = "input"
_aten = torch.ops.aten
_FREE = (-math.inf, math.inf)
_ACTIVATIONS: Mapping[Any, ActivationName] = {
    _aten.hardsigmoid.default: "hardsigmoid",
    _aten.hardsigmoid_.default: "hardsigmoid",
    _aten.hardswish.default: "hardswish",
    _aten.hardswish_.default: "hardswish",
    _aten.sigmoid.default: "sigmoid",
    _aten.sigmoid_.default: "sigmoid",
    _aten.silu.default: "silu",
    _aten.silu_.default: "silu",
}
_PRODUCTS = (_aten.mul.Tensor, _aten.mul_.Tensor)
# What transformers are made of, by the words of their papers: int8 knows none of it, whatever stands before it.
_OF_TRANSFORMERS: Mapping[Any, str] = {
    _aten.layer_norm.default: "LayerNorm",
    _aten.gelu.default: "GELU",
    _aten.gelu_.default: "GELU",
    _aten.scaled_dot_product_attention.default: "attention",
    _aten.softmax.int: "softmax",
}
_Node = Any  # An fx.Node, whose arguments may be anything.


@dataclass(frozen=True)
class Convolution:
    """A convolution, or with `dense` the product with a matrix; its BatchNorm and the clamp behind it.

    A BatchNorm that stands behind no layer is a depthwise 1×1 convolution with weights of 1, that has its path.

    Attributes:
        result, data: the tensors.
        layer: path of its weight and bias; `batch_norm` that of the BatchNorm, `epsilon` that one's.
        has_bias: whether the layer itself has one.
        strides, dilation: of y and x; `padding` top, left, bottom and right, with zeros.
        groups: of the channels.
        clamp: what the result is clamped to.
    """

    result: str
    data: str
    layer: str
    has_bias: bool
    dense: bool = False
    batch_norm: str | None = None
    epsilon: float = 0.0
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    clamp: tuple[float, float] = _FREE


@dataclass(frozen=True)
class Addition:
    """The sum of two tensors of one shape, clamped."""

    result: str
    left: str
    right: str
    clamp: tuple[float, float] = _FREE


@dataclass(frozen=True)
class Activation:
    """A function of each value of a tensor, that is no clamp."""

    result: str
    data: str
    function: ActivationName


@dataclass(frozen=True)
class Product:
    """The product of two tensors; one of them may have a single pixel, which stands for all."""

    result: str
    left: str
    right: str


@dataclass(frozen=True)
class Mean:
    """The mean over height and width; `keeps` says whether they stay as 1 and 1."""

    result: str
    data: str
    keeps: bool


@dataclass(frozen=True)
class WindowMean:
    """The mean of each window of some rows and columns."""

    result: str
    data: str
    window: tuple[int, int]
    strides: tuple[int, int]


@dataclass(frozen=True)
class Concatenation:
    """Tensors behind each other, along the channels."""

    result: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Rearrangement:
    """What moves or chooses values and computes none, and so works on quantised ones as it does on real ones.

    Attributes:
        result, data: the tensors; both are quantised alike.
        function: from a tensor to a tensor.
        keeps: what of the data is in the result: all of it, one of the parts into which all of it is split, or the
            largest value of each window.
    """

    result: str
    data: str
    function: Callable[[torch.Tensor], torch.Tensor]
    keeps: Literal["all", "part", "largest"] = "all"


Operator = Convolution | Addition | Activation | Product | Mean | WindowMean | Concatenation | Rearrangement


def operands(operator: Operator) -> tuple[str, ...]:
    """Names of the tensors that an operator reads."""
    match operator:
        case Addition() | Product():
            return operator.left, operator.right
        case Concatenation():
            return operator.parts
        case _:
            return (operator.data,)


@dataclass(frozen=True)
class Network:
    """What a network computes.

    Attributes:
        operators: in the order of computation.
        logits: their name.
        most_values: of a tensor of one image, the largest there is.
    """

    operators: tuple[Operator, ...]
    logits: str
    most_values: int

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Those operators that have weights."""
        return tuple(one for one in self.operators if isinstance(one, Convolution))

    def quantised_as(self) -> dict[str, str]:
        """Of each tensor but the logits the one whose range its quantisation comes from: mostly itself."""
        names = {INPUT: INPUT}
        for one in self.operators:
            names[one.result] = names[one.data] if isinstance(one, Rearrangement) else one.result
        del names[self.logits]
        return names

    def computed_tensors(self) -> list[str]:
        """Names of the tensors whose values are found in no other, in the order of computation, the logits last.

        They are the ranged ones, what is pooled of them, and the logits.
        """
        moved = {one.result for one in self.operators if isinstance(one, Rearrangement) and one.keeps != "largest"}
        return [INPUT, *(one.result for one in self.operators if one.result not in moved)]

    def ranged_tensors(self) -> list[str]:
        """Names of the tensors that ranges are needed of, in the order of computation."""
        return list(dict.fromkeys(self.quantised_as().values()))


class NotQuantisable(UserError):
    """A network with an operator that int8 does not know."""


def network_of(bundle: Bundle, pack: TaskPack) -> Network:
    """Reads the network of a task, as wide as its bundle's weights; raises as `read_network`."""
    shapes = tuple(shapes_of(bundle.tensors).items())
    return read_network(bundle.backbone, len(pack.classes), pack.preprocessing.image_size, shapes)


def operators_of(backbone: torch.nn.Module, name: str, image_size: int) -> Network:
    """Reads a backbone of this name, as wide as it is, whatever its head is; raises as `read_network`."""
    return read_network(name, 2, image_size, tuple(shapes_of(backbone_tensors(backbone)).items()))


@functools.cache  # torch.export takes seconds.
def read_network(
    backbone: str, classes: int, image_size: int, shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
) -> Network:
    """Reads a network by its name.

    Args:
        backbone: a name that `build_backbone` knows.
        classes: outputs of the head.
        image_size: height and width of the input in pixels.
        shapes: names and shapes of weights that may have grown (`shapes_of`).

    Raises:
        NotQuantisable: it has an operator that int8 does not know.
        UserError: there is no such network, or it cannot have these shapes.
    """
    model = widen(build_backbone(backbone, classes), dict(shapes)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of its own deprecated parts.
        program = torch.export.export(model, (torch.zeros(1, 3, image_size, image_size),))
    signature = program.graph_signature
    paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    (images,) = signature.user_inputs
    return _Reader(backbone, paths).read(program.graph, images, head_path(model))


class _Reader:
    """Reads one graph; the tables hold what is known of the nodes so far."""

    def __init__(self, backbone: str, paths: Mapping[str, str]) -> None:
        self.backbone = backbone
        self.paths = paths
        self.operators: dict[str, Operator] = {}
        self.names: dict[_Node, str] = {}
        self.padded: dict[_Node, tuple[_Node, tuple[int, int, int, int]]] = {}
        self.joined: dict[tuple[str, ...], str] = {}  # Of tensors that are concatenated, the result.
        self.ranks: dict[str, int] = {INPUT: 0}  # Of each tensor, the number of the layer that it has its name from.

    def read(self, graph: fx.Graph, images: str, head: str) -> Network:
        self.names = {node: INPUT for node in graph.nodes if node.name == images}
        for node in graph.nodes:
            if node.op == "call_function" and node not in self.names:
                self._visit(node)
        (output,) = (node.args[0][0] for node in graph.nodes if node.op == "output")
        logits = self.names.get(output)
        if logits != head:
            raise self._unknown(f"an operator behind its head '{head}'")
        most_values = max(node.meta["val"].numel() for node in self.names if node.target != _aten.chunk.default)
        return Network(tuple(self.operators.values()), logits, most_values)

    def _visit(self, node: _Node) -> None:
        match node.target:
            case _aten.conv2d.default | _aten.linear.default:
                self._layer(node)
            case _aten.add.Tensor | _aten.add_.Tensor if len(node.args) == 2 and not node.kwargs:
                self._addition(node)
            case target if target in _PRODUCTS and len(node.args) == 2 and _are_nodes(node.args):
                left, right = (self._name(factor) for factor in node.args)
                result = self._named(node, max(left, right, key=self._rank), "product")
                self.operators[result] = Product(result, left, right)
            case target if target in _ACTIVATIONS and len(node.args) == 1:
                self._activation(node)
            case _aten.pad.default if self._only_reader_is_convolution(node):
                left, right, top, bottom = node.args[1]
                self.padded[node] = (node.args[0], (top, left, bottom, right))
            case _aten.adaptive_avg_pool2d.default if list(node.args[1]) == [1, 1]:
                self._mean(node, keeps=True)
            case _aten.mean.dim if sorted(axis % 4 for axis in node.args[1]) == [2, 3] and _rank(node.args[0]) == 4:
                self._mean(node, keeps=len(node.args) > 2 and bool(node.args[2]))
            case _aten.avg_pool2d.default:
                self._window_mean(node)
            case _aten.batch_norm.default if _rank(node) == 4:
                self._batch_norm(node)
            case _aten.cat.default if len(node.args) > 1 and node.args[1] == 1:
                self._concatenation(node)
            case _:
                self._rearrangement(node)

    def _layer(self, node: _Node) -> None:
        """A convolution or dense layer, with the BatchNorm and the clamp that alone read it."""
        data, weight, *rest = node.args
        data, around = self.padded.get(data, (data, (0, 0, 0, 0)))
        layer = layer_of(self.paths[weight.name])
        self._check_new(layer)
        if (products := math.prod(weight.meta["val"].shape[1:])) > MOST_PRODUCTS:
            raise self._unknown(f"sums of {products} products ('{layer}'), more than {MOST_PRODUCTS}")
        options: dict[str, Any] = {"dense": True}
        if node.target == _aten.conv2d.default:
            options = _window(rest[1:], around)
        end, reader = node, _only_reader(node)
        if reader is not None and reader.target == _aten.batch_norm.default and reader.args[0] is node:
            options["batch_norm"] = layer_of(self.paths[reader.args[1].name])
            options["epsilon"] = float(reader.args[7])
            end = reader
        self.names[node] = self.names[end] = layer
        clamp, end = _clamp_behind(end)
        self.names[end] = layer
        self.ranks[layer] = len(self.ranks)
        has_bias = bool(rest) and rest[0] is not None
        self.operators[layer] = Convolution(layer, self._name(data), layer, has_bias, clamp=clamp, **options)

    def _activation(self, node: _Node) -> None:
        """One that is no clamp; a sigmoid that its own data is multiplied by is a SiLU."""
        function, end, reader = _ACTIVATIONS[node.target], node, _only_reader(node)
        is_factor = reader is not None and reader.target in _PRODUCTS and node.args[0] in reader.args
        if function == "sigmoid" and is_factor:
            function, end = "silu", reader
        data = self._name(node.args[0])
        result = self._named(node, data, function)
        self.names[end] = result
        self.operators[result] = Activation(result, data, function)

    def _addition(self, node: _Node) -> None:
        left, right = (self._name(term) for term in node.args)
        if len({tuple(term.meta["val"].shape) for term in node.args}) > 1:
            raise self._unknown("a sum of tensors of different shapes")
        clamp, end = _clamp_behind(node)
        result = self._named(node, max(left, right, key=self._rank), "addition")
        self.names[end] = result
        self.operators[result] = Addition(result, left, right, clamp)

    def _mean(self, node: _Node, keeps: bool) -> None:
        data, pixels = self._name(node.args[0]), math.prod(node.args[0].meta["val"].shape[2:])
        if pixels > MOST_PIXELS:
            raise self._unknown(f"a mean of {pixels} pixels, more than {MOST_PIXELS}")
        result = self._named(node, data, "mean")
        self.operators[result] = Mean(result, data, keeps)

    def _window_mean(self, node: _Node) -> None:
        defaults: list[Any] = [node.args[1], [0, 0], False, True, None]
        strides, padding, ceil, _, divisor = list(node.args[2:]) + defaults[len(node.args[2:]) :]
        window, strides = _pair(node.args[1]), _pair(strides or node.args[1])
        if any(_pair(padding)) or ceil or divisor is not None or math.prod(window) > MOST_PIXELS:
            raise self._unknown("a mean of windows that are padded, cut off, or too large")
        data = self._name(node.args[0])
        result = self._named(node, data, "mean")
        self.operators[result] = WindowMean(result, data, window, strides)

    def _batch_norm(self, node: _Node) -> None:
        """A BatchNorm that is no layer's own."""
        data, layer = self._name(node.args[0]), layer_of(self.paths[node.args[1].name])
        self._check_new(layer)
        clamp, end = _clamp_behind(node)
        self.names[node] = self.names[end] = layer
        self.ranks[layer] = len(self.ranks)
        groups, epsilon = node.meta["val"].shape[1], float(node.args[7])
        self.operators[layer] = Convolution(
            layer, data, layer, has_bias=False, batch_norm=layer, epsilon=epsilon, groups=groups, clamp=clamp
        )

    def _concatenation(self, node: _Node) -> None:
        """One of tensors; where all but the last are concatenated already, of that and the last."""
        parts = tuple(self._name(part) for part in node.args[0])
        if len(parts) == 1:
            self.names[node] = parts[0]
            return
        result = self._named(node, max(parts, key=self._rank), "concatenation")
        before = self.joined.get(parts[:-1])
        self.operators[result] = Concatenation(result, parts if before is None else (before, parts[-1]))
        self.joined[parts] = result

    def _rearrangement(self, node: _Node) -> None:
        function = _rearranging(node)
        keeps: Literal["all", "part", "largest"] = "largest" if node.target == _aten.max_pool2d.default else "all"
        if function is None or not isinstance(node.args[0], fx.Node):
            raise self._unknown(_in_words(node))
        source: _Node = node.args[0]
        if source.target == _aten.chunk.default:
            source, keeps = source.args[0], "part"
        data = self._name(source)
        if node.target == _aten.chunk.default:
            self.names[node] = data  # Its parts are what `getitem` takes.
            return
        result = self._named(node, data, "pooled" if keeps == "largest" else "rearranged")
        self.operators[result] = Rearrangement(result, data, function, keeps)

    def _check_new(self, layer: str) -> None:
        if layer in self.operators:
            raise self._unknown(f"a layer '{layer}' that is used twice")

    def _name(self, node: Any) -> str:
        if not isinstance(node, fx.Node) or node not in self.names:
            raise self._unknown(f"what computes {node}")
        return self.names[node]

    def _rank(self, name: str) -> int:
        return self.ranks[name]

    def _named(self, node: _Node, operand: str, what: str) -> str:
        """A new name for the result of a node, by the rule of this module."""
        base = operand.split("/")[0] + f"/{what}"
        count = 1 + sum(known == base or known.startswith(f"{base}_") for known in self.operators)
        name = base if count == 1 else f"{base}_{count}"
        self.names[node] = name
        self.ranks[name] = self.ranks[operand]
        return name

    def _only_reader_is_convolution(self, node: _Node) -> bool:
        _, amounts, *how = node.args
        plain = len(amounts) == 4 and (not how or (how[0] == "constant" and not any(how[1:])))
        return plain and all(reader.target == _aten.conv2d.default for reader in node.users)

    def _unknown(self, what: str) -> NotQuantisable:
        return NotQuantisable(f"int8 does not know {what}, which {self.backbone} has. Use float32.")


def _window(arguments: list[Any], around: tuple[int, int, int, int]) -> dict[str, Any]:
    """How a convolution moves over its data, by the arguments behind its bias and what is padded in front of it."""
    defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
    strides, (y, x), dilation, groups = list(arguments) + defaults[len(arguments) :]
    padding = tuple(own + more for own, more in zip((y, x, y, x), around, strict=True))
    return {"strides": tuple(strides), "padding": padding, "dilation": tuple(dilation), "groups": groups}


def _pair(value: Any) -> tuple[int, int]:
    """One number for y and x, or one for each."""
    y, x = value * (2 // len(value)) if isinstance(value, (list, tuple)) else (value, value)
    return int(y), int(x)


def _only_reader(node: _Node) -> _Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _clamp_behind(node: _Node) -> tuple[tuple[float, float], _Node]:
    """What alone reads a node and clamps it: the bounds, and the node of the clamp; else the node itself."""
    reader = _only_reader(node)
    if reader is not None and reader.target in (_aten.relu.default, _aten.relu_.default):
        return (0.0, math.inf), reader
    if reader is not None and reader.target in (_aten.relu6.default, _aten.relu6_.default):
        return (0.0, 6.0), reader
    if reader is not None and reader.target in (_aten.hardtanh.default, _aten.hardtanh_.default):
        given: list[Any] = list(reader.args[1:])
        low, high = given + [-1.0, 1.0][len(given) :]
        return (float(low), float(high)), reader
    return _FREE, node


def _in_words(node: _Node) -> str:
    """What a node is that int8 does not know; of a transformer all that it is made of."""
    of_transformers = dict.fromkeys(
        _OF_TRANSFORMERS[other.target] for other in node.graph.nodes if other.target in _OF_TRANSFORMERS
    )
    if of_transformers:
        return ", ".join(of_transformers)
    if node.target == _aten.adaptive_avg_pool2d.default:
        before, after = ("×".join(map(str, one)) for one in (node.args[0].meta["val"].shape[2:], node.args[1]))
        return f"mean pooling from {before} to {after} pixels (images of another size may need none)"
    return f"the operator '{node.target.__name__.partition('.')[0]}'"


def _are_nodes(arguments: tuple[Any, ...]) -> bool:
    return all(isinstance(one, fx.Node) for one in arguments)


def _rank(node: _Node) -> int:
    return int(node.meta["val"].dim())


def _rearranging(node: _Node) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a node does with a tensor of any batch size; None where it computes values."""
    rest = node.args[1:]
    match node.target:
        case _aten.dropout.default | _aten.dropout_.default | _aten.contiguous.default:
            return lambda data: data
        case _aten.adaptive_avg_pool2d.default if list(rest[0]) == list(node.args[0].meta["val"].shape[2:]):
            return lambda data: data
        case _aten.max_pool2d.default:
            return lambda data: torch.nn.functional.max_pool2d(data, *rest)
        case _aten.flatten.using_ints if rest == (1,):
            return lambda data: data.flatten(1)
        case _aten.view.default:
            sizes = list(rest[0])[1:]
            return lambda data: data.reshape(len(data), *sizes)
        case _aten.transpose.int if 0 not in rest:
            return lambda data: data.transpose(*rest)
        case _aten.chunk.default:
            return lambda data: data
        case operator.getitem if node.args[0].target == _aten.chunk.default:
            chunk, index = node.args[0].args[1:], rest[0]
            return lambda data: data.chunk(*chunk)[index]
    return None
