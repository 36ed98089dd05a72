"""Weights load as people have them: wrapped, under prefixes, in other types, beside counters and auxiliary heads."""

import argparse
import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from random_tasks import SMALL_NETWORK

from ksm_hw.errors import UserError
from ksm_hw.models.backbones import backbone_tensors, build_backbone, pretrained_backbone
from ksm_hw.models.torchvision_import import import_torchvision
from ksm_hw.models.weights import fitted_weights

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return build_backbone(SMALL_NETWORK)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def average(state: State) -> State:
    """What `torch.optim.swa_utils.AveragedModel` saves."""
    return {"n_averaged": torch.tensor(7), **prefixed(state, "module.")}


def profiled(state: State) -> State:
    """What is left in a state dict by a profiler that counts operations."""
    return {**state, "total_ops": torch.zeros(1), "conv1.0.total_ops": torch.zeros(1), "fc.total_params": torch.ones(1)}


def other_head(state: State) -> State:
    return {**state, "fc.weight": torch.zeros(3, 1024), "fc.bias": torch.zeros(3)}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


# What a file holds, and what is said of it.
FILES: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (dict, "left out fc (2 tensors)"),
    "DataParallel": (lambda s: prefixed(s, "module."), "stripped module."),
    "torch.compile": (lambda s: prefixed(s, "_orig_mod."), "stripped _orig_mod."),
    "both": (lambda s: prefixed(s, "module._orig_mod."), "stripped _orig_mod., module."),
    "a part compiled": (
        lambda s: {name.replace("conv1.", "conv1._orig_mod."): tensor for name, tensor in s.items()},
        "stripped _orig_mod.",
    ),
    "Lightning": (
        lambda s: {"state_dict": {**prefixed(s, "model.backbone."), "criterion.weight": torch.ones(5)}, "epoch": 3},
        "criterion.weight",
    ),
    "SWA": (average, "n_averaged"),
    "profiled": (profiled, "total_ops"),
    "Parameters": (lambda s: {n: torch.nn.Parameter(t) if t.is_floating_point() else t for n, t in s.items()}, ""),
    "head of other classes": (other_head, "left out fc"),
    "training script": (
        lambda s: {"model": s, "model_ema": average(zeros(s)), "args": argparse.Namespace(lr=0.1), "epoch": 9},
        "from 'model' (and not model_ema)",
    ),
    "average inside": (lambda s: {**s, "ema": zeros(s), "norm": {"mean": torch.ones(3)}}, "left out ema, norm, which"),
    "average in front": (lambda s: {**prefixed(zeros(s), "ema."), **prefixed(s, "model.")}, "stripped model."),
    "wrapped twice": (lambda s: {"ema": {"state_dict": s}, "step": 5}, "from 'ema', in it 'state_dict'"),
    "name of its own": (
        lambda s: {"student": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
        "from 'student' (and not optimizer)",
    ),
    "twice": (lambda s: {**s, "module.conv1.0.weight": torch.zeros(24, 3, 3, 3)}, ", module.conv1.0.weight"),
    "what is no tensor": (lambda s: {**s, "version": "1.2", "date": None}, "version, date"),
    "float64": (lambda s: {name: tensor.double() for name, tensor in s.items()}, "converted float64"),
}


