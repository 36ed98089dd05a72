"""Quantise: what of a network is computed in integers, what stays float, and how often values are converted."""

import logging
import re
from collections import Counter

import pytest
import torch
import tvm
from folded_networks import CLASSES, PostActivation, PreActivation, kernels_called, layouts_of, lower, random_masks
from torch import nn
from tvm import relax

from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from tvm_passes.relax.pipeline import TaskFunctions, fold_tasks, fuse_kernels
from tvm_passes.relax.quantise import QUANTISATION, TABLE
from tvm_passes.relax.weight_chains import read_chains

HOST = tvm.target.Target("llvm")
# What converts between real values and quantised ones, or from one quantisation to another.
CONVERSIONS = {"quantise_input", "requantise", "logits", "rescale"}


class Joining(nn.Module):
    """A residual addition, a concatenation, pooling and shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.first(images).relu(), 2)
        x = nn.functional.dropout(nn.functional.adaptive_avg_pool2d(x, x.shape[2:]), training=False, inplace=True)
        x = torch.cat([x, (x + self.second(x)).clamp(0, 6)], 1)
        x = x.reshape(len(x), 2, 8, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(x.mean((2, 3)))


class Excited(nn.Module):
    """Every activation that is looked up, and squeeze-and-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 1)
        self.squeeze, self.excite, self.head = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        functional = nn.functional
        x = functional.silu(self.second(functional.hardswish(functional.hardsigmoid(self.first(images)))))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head((gate * x).mean((2, 3)))


