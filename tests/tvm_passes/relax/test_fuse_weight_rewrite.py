"""FuseWeightRewrite: what becomes a kernel, what stays, and what is said of it."""

import logging

import pytest
import torch
import tvm
from folded_networks import (
    CLASSES,
    PostActivation,
    kernels_called,
    layouts_of,
    lower,
    network_with_statistics,
    random_masks,
)
from operator_cases import HOST, OTHERS
from torch import nn
from tvm import relax

from tvm_passes.relax.fuse_weight_rewrite import FuseWeightRewrite
from tvm_passes.relax.kernels.mask_decoder import mask_decoder
from tvm_passes.relax.pipeline import fold_tasks
from tvm_passes.unknown_dtype import UnknownDtype


def scaled_weight(dtype: str, norm: bool) -> tvm.IRModule:
    """A function of a weight [8, 4, 1, 1], times the scale of a BatchNorm if there is one, permuted to [1, 1, 4, 8]."""
    builder = relax.BlockBuilder()
    weight = relax.Var("weight", relax.TensorType((8, 4, 1, 1), dtype))
    gamma, variance = (relax.Var(name, relax.TensorType((8,), dtype)) for name in ("gamma", "variance"))
    with builder.function("rewrite", [weight, gamma, variance]):
        with builder.dataflow():
            value = weight
            if norm:
                deviation = builder.emit(relax.op.sqrt(builder.emit(relax.op.add(variance, relax.const(1e-3, dtype)))))
                scale = builder.emit(relax.op.reshape(builder.emit(relax.op.divide(gamma, deviation)), (8, 1, 1, 1)))
                value = builder.emit(relax.op.multiply(weight, scale))
            result = builder.emit_output(relax.op.permute_dims(value, [2, 3, 1, 0]))
        builder.emit_func_output(result)
    return builder.get()


def masked_without_permutation() -> tvm.IRModule:
    """A function of a weight [8, 4] times its mask."""
    builder = relax.BlockBuilder()
    types = [("weight", (8, 4), "float32"), ("bits", (4,), "uint8"), ("scale", (9,), "float32")]
    types += [("row_start", (8,), "int32"), ("scale_range", (2,), "float32")]
    weight, *mask = (relax.Var(name, relax.TensorType(shape, dtype)) for name, shape, dtype in types)
    with builder.function("rewrite", [weight, *mask]):
        with builder.dataflow():
            decoder = builder.add_func(mask_decoder(8, 4, False), "unpack_mask")
            decoded = builder.emit(relax.call_tir(decoder, mask, out_ty=relax.TensorType((8, 4), "float32")))
            flat = builder.emit(relax.op.reshape(decoded, (8, 4)))
            result = builder.emit_output(relax.op.multiply(weight, flat))
        builder.emit_func_output(result)
    return builder.get()


def test_a_weight_of_an_unknown_dtype_is_an_error_that_names_it() -> None:
    with pytest.raises(UnknownDtype, match="FuseWeightRewrite knows float32, and weight is float16"):
        FuseWeightRewrite(HOST)(scaled_weight("float16", norm=True))


def test_a_permutation_of_an_unknown_dtype_stays_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    module = scaled_weight("float16", norm=False)
    with caplog.at_level(logging.INFO, "tvm_passes"):
        fused = FuseWeightRewrite(HOST)(module)
    assert kernels_called(fused["rewrite"]) == []
    assert "weight stays a permutation: it is float16" in caplog.text


def test_a_mask_that_stays_a_kernel_of_its_own_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tvm_passes"):
        fused = FuseWeightRewrite(HOST)(masked_without_permutation())
    assert kernels_called(fused["rewrite"]) == ["unpack_mask"]
    assert "bits is decoded by a kernel of its own: no permuted weight is multiplied by it" in caplog.text


def test_nothing_of_a_fused_chain_is_left() -> None:
    network = network_with_statistics(PostActivation())
    masks = random_masks(network, "kernel")
    folded, _ = fold_tasks(lower(network), {"test": layouts_of(masks, "kernel")}, HOST)
    fused = FuseWeightRewrite(HOST)(folded)
    again = relax.transform.DeadCodeElimination()(fused)
    function, other = (module["rewrite_weights_test"] for module in (fused, again))
    assert sum(len(block.bindings) for block in function.body.blocks) == sum(
        len(block.bindings) for block in other.body.blocks
    )
    assert {name.rstrip("0123456789") for name in kernels_called(function)} == {"rewrite_weight"}


class Filled(nn.Module):
    """A convolution whose output channels are filled up: narrow vectors alone divide them."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, outputs, 1), nn.BatchNorm2d(outputs)
        self.head = nn.Linear(outputs, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)))


@pytest.mark.parametrize("outputs", [58, 63])
def test_channels_are_filled_up_by_the_kernel_that_masks(outputs: int) -> None:
    network = network_with_statistics(Filled(outputs))
    masks = random_masks(network, "kernel")
    folded, _ = fold_tasks(lower(network), {"test": layouts_of(masks, "kernel")}, OTHERS["avx512"])
    fused = FuseWeightRewrite(OTHERS["avx512"])(folded)
    before, after = (module["rewrite_weights_test"] for module in (folded, fused))
    assert "nn.pad" in before.script() and "nn.pad" not in after.script()
    assert {name.rstrip("0123456789") for name in kernels_called(after)} == {"rewrite_weight"}
