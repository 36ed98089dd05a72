"""Tasks out of checkpoints compute what the method's own rule says, in PyTorch and compiled."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_checkpoints as published
import pytest
import torch
from settled_networks import blurred_images
from torch import nn
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.models.backbones import build_backbone
from ksm_hw.models.task_module import task_module

Made = Callable[[Any, str], published.Published]
VARIANTS: dict[str, tuple[str, Made]] = {
    "KSM": ("ksm", published.ksm),
    "KSM, channel-wise": ("ksm", lambda n, f: published.ksm(n, f, "channel")),
    "KSM, element-wise": ("ksm", lambda n, f: published.ksm(n, f, "element")),
    "Piggyback": ("piggyback", published.piggyback),
    "Piggyback, a model in training": ("piggyback", lambda n, f: published.piggyback_training(n, f, False)),
    "Piggyback, ternary in training": ("piggyback", lambda n, f: published.piggyback_training(n, f, True)),
    "PackNet": ("packnet", published.packnet),
    "PackNet, biases": ("packnet", lambda n, f: published.packnet(n, f, biases=True, parallel=True)),
    "CPG": ("cpg", lambda n, f: published.cpg(n, f, (1, 1, 1))),
    "CPG, grown": ("cpg", published.cpg),
}
FAMILIES = {"resnet18": "resnet", "vgg11_bn": "vgg", "densenet121": "densenet"}
SIZE = 64  # Of images, in pixels.


def imported(made: published.Published, backbone: str, folder: Path, *options: str, new: bool = True) -> dict[str, Any]:
    """Saves a checkpoint, imports it by the command line, and gives what that printed."""
    torch.save(made.content, folder / "checkpoint.pt", _use_new_zipfile_serialization=new)
    weights = []
    if made.backbone:
        torch.save(made.backbone, folder / "weights.pt", _use_new_zipfile_serialization=new)
        weights = ["--backbone-weights", str(folder / "weights.pt")]
    options = ("--backbone", backbone, "--image-size", str(SIZE), "--json", *options)
    arguments = ["import", str(folder / "checkpoint.pt"), *weights, *options]
    done = CliRunner().invoke(app, [*arguments, "-o", str(folder / "bundle")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (folder / "checkpoint.pt").unlink()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_computes_the_same(folder: Path, made: published.Published) -> None:
    bundle = load_bundle(folder / "bundle")

    @torch.no_grad()
    def found(task: str, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = task_module(bundle, bundle.packs[task])(images)
        return logits

    assert_same_logits(found, made)


def assert_compiled_computes_the_same(folder: Path, made: published.Published) -> None:
    from ksm_hw.runtime.session import Session

    options = ["--target", "host", "--task", "all", "--bundle", str(folder / "bundle"), "-o", str(folder / "artifact")]
    done = CliRunner().invoke(app, ["compile", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    session = Session.load(folder / "artifact")

    def found(task: str, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.from_numpy(session.run(image[None].numpy(), task)) for image in images])

    assert_same_logits(found, made)


def assert_same_logits(found: Callable[[str, torch.Tensor], torch.Tensor], made: published.Published) -> None:
    images = blurred_images(2, SIZE, seed=3)
    for task, logits in made.logits.items():
        expected = logits(images)
        spread = (expected - expected.mean(0)).abs().max()
        assert spread > 1e-2 * expected.abs().max(), "the images make no difference"
        atol = 1e-3 * float(spread)
        torch.testing.assert_close(found(task, images), expected, rtol=1e-4, atol=atol)


def thin_network(name: str, classes: int = 1000) -> nn.Module:
    """The network with an eighth of the channels in every layer."""
    with torch.device("meta"):  # Its weights are of no use: each layer is made anew.
        network = build_backbone(name, classes)
    return published.scaled(network, 1 / 8)


@pytest.mark.parametrize(
    ("backbone", "variant"),
    [
        *(("resnet18", variant) for variant in VARIANTS),
        *(("vgg11_bn", variant) for variant in ("KSM", "Piggyback", "PackNet, biases", "CPG, grown")),
        ("densenet121", "PackNet"),
    ],
)
def test_tasks_compute_what_the_method_says(
    backbone: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form, make = VARIANTS[variant]
    made = make(thin_network(backbone, 11), FAMILIES[backbone])
    for module in ("ksm_hw.models.backbones", "ksm_hw.models.task_module"):
        monkeypatch.setattr(f"{module}.build_backbone", thin_network)
    found = imported(made, backbone, tmp_path, new="training" not in variant)
    assert found["format"].lower() == form and found["tasks"].keys() == made.logits.keys()
    assert_computes_the_same(tmp_path, made)


@functools.lru_cache(maxsize=1)
def published_over(backbone: str, family: str, variant: str) -> published.Published:
    """Made once for both forms of file: it takes longer than the import."""
    return VARIANTS[variant][1](build_backbone(backbone, 11), family)


@pytest.mark.slow
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("backbone", "family"),
    [("resnet50", "resnet"), ("vgg16", "vgg"), ("vgg16_bn", "vgg"), ("densenet121", "densenet")],
)
def test_every_variant_over_the_published_networks(
    backbone: str, family: str, variant: str, new: bool, tmp_path: Path
) -> None:
    if family == "densenet" and "grown" in variant:
        pytest.skip("no network that concatenates can grow")
    made = published_over(backbone, family, variant)
    imported(made, backbone, tmp_path, new=new)
    assert_computes_the_same(tmp_path, made)
    if new:  # What both forms of file give is the same bundle.
        assert_compiled_computes_the_same(tmp_path, made)
    shutil.rmtree(tmp_path)  # Gigabytes for a VGG.
