"""Packs over a transformer: which masks and LayerNorms fit its weights, and what is said of the others."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from random_tasks import random_bundle
from small_transformers import make_transformer_known

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, check_pack_fits
from ksm_hw.masks.growth import carried_over
from ksm_hw.masks.mask_names import bias_of, layer_of, weight_of
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack

ATTENTION = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"
NORM = "encoder.layers.encoder_layer_0.ln_1"


@pytest.fixture(scope="module")
def vit() -> Bundle:
    with pytest.MonkeyPatch.context() as patch:
        make_transformer_known(patch, "small-vit")
        return random_bundle("small-vit", 32, ("kernel",))


@pytest.mark.parametrize(
    ("layer", "weight", "bias"),
    [("conv1", "conv1.weight", "conv1.bias"), (ATTENTION, ATTENTION, ATTENTION.replace("weight", "bias"))],
)
def test_a_layer_s_name_and_its_tensors(layer: str, weight: str, bias: str) -> None:
    assert (weight_of(layer), bias_of(layer), layer_of(weight)) == (weight, bias, layer)


def test_every_mask_is_of_a_weight_and_every_layer_norm_is_there(vit: Bundle) -> None:
    pack = vit.packs["kernel-task"]
    check_pack_fits(pack, "", pack.backbone_sha256, vit.tensors)
    assert {weight_of(layer) for layer in pack.masks} <= vit.tensors.keys() and ATTENTION in pack.masks
    assert {f"{NORM}.weight", f"{NORM}.bias"} <= pack.parameters.keys()


def with_norm(pack: TaskPack, **parts: np.ndarray | None) -> TaskPack:
    parameters = {**pack.parameters, **{f"{NORM}.{part}": array for part, array in parts.items()}}
    return dataclasses.replace(pack, parameters={name: one for name, one in parameters.items() if one is not None})


def with_mask(pack: TaskPack, layer: str, *shape: int) -> TaskPack:
    return dataclasses.replace(pack, masks={**pack.masks, layer: pack_mask(np.ones(shape, np.float32))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda pack: with_norm(pack, weight=np.ones(25, np.float32)),
            rf"'{NORM}.weight' with shape \[25\]; .* \[24\]",
        ),
        (lambda pack: with_norm(pack, bias=np.ones((1, 24), np.float32)), rf"'{NORM}.bias' with shape \[1, 24\]"),
        (lambda pack: with_norm(pack, bias=None), rf"has '{NORM}.weight' and lacks '{NORM}.bias'; expected all parts"),
        (lambda pack: with_norm(pack, weight=None), rf"has '{NORM}.bias' and lacks '{NORM}.weight'"),
        (lambda pack: with_norm(pack, running_mean=np.ones(24, np.float32)), r"running_mean' .* no such tensor"),
        (lambda pack: with_mask(pack, ATTENTION, 24, 24), rf"\[24, 24\] for layer '{ATTENTION}'; expected \[72, 24\]"),
        (lambda pack: with_mask(pack, "in_proj_weight", 72, 24), r"'in_proj_weight'; expected no such layer"),
        (lambda pack: with_mask(pack, NORM, 24, 1), rf"'{NORM}'; expected no such layer"),
        (
            lambda pack: dataclasses.replace(
                pack, parameters={**pack.parameters, ATTENTION: np.ones((72, 24), np.float32)}
            ),
            rf"'{ATTENTION}' with shape \[72, 24\]; expected no such tensor",
        ),
    ],
    ids=["wide", "of two axes", "no bias", "no weight", "statistics", "mask", "unknown", "mask of a norm", "twice"],
)
def test_packs_that_do_not_fit(vit: Bundle, change: Callable[[TaskPack], TaskPack], message: str) -> None:
    pack = change(vit.packs["kernel-task"])
    with pytest.raises(UserError, match=message):
        check_pack_fits(pack, "small-vit", pack.backbone_sha256, vit.tensors)


def test_a_task_is_carried_over_where_attention_s_masked_weights_stay(vit: Bundle) -> None:
    mask = np.ones((72, 24), np.float32)
    mask[3] = 0
    pack = vit.packs["kernel-task"]
    pack = dataclasses.replace(pack, masks={**pack.masks, ATTENTION: pack_mask(mask, 0)})
    changed = {**vit.tensors, ATTENTION: vit.tensors[ATTENTION].copy()}
    changed[ATTENTION][3] += 1
    head = pack.head_weight.shape[1:]
    carried = carried_over(pack, vit.tensors, changed, "other", head)
    assert carried.parameters.keys() == pack.parameters.keys() and not carried.batch_norms
    assert np.array_equal(unpack_mask(carried.masks[ATTENTION]), mask)
    changed[ATTENTION][4] += 1
    with pytest.raises(UserError, match=rf"masked weights of '{ATTENTION}' are others"):
        carried_over(pack, vit.tensors, changed, "other", head)