class Unknown(nn.Module):
    """An operator that int8 does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.first(images).tanh().mean((2, 3)))


def quantised(
    network: nn.Module, *granularities: str, target: tvm.target.Target = HOST
) -> tuple[tvm.IRModule, dict[str, TaskFunctions]]:
    layouts = {name: layouts_of(random_masks(network, name), name) for name in granularities}  # type: ignore[arg-type]
    return fold_tasks(lower(network), layouts or {"unmasked": {}}, target, integers=True)


def conversions(main: relax.Function) -> Counter[str]:
    names = [name.rstrip("0123456789") for name in kernels_called(main)]
    return Counter(name for name in names if name in CONVERSIONS)


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        # Of five layers the last one's sums are the logits.
        (PostActivation, {"quantise_input": 1, "requantise": 4, "logits": 1}),
        # The two parts that are joined get the quantisation of the whole.
        (Joining, {"quantise_input": 1, "requantise": 2, "rescale": 2, "logits": 1}),
        # BatchNorms before a convolution, and one before the mean, are depthwise convolutions.
        (PreActivation, {"quantise_input": 1, "requantise": 4, "rescale": 2, "logits": 1}),
        # What is looked up or multiplied goes from bytes to bytes.
        (Excited, {"quantise_input": 1, "requantise": 4, "logits": 1}),
    ],
)
def test_values_stay_integers_from_the_image_to_the_logits(network: type[nn.Module], expected: dict[str, int]) -> None:
    module, functions = quantised(network(), "kernel")
    main = module[functions["kernel"].main]
    assert conversions(main) == expected
    (block,) = main.body.blocks
    types = Counter(str(binding.var.ty.dtype) for binding in block.bindings)
    assert types["float32"] == 1, "the logits alone"
    assert set(types) == {"float32", "uint8", "int32"}


def test_instructions_of_a_cpu_requantise_where_they_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"})
    module, functions = quantised(Joining(), "kernel", target=target)
    main = module[functions["kernel"].main]
    assert conversions(main) == {"quantise_input": 1, "rescale": 2, "logits": 1}
    (block,) = main.body.blocks
    types = Counter(str(binding.var.ty.dtype) for binding in block.bindings)
    assert set(types) == {"float32", "uint8"}, "sums of 32 bits stay in registers"


def test_activations_are_looked_up_in_tables_that_are_parameters() -> None:
    module, functions = quantised(Excited(), "kernel")
    entry = functions["kernel"]
    names = [name.removeprefix(TABLE) for name in entry.parameters if name.startswith(TABLE)]
    assert names == [
        "hardsigmoid/first:first/hardsigmoid",
        "hardswish/first/hardsigmoid:first/hardswish",
        "silu/second:second/silu",
        "sigmoid/excite:excite/sigmoid",
    ]
    called = Counter(name.rstrip("0123456789") for name in kernels_called(module[entry.main]))
    assert called["look_up"] == 4 and called["multiply"] == 1
    assert len([one for one in module.get_global_vars() if one.name_hint.startswith("look_up")]) == 2, "by shape"


@pytest.mark.parametrize("integers", [True, False])
def test_products_of_codes_are_rounded_for_integers_alone(integers: bool) -> None:
    """Each bit of int8 is stated; in float32 a fused multiply-add is as good, and quicker."""
    network = Joining()
    masks = {layer: pack_mask(unpack_mask(mask), 8) for layer, mask in random_masks(network, "kernel").items()}
    layouts = {"kernel": layouts_of(masks, "kernel")}
    module, functions = fold_tasks(lower(network), layouts, HOST, integers=integers)
    chains = read_chains(module, module[functions["kernel"].rewrite]).values()
    assert [(chain.rewrite.coded, chain.rewrite.rounds) for chain in chains if chain.mask] == [(True, integers)] * len(
        masks
    )


def test_scales_and_zero_points_are_parameters_that_rewriting_takes() -> None:
    module, functions = quantised(Joining(), "kernel")
    entry = functions["kernel"]
    names = [name.removeprefix(QUANTISATION) for name in entry.parameters if name.startswith(QUANTISATION)]
    assert names == ["input", "first", "second", "second/addition", "second/concatenation", "second/mean"]
    # What an inference takes are the results of rewriting alone.
    image, *weights = module[entry.main].params
    assert len(weights) == len(module[entry.rewrite].ret_ty.fields)
    assert {str(weight.ty.dtype) for weight in weights} == {"int8", "int32", "float32"}
    assert str(image.ty.dtype) == "float32"


def test_a_dump_names_each_tensor_and_what_it_is_computed_in() -> None:
    module, functions = quantised(Joining())
    text = module[functions["unmasked"].main].script()
    assert re.search(r'second_addition = R.call_tir\(add, .*out_ty=R.Tensor\(\(1, 5, 5, 8\), dtype="uint8"\)\)', text)


def test_tasks_of_other_masks_share_the_inference_and_its_kernels() -> None:
    module, functions = quantised(PostActivation(), "kernel", "element")
    assert functions["kernel"].main == functions["element"].main
    assert functions["kernel"].rewrite != functions["element"].rewrite
    sums = [variable for variable in module.get_global_vars() if variable.name_hint.startswith("conv2d_sums")]
    assert len(sums) == 3


def test_products_of_vectors_are_rounded_before_anything_is_added() -> None:
    """A multiply-add that a CPU has would round once, and a bias would depend on the CPU."""
    module, functions = quantised(PostActivation(), "kernel")
    rewrite = module[functions["kernel"].rewrite]
    assert Counter(name.rstrip("0123456789") for name in kernels_called(rewrite))["product"] == 3


def test_a_weight_becomes_integers_in_one_kernel() -> None:
    module, functions = quantised(PostActivation(), "kernel")
    fused = fuse_kernels(module, HOST)
    called = Counter(name.rstrip("0123456789_") for name in kernels_called(fused[functions["kernel"].rewrite]))
    assert called["rewrite_weight"] == 5, "each layer's weight once"
    assert called["product"] == 1, "the BatchNorm of the layer that has a bias too; kernels of others find theirs"
    assert not {"quantise_layer", "unpack_mask_kernel", "transpose", "multipliers"} & called.keys()
    assert called["result_bounds"] == 1, "of the residual addition, which no weight has to do with"


def test_what_int8_does_not_know_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match=r"Quantise does not know tanh"):
        quantised(Unknown(), "kernel")
    assert "first is quantised" in caplog.text
