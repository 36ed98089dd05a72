"""Tasks out of checkpoints compute what the method's own rule says, in PyTorch and compiled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_checkpoints as published
import pytest
import torch
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
SMALL = ("resnet18", "resnet", 64)
LARGE = [("resnet50", "resnet", 64), ("vgg16", "vgg", 224), ("vgg16_bn", "vgg", 224), ("densenet121", "densenet", 64)]


def imported(made: published.Published, backbone: str, folder: Path, *options: str, new: bool = True) -> dict[str, Any]:
    """Saves a checkpoint, imports it by the command line, and gives what that printed."""
    torch.save(made.content, folder / "checkpoint.pt", _use_new_zipfile_serialization=new)
    weights = []
    if made.backbone:
        torch.save(made.backbone, folder / "weights.pt", _use_new_zipfile_serialization=new)
        weights = ["--backbone-weights", str(folder / "weights.pt")]
    arguments = ["import", str(folder / "checkpoint.pt"), "--backbone", backbone, *weights, "--json", *options]
    done = CliRunner().invoke(app, [*arguments, "-o", str(folder / "bundle")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (folder / "checkpoint.pt").unlink()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@torch.no_grad()
def assert_computes_the_same(
    folder: Path, made: published.Published, size: int, *, renamed: dict[str, str] | None = None
) -> None:
    bundle = load_bundle(folder / "bundle")
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    for task, logits in made.logits.items():
        expected = logits(images)
        found = task_module(bundle, bundle.packs[task])(images)
        spread = (expected - expected.mean(0)).abs().max()
        assert spread > 1e-4, "the images make no difference"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(spread))


@pytest.mark.parametrize(
    "variant", ["KSM", "Piggyback", "Piggyback, ternary in training", "PackNet, biases", "CPG, grown"]
)
def test_tasks_compute_what_the_method_says(variant: str, tmp_path: Path) -> None:
    backbone, family, size = SMALL
    form, make = VARIANTS[variant]
    made = make(build_backbone(backbone, 11), family)
    found = imported(made, backbone, tmp_path, new="training" not in variant)
    assert found["format"].lower() == form and found["tasks"].keys() == made.logits.keys()
    assert_computes_the_same(tmp_path, made, size)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("backbone", "family", "size"), LARGE)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
def test_every_variant_over_the_published_networks(
    backbone: str, family: str, size: int, variant: str, new: bool, tmp_path: Path
) -> None:
    if family == "densenet" and "grown" in variant:
        pytest.skip("no network that concatenates can grow")
    made = VARIANTS[variant][1](build_backbone(backbone, 11), family)
    imported(made, backbone, tmp_path, new=new)
    assert_computes_the_same(tmp_path, made, size)
