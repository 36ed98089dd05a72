"""A task written for other engines computes what it does in PyTorch, and is not there where it does not."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.exporting import export
from ksm_hw.exporting.plain_network import plain_network
from ksm_hw.masks.bundle import Bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.state_dicts import read_state_dict

TASK = "element-task"


@torch.no_grad()
def logits_of(bundle: Bundle, images: torch.Tensor) -> np.ndarray:
    return task_module(bundle, bundle.packs[TASK])(images).numpy()


@pytest.mark.parametrize(
    ("form", "name"),
    [("onnx", "task.onnx"), ("pt2", "task.pt2"), ("state-dict", "task.pt"), ("state-dict", "task.safetensors")],
)
def test_what_is_written_computes_the_task(
    form: str, name: str, bundle_folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / name
    arguments = ["export", str(bundle_folder), "--task", TASK, "--format", form, "-o", str(path), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--batch", "2"], catch_exceptions=False)
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
        network = plain_network(bundle, bundle.packs["other-task"])  # Another's tensors, which are replaced.
        network.load_state_dict(
            {n: t for n, t in read_state_dict(path).items() if not n.startswith("fc.")}, strict=False
        )
        network.fc = nn.Identity()
        head = bundle.packs[TASK]
        with torch.no_grad():
            found = network(images).numpy() @ head.head_weight.T + head.head_bias
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_batch_norms_behind_convolutions_are_folded(bundle: Bundle) -> None:
    network = plain_network(bundle, bundle.packs[TASK])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    images = torch.randn(1, 3, 32, 32)
    np.testing.assert_allclose(network(images).numpy(), logits_of(bundle, images), rtol=1e-3, atol=1e-4)


def test_a_file_that_computes_something_else_is_not_left(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "plain_network", lambda bundle, pack: plain_network(bundle, bundle.packs["other-task"]))
    with pytest.raises(UserError, match="computes something else"):
        export.export_task(bundle, bundle.packs["kernel-task"], "state-dict", tmp_path / "task.pt")
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_tasks_are_named(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"ONNX needs onnx, onnxscript, onnxruntime. .*ksm-hw\[onnx\]"):
        export.check_export("onnx", tmp_path / "task.onnx")
    with pytest.raises(UserError, match="No task named 'cars'"):
        arguments = ["export", str(bundle_folder), "--task", "cars", "--format", "pt2", "-o", str(tmp_path / "x.pt2")]
        CliRunner().invoke(app, arguments, catch_exceptions=False)
