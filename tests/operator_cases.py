"""Operators at awkward shapes, the targets they are scheduled for, and a count of the rules that did it."""

import numpy as np
import torch
import tvm
import tvm_ffi
from torch.nn import functional
from tvm import relax
from tvm.s_tir import dlight
from tvm.target import Target
from tvm.target.codegen import llvm_get_system_cpu

HOST = Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 2})


OTHERS = {
    "avx512": Target({"kind": "llvm", "mcpu": "skylake-avx512", "num-cores": 4}),
    "sse": Target({"kind": "llvm", "mcpu": "x86-64", "num-cores": 1}),
    "neon": Target({"kind": "llvm", "mcpu": "cortex-a72", "mtriple": "aarch64-linux-gnu", "num-cores": 4}),
}


class Counting(dlight.base.ScheduleRule):
    """A rule that notes, under the rule's name, each function that it scheduled."""

    def __init__(self, rule, counts):
        self.rule, self.counts = rule, counts

    def apply(self, func, target, tunable):
        schedule = self.rule.apply(func, target, tunable)
        if schedule is not None:
            self.counts[type(self.rule).__name__] += 1
        return schedule


def function(compute, *shapes, dtypes=None):
    """A module whose `main` takes tensors of these shapes, float32 or `dtypes`, and returns what `compute` emits."""
    builder = relax.BlockBuilder()
    types = map(relax.TensorType, shapes, dtypes or ["float32"] * len(shapes))
    inputs = [relax.Var(f"x{index}", type_) for index, type_ in enumerate(types)]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(compute(builder.emit, *inputs)))
        builder.emit_func_output(result)
    return builder.get()


def lowered(module, target):
    """The module with its operators as fused loops, which no rule has scheduled."""
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    with target:
        return tvm.transform.Sequential(passes)(module)


def vectors_of(module):
    """The lengths of the vectorized loops of a module's functions."""
    found = set()

    def visit(loop):
        if loop.kind == tvm.tirx.ForKind.VECTORIZED:
            found.add(int(loop.extent))

    for one in module.functions.values():
        if isinstance(one, tvm.tirx.PrimFunc):
            tvm_ffi.structural_walk(one.body, [(tvm.tirx.For, visit)], order="post")
    return found


def values(*shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype("float32") for shape in shapes]


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


CONVOLUTIONS = {
    # batch, height, width, inputs, outputs, kernel, stride, padding (top, left, bottom, right), dilation, groups, rule
    "3x3": (1, 14, 14, 16, 32, 3, 1, (1, 1, 1, 1), 1, 1, "Convolution"),
    "rgb stem": (1, 33, 31, 3, 24, 7, 2, (3, 3, 3, 3), 1, 1, "Convolution"),
    "1x1 on a small map": (1, 7, 7, 24, 10, 1, 1, (0, 0, 0, 0), 1, 1, "Convolution"),
    "1x1 with a stride": (1, 7, 5, 10, 24, 1, 2, (0, 0, 0, 0), 1, 1, "Convolution"),
    "filled up": (2, 14, 9, 24, 58, 1, 1, (0, 0, 0, 0), 1, 1, "Convolution"),
    "filled up, 3x3 with a stride": (1, 15, 14, 6, 116, 3, 2, (1, 1, 1, 1), 1, 1, "Convolution"),
    "1x1 on one pixel": (3, 1, 1, 24, 7, 1, 1, (0, 0, 0, 0), 1, 1, "Convolution"),
    "batch 3": (3, 7, 5, 10, 24, 3, 1, (1, 1, 1, 1), 1, 1, "Convolution"),
    "asymmetric padding": (1, 8, 8, 3, 8, 3, 2, (0, 0, 1, 1), 1, 1, "Convolution"),
    "dilation": (1, 11, 9, 4, 16, 3, 1, (2, 2, 2, 2), 2, 1, "Convolution"),
    "groups": (1, 9, 9, 24, 48, 3, 1, (1, 1, 1, 1), 1, 3, "Convolution"),
    "groups of odd size": (1, 5, 5, 6, 10, 3, 1, (1, 1, 1, 1), 1, 2, "Convolution"),
    "rectangular kernel": (1, 6, 9, 5, 17, (1, 3), 1, (0, 1, 0, 1), 1, 1, "Convolution"),
    "depthwise": (1, 14, 14, 24, 24, 3, 1, (1, 1, 1, 1), 1, 24, "DepthwiseConvolution"),
    "depthwise, batch 3, odd": (3, 7, 5, 10, 10, 5, 2, (1, 2, 2, 1), 1, 10, "DepthwiseConvolution"),
    "depthwise, dilated": (1, 9, 9, 58, 58, 3, 1, (2, 2, 2, 2), 2, 58, "DepthwiseConvolution"),
    "two outputs an input": (1, 7, 7, 8, 16, 3, 1, (1, 1, 1, 1), 1, 8, "Convolution"),
}


