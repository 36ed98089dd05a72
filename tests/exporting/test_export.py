"""A task written for other engines computes what it does in PyTorch, and is not there where it does not."""

import json
import resource
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from random_tasks import SMALL_NETWORK
from torch import nn
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.exporting import export
from ksm_hw.exporting.plain_network import plain_network
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.models.torchvision_import import import_torchvision
from ksm_hw.resources import shipped_bundle
from ksm_hw.state_dicts import read_state_dict

TASK = "element-task"


@torch.no_grad()
def logits_of(bundle: Bundle, images: torch.Tensor) -> np.ndarray:
    return task_module(bundle, bundle.packs[TASK])(images).numpy()


@torch.no_grad()
def logits_of_torchvision(state: dict[str, torch.Tensor], classes: int, images: torch.Tensor) -> np.ndarray:
    """What torchvision's own network gives, without BatchNorms and with biases instead."""
    network = import_torchvision().models.get_model(SMALL_NETWORK, num_classes=classes).eval()
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            network.set_submodule(path, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.zeros(module.out_channels))
    network.load_state_dict(state)
    return network(images).numpy()


FILES = [("onnx", "task.onnx"), ("pt2", "task.pt2"), ("state-dict", "task.pt"), ("state-dict", "task.safetensors")]


@pytest.mark.parametrize(("form", "name"), FILES)
def test_what_is_written_computes_the_task(
    form: str, name: str, bundle_folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / name
    arguments = ["export", str(bundle_folder), "--task", TASK, "--format", form, "-o", str(path), "--json"]
    batch = [] if form == "state-dict" else ["--batch", "2"]
    done = CliRunner().invoke(app, [*arguments, *batch], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["bytes"] == path.stat().st_size and said["classes"] == list(bundle.packs[TASK].classes)
    images = torch.randn(2, 3, 32, 32)
    expected = logits_of(bundle, images)
    if form == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        (found,) = session.run(None, {"images": images.numpy()})
    elif form == "pt2":
        found = torch.export.load(path).module()(images).detach().numpy()
    else:
        found = logits_of_torchvision(read_state_dict(path), len(said["classes"]), images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("form", "name"), FILES)
def test_a_full_disk_is_told(form: export.ExportFormat, name: str, bundle: Bundle, tmp_path: Path) -> None:
    """A limit on the size of files stands for it. To a file torch and safetensors raise errors of their own there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=rf"Cannot write .*{name}.*Nothing was left behind"):
            export.export_task(bundle, bundle.packs[TASK], form, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_batch_norms_behind_convolutions_are_folded(bundle: Bundle) -> None:
    network = plain_network(bundle, bundle.packs[TASK])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    images = torch.randn(1, 3, 32, 32)
    np.testing.assert_allclose(network(images).numpy(), logits_of(bundle, images), rtol=1e-3, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_left(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "plain_network", lambda bundle, pack: plain_network(bundle, bundle.packs["other-task"]))
    arguments = ["export", str(bundle_folder), "--task", "kernel-task", "--format", "state-dict", "-o"]
    done = CliRunner().invoke(app, [*arguments, str(tmp_path / "task.pt")], catch_exceptions=False)
    assert done.exit_code == 1 and "computes something else" in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_batch_is_refused_where_it_means_nothing(bundle_folder: Path, tmp_path: Path) -> None:
    arguments = ["export", str(bundle_folder), "--task", TASK, "--format", "state-dict", "--batch", "1", "-o"]
    with pytest.raises(UserError, match="A state dict takes any --batch"):
        CliRunner().invoke(app, [*arguments, str(tmp_path / "task.pt")], catch_exceptions=False)


def test_the_convolutions_of_the_shipped_backbone_take_their_batch_norms(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They are a package's own, which pad their input themselves."""
    shipped = load_bundle(shipped_bundle())
    pack = next(iter(shipped.packs.values()))
    with caplog.at_level("INFO"):
        network = plain_network(shipped, pack)
    assert "49 BatchNorms are folded into convolutions, 0 follow none and stay" in caplog.text
    assert "_conv_stem.bias" in network.state_dict() and not any(
        "running_mean" in name for name in network.state_dict()
    )
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = task_module(shipped, pack)(images).numpy()
        np.testing.assert_allclose(network(images).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_missing_packages_and_tasks_are_named(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ONNX needs onnx, onnxscript, onnxruntime. .*ksm-hw\[onnx\]"):
        export.check_export("onnx")
    with pytest.raises(UserError, match="No task named 'cars'"):
        arguments = ["export", str(bundle_folder), "--task", "cars", "--format", "pt2", "-o", str(tmp_path / "x.pt2")]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
