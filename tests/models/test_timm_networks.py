"""Networks of timm: they are what timm says, compile and are exported, and what is missing is said."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from random_tasks import random_bundle

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.exporting.plain_network import plain_network
from ksm_hw.models.backbones import build_backbone, default_preprocessing, pretrained_backbone
from ksm_hw.models.task_module import task_module
from ksm_hw.models.torchvision_import import import_torchvision
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target

import_torchvision()  # timm cannot by itself beside a CPU torch.
timm = pytest.importorskip("timm")
SMALL = "timm:test_efficientnet"  # Half a million weights, and BatchNorms that hold their activations.


def test_tasks_over_a_network_of_timm_compile_and_are_exported(tmp_path: Path) -> None:
    bundle = random_bundle(SMALL, 32, ("kernel", "element"))
    (artifact,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")
    session = Session.load(artifact)
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    for task, pack in bundle.packs.items():
        with torch.inference_mode():
            exact = task_module(bundle, pack).double()(torch.from_numpy(images).double()).numpy()
            plain = plain_network(bundle, pack)
            exported = plain(torch.from_numpy(images)).numpy()
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in plain.modules())
        for found in (session.run(images, task)[:, : len(pack.classes)], exported):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def test_weights_come_from_a_file_and_images_are_prepared_as_timm_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet")
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    found = pretrained_backbone(SMALL, tmp_path / "weights.pt", 32)
    given = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("classifier.")}
    assert given and all(torch.equal(found.state_dict()[name], tensor) for name, tensor in given.items())
    preprocessing = default_preprocessing("timm:vit_tiny_patch16_224", 224)
    assert (preprocessing.mean, preprocessing.interpolation) == ((0.5, 0.5, 0.5), "bicubic")


def test_a_tag_of_weights_may_follow_a_name() -> None:
    assert build_backbone(f"{SMALL}.r160_in1k", 3).get_classifier().weight.shape[0] == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet81", r"timm .* has no network named 'resnet81'\. Did you mean resnet18 or "),
        ("timm:?", r"has no network named '\?'\. timm.list_models"),
        ("timm:resnet18.nobodys", r"no weights 'resnet18\.nobodys'\. Of this network there are: .*resnet18\.a1_in1k"),
    ],
)
def test_a_name_that_timm_does_not_know_is_told_with_those_near(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(name)


def test_an_image_size_that_a_network_does_not_take_names_the_usual_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not take images of 100 pixels .* published weights take 224"):
        pretrained_backbone("timm:vit_tiny_patch16_224", tmp_path / "nowhere.pt", 100)


def test_without_a_network_it_says_to_give_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError, match=r"timm's weights of test_efficientnet \(timm/.*could not be downloaded.*--weights"
    ):
        pretrained_backbone(SMALL)


def test_without_timm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:resnet18 .* not installed\. .* 'ksm-hw\[timm\]'"):
        build_backbone("timm:resnet18")
