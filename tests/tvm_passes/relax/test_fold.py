"""FoldTaskMask and what comes after it: which ops are left in `main`, and that they still compute the task."""

import copy
import dataclasses
import logging
from collections import Counter

import numpy as np
import pytest
import torch
import tvm
from folded_networks import (
    CLASSES,
    MASK_PARAMETERS,
    SIDE,
    PostActivation,
    PreActivation,
    layouts_of,
    lower,
    network_with_statistics,
    pack_of,
    random_masks,
)
from operator_cases import HOST as THIS_MACHINE
from torch import nn
from tvm import relax

from ksm_hw.artifact.parameters import task_parameters
from ksm_hw.masks.mask_format import GRANULARITIES, Granularity
from ksm_hw.masks.mask_names import weight_of
from ksm_hw.masks.soft_mask import PackedMask, broadcast_mask, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from tvm_passes.relax.fold_task_mask import FoldTaskMask
from tvm_passes.relax.kernels.mask_decoder import mask_decoder
from tvm_passes.relax.pipeline import fold_tasks

HOST = tvm.target.Target("llvm")  # Without fused multiply-adds.


class ReadTwice(nn.Module):
    """A convolution whose result goes into a BatchNorm and past it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.Linear(6, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images)
        return self.head((self.norm(x).relu() + x).mean((2, 3)))


class Attention(nn.Module):
    """Four patches that attend to each other, behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, SIDE // 2, SIDE // 2), nn.LayerNorm(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(self.patches(images).flatten(2).transpose(1, 2))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def expected_logits(
    network: nn.Module, masks: dict[str, PackedMask], granularity: Granularity, images: torch.Tensor
) -> np.ndarray:
    masked = copy.deepcopy(network)
    with torch.inference_mode():
        for layer, mask in masks.items():
            weight = masked.get_parameter(weight_of(layer))
            weight *= torch.from_numpy(broadcast_mask(unpack_mask(mask), tuple(weight.shape), granularity).copy())
        return masked(images).numpy()


def computed_logits(
    module: tvm.IRModule, names: list[str], network: nn.Module, pack: TaskPack, images: torch.Tensor
) -> np.ndarray:
    tensors = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    arrays = task_parameters(names, pack, tensors, CLASSES)
    machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
    return machine["main"](*map(tvm.runtime.tensor, [images.numpy(), *arrays])).numpy()


def ops(function: relax.Function) -> Counter[str]:
    found: Counter[str] = Counter()

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and isinstance(expression.op, tvm.ir.Op):
            found[expression.op.name.removeprefix("relax.")] += 1

    relax.analysis.post_order_visit(function, visit)
    return found


NETWORKS = {
    "post-activation": PostActivation,
    "pre-activation": PreActivation,
    "attention": Attention,
    "read twice": lambda: ReadTwice(bias=False),
    "read twice, with bias": lambda: ReadTwice(bias=True),
}


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("post-activation", granularity) for granularity in GRANULARITIES]
    + [(name, "kernel") for name in [*NETWORKS][1:]],
)
def test_folded_network_computes_the_task_without_batch_norms(name: str, granularity: Granularity) -> None:
    network = network_with_statistics(NETWORKS[name]())
    masks = random_masks(network, granularity)
    folded = FoldTaskMask(layouts_of(masks, granularity), "_test")(lower(network))
    assert ops(folded["main"])["nn.batch_norm"] == 0
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected = expected_logits(network, masks, granularity, images)
    assert np.abs(expected - expected_logits(network, {}, granularity, images)).max() > 1e-2, "masks must matter"
    names = [parameter.name for parameter in folded["main"].params[1:]]
    found = computed_logits(folded, names, network, pack_of(network, masks, granularity), images)
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def lifted_ops(network: nn.Module, masks: dict[str, PackedMask]) -> tuple[Counter[str], list[str]]:
    """Ops and parameters of what runs at each inference."""
    folded = FoldTaskMask(layouts_of(masks, "kernel"), "_test")(lower(network))
    main = relax.transform.LiftTransformParams()(folded)["main"]
    return ops(main), [parameter.name for parameter in main.params]


def test_batch_norms_behind_convolutions_leave_nothing_but_a_bias() -> None:
    network = network_with_statistics(PostActivation())
    found, _ = lifted_ops(network, random_masks(network, "kernel"))
    assert found["nn.conv2d"] == 3 and found["matmul"] == 2
    # Three biases of convolutions, those of the two linear layers.
    assert found["add"] == 5
    assert not {"multiply", "subtract", "divide", "sqrt", "rsqrt", "repeat", "strided_slice", "call_tir"} & found.keys()