@pytest.mark.parametrize("made", FILES)
def test_weights_load_as_people_have_them(
    made: str, network: torch.nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, said = FILES[made]
    torch.save(make(network.state_dict()), tmp_path / "weights.pth")
    loaded = backbone_tensors(pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth"))
    expected = backbone_tensors(network)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
    assert said in caplog.text


def test_several_networks_of_unusual_names_are_named(network: torch.nn.Module, tmp_path: Path) -> None:
    torch.save(
        {"generator": network.state_dict(), "critic": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "weights.pth"
    )
    with pytest.raises(UserError, match=r"holds several state dicts \(generator, critic\). Save"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


def test_a_dictionary_that_contains_itself_holds_no_weights(network: torch.nn.Module, tmp_path: Path) -> None:
    endless: dict[str, Any] = {"w": torch.ones(1)}
    endless["model"] = endless
    torch.save(endless, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="another architecture"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(dtype: torch.dtype, network: torch.nn.Module, tmp_path: Path) -> None:
    halved = copy.deepcopy(network).to(dtype)
    torch.save(halved.state_dict(), tmp_path / "weights.pth")
    loaded = backbone_tensors(pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth"))
    assert all(np.array_equal(loaded[name], array) for name, array in backbone_tensors(halved).items())


def test_the_content_says_what_a_file_is_and_not_its_name(network: torch.nn.Module, tmp_path: Path) -> None:
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.pth")
    torch.save(network.state_dict(), tmp_path / "weights.safetensors")
    torch.save(network.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("weights.pth", "weights.safetensors", "old.bin"):
        assert pretrained_backbone(SMALL_NETWORK, tmp_path / name) is not None


def test_a_larger_network_s_weights_are_refused_though_all_names_are_there(
    network: torch.nn.Module, tmp_path: Path
) -> None:
    torch.save(
        {**network.state_dict(), "stage2.4.branch2.0.weight": torch.ones(24, 24, 1, 1)}, tmp_path / "weights.pth"
    )
    with pytest.raises(UserError, match=r"hold 'stage2.4.branch2.0.weight', which this architecture does not have"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused(wrong: float, network: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    state["conv1.0.weight"] = state["conv1.0.weight"].double().index_fill(0, torch.tensor([3]), wrong)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"'conv1.0.weight' that are not finite"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


def test_variances_below_0_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    state["conv1.1.running_var"] = -state["conv1.1.running_var"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"'conv1.1.running_var' .*variances below 0"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


def test_quantised_weights_are_refused(network: torch.nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.to(torch.int8) for name, tensor in network.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"as int8, strided; expected plain floating-point"):
        pretrained_backbone(SMALL_NETWORK, tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("features.denseblock1.denselayer1.norm.1.weight", "features.denseblock1.denselayer1.norm1.weight"),
        ("features.denseblock1.denselayer1.conv.2.weight", "features.denseblock1.denselayer1.conv2.weight"),
        ("encoder.layers.encoder_layer_0.mlp.linear_1.bias", "encoder.layers.encoder_layer_0.mlp.0.bias"),
        ("encoder.layers.encoder_layer_0.mlp.linear_2.bias", "encoder.layers.encoder_layer_0.mlp.3.bias"),
    ],
)
def test_old_names_of_torchvision_s_own_files(old: str, new: str) -> None:
    assert list(fitted_weights({old: torch.ones(2)}, {new: torch.zeros(2)}, (), "file")) == [new]


def original(name: str) -> tuple[torch.nn.Module, State]:
    """A network as torchvision builds it with its own weights, and the state dict that it publishes of it."""
    torchvision = import_torchvision()
    torch.manual_seed(0)
    published = torchvision.models.get_model(
        name, weights=None, aux_logits=True, init_weights=False, transform_input=True
    )
    return published.eval(), published.state_dict()


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 75)])
def test_torchvision_s_own_weights_compute_what_torchvision_does(
    name: str, size: int, photographs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its auxiliary heads are left out, and what it transforms inside the network is in the preprocessing."""
    from torchvision.models._api import WeightsEnum

    from ksm_hw.images.decoding import read_image
    from ksm_hw.masks.preprocessing import Preprocessing, preprocess
    from ksm_hw.models.backbones import default_preprocessing

    published, state = original(name)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    caplog.set_level(logging.INFO)
    backbone = pretrained_backbone(name).eval()
    assert "left out" in caplog.text and "ux" in caplog.text
    published.fc, backbone.fc = torch.nn.Identity(), torch.nn.Identity()
    image = read_image(photographs / "cat.png")
    theirs = Preprocessing(size, size, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.inference_mode():
        expected = published(torch.from_numpy(preprocess(image, theirs))[None])
        found = backbone(torch.from_numpy(preprocess(image, default_preprocessing(name, size)))[None])
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