def convolution_case(case, epilogue):
    """One of `CONVOLUTIONS`, with bias, residual and relu behind it or not: module, arrays, and PyTorch's result."""
    batch, height, width, inputs, outputs, kernel, stride, padding, dilation, groups, _ = case
    kernel_height, kernel_width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    data, weight, bias = values(
        (batch, inputs, height, width), (outputs, inputs // groups, kernel_height, kernel_width), (outputs,)
    )
    top, left, bottom, right = padding
    padded = functional.pad(torch.from_numpy(data), (left, right, top, bottom))
    expected = functional.conv2d(padded, torch.from_numpy(weight), None, stride, 0, dilation, groups).numpy()
    residual = values(expected.shape)[0]

    def compute(emit, x, w, b, r):
        result = emit(
            relax.op.nn.conv2d(x, w, stride, padding, dilation, groups, data_layout="NHWC", kernel_layout="HWIO")
        )
        return relax.op.nn.relu(emit(relax.op.add(emit(relax.op.add(result, b)), r))) if epilogue else result

    if epilogue:
        expected = np.maximum(expected + bias[:, None, None] + residual, 0)
    arrays = nhwc(data), weight.transpose(2, 3, 1, 0), bias.reshape(1, 1, 1, -1), nhwc(residual)
    return function(compute, *(array.shape for array in arrays)), arrays, nhwc(expected)


def convolution_of(data, weight, groups, out_dtype):
    """A 3×3 convolution, of arrays [N, H, W, I] and [3, 3, I/g, O], and the result that PyTorch has in float64."""

    def compute(_, x, w):
        return relax.op.nn.conv2d(x, w, 1, 1, 1, groups, "NHWC", "HWIO", out_dtype=out_dtype)

    module = function(compute, data.shape, weight.shape, dtypes=(str(data.dtype), str(weight.dtype)))
    x, w = torch.from_numpy(data.astype("float64")), torch.from_numpy(weight.astype("float64"))
    expected = functional.conv2d(x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1), padding=1, groups=groups)
    return module, nhwc(expected.numpy())


POOLING = {
    "max": (
        lambda x: relax.op.nn.max_pool2d(x, (3, 3), (2, 2), (1, 1), layout="NHWC"),
        lambda x: functional.max_pool2d(x, 3, 2, 1),
    ),
    "average": (
        lambda x: relax.op.nn.avg_pool2d(x, (2, 2), (2, 2), layout="NHWC", count_include_pad=True),
        lambda x: functional.avg_pool2d(x, 2, 2),
    ),
    "adaptive": (
        lambda x: relax.op.nn.adaptive_avg_pool2d(x, (3, 3), layout="NHWC"),
        lambda x: functional.adaptive_avg_pool2d(x, 3),
    ),
    "global": (lambda x: relax.op.mean(x, [1, 2], keepdims=True), lambda x: x.mean((2, 3), keepdim=True)),
}


OTHER_OPERATORS = {
    # A task's rewrite of a convolution weight: mask, scale, transpose to HWIO.
    "weight rewrite": (
        lambda emit, w, mask, scale: relax.op.permute_dims(
            emit(relax.op.multiply(emit(relax.op.multiply(w, mask)), scale)), [2, 3, 1, 0]
        ),
        lambda w, mask, scale: (w * mask * scale).transpose(2, 3, 1, 0),
        [(96, 33, 3, 3), (96, 33, 1, 1), (96, 1, 1, 1)],
    ),
    "large elementwise": (lambda _, x, y: relax.op.add(x, y), lambda x, y: x + y, [(3, 7, 50, 24), (24,)]),
    "softmax": (
        lambda _, x: relax.op.nn.softmax(x, -1),
        lambda x: functional.softmax(torch.from_numpy(x), -1).numpy(),
        [(3, 10)],
    ),
    "concatenated batches": (
        lambda _, x, y: relax.op.concat([x, y], 0),
        lambda x, y: np.concatenate([x, y], 0),
        [(1, 5, 7, 3), (2, 5, 7, 3)],
    ),
    "sum of everything": (lambda _, x: relax.op.sum(x), lambda x: x.sum(), [(7, 3, 5)]),
    "product of batches": (lambda _, x, y: relax.op.matmul(x, y), np.matmul, [(3, 4, 5), (3, 5, 7)]),
    "product with a transpose": (
        lambda emit, x, y: relax.op.matmul(x, emit(relax.op.permute_dims(y, [1, 0]))),
        lambda x, y: x @ y.T,
        [(1, 24), (10, 24)],
    ),
}
