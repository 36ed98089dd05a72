"""Tasks of transformers: masks of what attention computes queries, keys and values by, and LayerNorms of their own."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_noise import noise, refuse_to_calibrate
from small_transformers import PREPROCESSING, make_transformer_known, small_transformer
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.learn import learn
from ksm_hw.learning.learned_task import task_pack_of
from ksm_hw.learning.methods.masked_weights import masked_layers, original_weight
from ksm_hw.learning.methods.table import prepared_network
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import checked_start, train_task
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.models.backbones import backbone_tensors, layer_norm_names, maskable_layers
from ksm_hw.models.task_module import task_module

FAST = LearningOptions(epochs=2, batch_size=8, mask_rate=5e-3, head_rate=1e-2)
VIT = "small-vit"
LAYER = "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"


@pytest.fixture(params=[True, False], ids=["with the fast path of attention", "without"])
def fast_path(request: pytest.FixtureRequest) -> Iterator[None]:
    """PyTorch has two ways to compute attention in evaluation mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(request.param)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def fresh_vit() -> nn.Module:
    torch.manual_seed(0)
    return small_transformer(VIT)


def learned(options: LearningOptions) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A network that learned a task, and its backbone before."""
    network = fresh_vit()
    before = {name: array.copy() for name, array in backbone_tensors(network).items()}
    network, _ = learn(network, noise(0), PREPROCESSING, options)
    return network, before


def test_attention_s_weights_are_masked_and_its_own_name_is_the_layer_s() -> None:
    network = fresh_vit()
    shapes = maskable_layers(network)
    assert shapes[LAYER] == (72, 24)
    assert len(shapes) == 1 + 4, "the patches, attention's two weights, and the two layers behind"
    weight = network.get_parameter(LAYER).detach().clone()
    prepared = prepared_network(network, 3, FAST)
    layers = masked_layers(prepared)
    assert layers.keys() == shapes.keys()
    mask_real = layers[LAYER].mask_real
    assert mask_real.shape == (72, 24)
    with torch.no_grad():
        mask_real[5, 7] = -1.0
    mask = layers[LAYER].mask().detach()
    assert mask[5, 7] == 0 and mask.sum() == 72 * 24 - 1
    attention = prepared.get_submodule(LAYER.rpartition(".")[0])
    assert torch.equal(attention.in_proj_weight, weight * mask)
    assert torch.equal(original_weight(prepared, LAYER), weight)


def test_a_task_s_module_gives_the_learned_network_s_logits(
    fast_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_transformer_known(monkeypatch, VIT)
    network, before = learned(FAST)
    pack = task_pack_of(network, noise(0), "task", FAST, (VIT, sha256_of_tensors(before)), PREPROCESSING)
    assert (unpack_mask(pack.masks[LAYER]) != 1).any(), "masks must have soft values for this to show something"
    assert set(pack.parameters) == set(layer_norm_names(network)) and not pack.batch_norms
    assert all((array != before[name]).any() for name, array in pack.parameters.items())
    reference = task_module(Bundle(VIT, pack.backbone_sha256, before, {"task": pack}), pack)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = network(images), reference(images)
    assert found.std(dim=0).min() > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["ksm", "binary", "cpg", "packnet", "piggyback", "head", "fine-tuning"])
@pytest.mark.parametrize("layer_norms", [True, False])
def test_which_methods_learn_layer_norms(method: str, layer_norms: bool) -> None:
    options = LearningOptions(method, layer_norms=layer_norms)
    network = prepared_network(fresh_vit(), 3, options)
    state = [network.get_parameter(name) for name in layer_norm_names(network)]
    assert len(state) == 2 * 3
    learns = method == "fine-tuning" or (layer_norms and method in ("ksm", "binary", "cpg", "packnet"))
    assert [parameter.requires_grad for parameter in state] == [learns] * len(state)


def test_tasks_with_and_without_layer_norms_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command's own way, one after another into a bundle, over attention's free weights too."""
    make_transformer_known(monkeypatch, VIT)
    refuse_to_calibrate(monkeypatch)
    torch.save(fresh_vit().state_dict(), tmp_path / "weights.pt")
    folder = tmp_path / "bundle"

    def train(task: str, options: LearningOptions) -> None:
        train_task(noise(len(task)), task, folder, VIT, options, weights=tmp_path / "weights.pt", image_size=32)

    fast = dataclasses.replace(FAST, epochs=3)
    train("first", dataclasses.replace(fast, method="packnet"))
    first = load_bundle(folder)
    free = unpack_mask(first.packs["first"].masks[LAYER]) == 0
    assert 0.7 < free.mean() < 0.8 and not first.tensors[LAYER][free].any()
    assert not first.packs["first"].parameters, "PackNet's LayerNorms are the backbone's"
    before = logits_of(first, "first")
    train("second", dataclasses.replace(fast, method="packnet"))
    train("own", dataclasses.replace(fast, method="ksm"))
    train("shared", dataclasses.replace(fast, method="ksm", layer_norms=False))
    bundle = load_bundle(folder)
    assert bundle.tensors[LAYER][free].any(), "the second learned what the first left free"
    assert torch.equal(logits_of(bundle, "first"), before)
    names = set(layer_norm_names(fresh_vit()))
    assert [set(bundle.packs[task].parameters) for task in ("first", "own", "shared")] == [set(), names, set()]
    own, shared = bundle.packs["own"], bundle.packs["shared"]
    difference = sum(array.nbytes for array in own.parameters.values())
    masks = [sum(mask.nbytes for mask in pack.masks.values()) for pack in (own, shared)]
    assert own.nbytes - shared.nbytes == difference + masks[0] - masks[1]


def logits_of(bundle: Bundle, task: str) -> torch.Tensor:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return task_module(bundle, bundle.packs[task])(images)


@pytest.mark.parametrize("method", ["piggyback", "head", "fine-tuning"])
def test_methods_that_have_no_use_for_the_flag_say_so(method: str, tmp_path: Path) -> None:
    options = LearningOptions(method, layer_norms=False)
    with pytest.raises(UserError, match=r"no use for --no-layer-norms.* ksm, binary, packnet, cpg"):
        checked_start("task", tmp_path / "bundle", VIT, None, 32, options)