def test_batch_norms_before_convolutions_become_affine() -> None:
    network = network_with_statistics(PreActivation())
    found, _ = lifted_ops(network, random_masks(network, "kernel"))
    assert found["multiply"] == 2 and found["nn.conv2d"] == 2
    assert not {"subtract", "divide", "sqrt", "rsqrt", "call_tir"} & found.keys()


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_that_is_read_twice_runs_once_and_keeps_its_value(bias: bool) -> None:
    network = network_with_statistics(ReadTwice(bias))
    found, _ = lifted_ops(network, random_masks(network, "kernel"))
    assert found["nn.conv2d"] == 1 and found["multiply"] == 1


def test_the_log_says_why_a_batch_norm_was_not_folded(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tvm_passes"):
        for network in (PreActivation(), ReadTwice(bias=False), PostActivation()):
            FoldTaskMask({}, "_test")(lower(network_with_statistics(network)))
    assert [record.message for record in caplog.records] == [
        "BatchNorm norm becomes an affine: something else reads the convolution before it",
        "BatchNorm last_norm becomes an affine: it stands behind no convolution",
        "BatchNorm norm becomes an affine: something else reads the convolution before it",
    ]


def test_the_log_says_how_weights_lie(caplog: pytest.LogCaptureFixture) -> None:
    network = network_with_statistics(PostActivation())
    with caplog.at_level(logging.INFO, "tvm_passes"):
        fold_tasks(lower(network), {"kernel": layouts_of(random_masks(network, "kernel"), "kernel")}, HOST)
    first, depthwise, biased = (record.message for record in caplog.records)
    assert first.startswith("first.weight is packed in blocks of")
    assert depthwise == "depthwise.weight stays as it is: its convolution is depthwise"
    assert biased.startswith("biased.weight is packed in blocks of")


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_inference_never_pays_for_a_mask(granularity: Granularity) -> None:
    network = network_with_statistics(PostActivation())
    masks = random_masks(network, granularity)
    layouts = {"masked": layouts_of(masks, granularity), "unmasked": {}}
    module, functions = fold_tasks(lower(network), layouts, HOST)
    main = module[functions["masked"].main]
    # Not only as many ops: the very same function.
    assert functions["masked"].main == functions["unmasked"].main
    alone, plain = fold_tasks(lower(network), {"unmasked": {}}, HOST)
    assert ops(main) == ops(alone[plain["unmasked"].main])
    assert not [parameter.name for parameter in main.params if parameter.name.startswith("mask/")]
    # What it calls are the two convolutions that are not depthwise.
    assert ops(main)["multiply"] == 0 and ops(main)["call_tir"] == 2
    assert ops(module[functions["masked"].rewrite])["call_tir"] == len(masks)
    assert [name for name in functions["masked"].parameters if name.endswith("/bits")] == [
        f"mask/{layer}/bits" for layer in masks
    ]


def test_fused_keeps_the_masks_in_main() -> None:
    network = network_with_statistics(PostActivation())
    masks = random_masks(network, "kernel")
    module, functions = fold_tasks(lower(network), {"kernel": layouts_of(masks, "kernel")}, HOST, fused=True)
    assert functions["kernel"].rewrite is None
    assert ops(module[functions["kernel"].main])["call_tir"] == len(masks)


def test_layers_that_are_not_masked_are_left_alone() -> None:
    network = network_with_statistics(PostActivation())
    masks = {"biased": random_masks(network, "kernel")["biased"]}
    folded = FoldTaskMask(layouts_of(masks, "kernel"), "_test")(lower(network))
    assert ops(folded["main"])["call_tir"] == 1
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    names = [parameter.name for parameter in folded["main"].params[1:]]
    found = computed_logits(folded, names, network, pack_of(network, masks), images)
    assert np.allclose(found, expected_logits(network, masks, "kernel", images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("bits", [32, 8, 4, 0])
@pytest.mark.parametrize(("shape", "ones"), [((37, 11), 0.6), ((8, 16), 0.0), ((5, 1), 0.5), ((3, 7), 1.0)])
def test_the_compiled_decoder_equals_unpack_mask(shape: tuple[int, int], ones: float, bits: int, rounds: bool) -> None:
    """Bit for bit where the CPU has no fused multiply-add, or a decoder rounds before it adds."""
    generator = np.random.default_rng(shape[0])
    values = generator.uniform(0.1, 0.5, shape).astype(np.float32) if bits else np.zeros(shape, np.float32)
    packed = pack_mask(np.where(generator.random(shape) < ones, np.float32(1), values), bits)  # type: ignore[arg-type]
    pack = dataclasses.replace(pack_of(ReadTwice(bias=False), {}), masks={"layer": packed})
    arrays = task_parameters(MASK_PARAMETERS, pack, {}, CLASSES)
    decoder = mask_decoder(*shape, packed.coded, rounds).with_attr("global_symbol", "unpack_mask")
    compiled = tvm.compile(tvm.IRModule({"unpack_mask": decoder}), target=THIS_MACHINE if rounds else HOST)
    mask = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
    compiled["unpack_mask"](*map(tvm.runtime.tensor, arrays), mask)
    assert mask.numpy().tobytes() == unpack_mask(packed).tobytes()
