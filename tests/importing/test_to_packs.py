"""What an import writes into a bundle and says of it, over thin networks."""

import copy
import functools
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import published_checkpoints as published
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.importing import packnet
from ksm_hw.importing.checkpoint import Checkpoint, ImportedTask
from ksm_hw.importing.to_packs import imported_bundle
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.models.backbones import build_backbone
from ksm_hw.models.task_module import task_module

PREPROCESSING = Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)


def thin_network(name: str, classes: int = 1000) -> nn.Module:
    with torch.device("meta"):  # Its weights are of no use: each layer is made anew.
        network = build_backbone(name, classes)
    return published.scaled(network, 1 / 16)


@pytest.fixture(autouse=True)
def thin_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ksm_hw.models.backbones", "ksm_hw.models.task_module"):
        monkeypatch.setattr(f"{module}.build_backbone", thin_network)


def run(file: Path, *options: str, backbone: str = "resnet18", fails: bool = False) -> str:
    arguments = ["import", str(file), "--backbone", backbone, *options, "-o", str(file.parent / "bundle")]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code != 0) == fails, done.output
    return str(done.exception) if fails else done.output


def saved(content: dict[str, Any], file: Path) -> Path:
    torch.save(content, file)
    return file


@functools.cache
def grown_checkpoint() -> dict[str, Any]:
    return published.cpg(thin_network("resnet18", 11), "resnet").content


def before_it_grew(content: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of CPG as it was before the last task, for which the network grew."""
    content = copy.deepcopy(content)
    shapes = {f"module.{name}": tensor.shape for name, tensor in thin_network("resnet18").state_dict().items()}
    state = content["model_state_dict"]
    for name in state.keys() & shapes.keys():
        state[name] = state[name][tuple(map(slice, shapes[name]))].clone()
    for name, mask in content["masks"].items():
        content["masks"][name] = mask[tuple(map(slice, shapes[f"{name}.weight"]))].clone()
    content["dataset_history"].remove("flowers")
    for leaf in ("weight", "bias"):
        del state[f"module.classifiers.2.{leaf}"]
    return content


def test_older_tasks_compute_what_they_did_when_the_network_of_a_bundle_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(saved(before_it_grew(grown_checkpoint()), tmp_path / "narrow.pt"))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    narrow = load_bundle(tmp_path / "bundle")
    wide_file = saved(grown_checkpoint(), tmp_path / "wide.pt")

    def cannot_grow(_network: nn.Module) -> None:
        raise UserError("cannot grow")

    with monkeypatch.context() as patched:
        patched.setattr("ksm_hw.models.backbones.check_can_grow", cannot_grow)
        assert "cannot grow" in run(wide_file, "--task", "flowers", fails=True)
    found = json.loads(run(wide_file, "--task", "flowers", "--json"))
    assert found["carried_over"] == ["cubs", "imagenet"]
    wide = load_bundle(tmp_path / "bundle")
    heads = {task: pack.head_weight.shape[1] for task, pack in wide.packs.items()}
    assert set(heads.values()) == {48} and narrow.packs["cubs"].head_weight.shape[1] == 32
    with torch.no_grad():
        for task, pack in narrow.packs.items():
            expected = task_module(narrow, pack)(images)
            torch.testing.assert_close(task_module(wide, wide.packs[task])(images), expected, rtol=1e-4, atol=1e-5)


def test_a_narrow_task_alone_out_of_a_grown_network(tmp_path: Path) -> None:
    run(saved(grown_checkpoint(), tmp_path / "wide.pt"), "--task", "cubs")
    bundle = load_bundle(tmp_path / "bundle")
    assert task_module(bundle, bundle.packs["cubs"])(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_the_network_s_own_head_beside_the_tasks_is_left_out(tmp_path: Path) -> None:
    state = dict(grown_checkpoint()["model_state_dict"])
    state |= {"module.fc.weight": torch.zeros(1000, 32), "module.fc.bias": torch.zeros(1000)}  # As DenseNets have it.
    run(saved({**grown_checkpoint(), "model_state_dict": state}, tmp_path / "cpg.pt"), "--task", "flowers")
    assert load_bundle(tmp_path / "bundle").packs.keys() == {"flowers"}


@functools.cache
def packnet_checkpoint() -> dict[str, Any]:
    return published.packnet(thin_network("resnet18", 11), "resnet").content


def test_what_is_said_to_come_next_has_all_that_compile_needs(tmp_path: Path) -> None:
    file = saved(packnet_checkpoint(), tmp_path / "packnet.pt")
    compile_command = typer.main.get_command(app).commands["compile"]  # type: ignore[attr-defined]
    needed = {parameter.opts[0] for parameter in compile_command.params if parameter.required}
    for options, task in ((["--task", "cubs"], "cubs"), ([], "all")):
        words = shlex.split(run(file, *options).split("Compile it: ksm-hw ")[1])
        assert needed <= set(words) and words[words.index("--task") + 1] == task


def test_only_chosen_tasks_have_masks_made_and_others_are_left_out_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = packnet._mask
    monkeypatch.setattr(packnet, "_mask", lambda owners, index: made.append(index) or make(owners, index))
    found = json.loads(run(saved(packnet_checkpoint(), tmp_path / "packnet.pt"), "--task", "cubs=birds", "--json"))
    assert found["left_out"] == ["imagenet", "flowers"] and found["replaced"] == []
    assert found["tasks"].keys() == {"birds"} and set(made) == {2}
    assert len(made) == found["tasks"]["birds"]["masked_layers"]
    assert found["tasks"]["birds"]["ones"] == pytest.approx(
        np.mean([((m >= 1) & (m <= 2)).float().mean() for m in packnet_checkpoint()["previous_masks"].values()]),
        abs=0.1,
    )


def test_it_says_which_tasks_it_replaces_and_their_samples_go(tmp_path: Path) -> None:
    file = saved(packnet_checkpoint(), tmp_path / "packnet.pt")
    run(file)
    samples = tmp_path / "bundle/samples"
    for task in ("cubs", "flowers"):
        (samples / task).mkdir(parents=True)
        (samples / task / "00-cat.png").touch()
    said = run(file, "--task", "cubs")
    assert "the bundle has cubs already: such tasks are replaced" in said
    assert [path.name for path in samples.iterdir()] == ["flowers"]


def test_a_file_whose_name_is_no_text(tmp_path: Path) -> None:
    run(saved(packnet_checkpoint(), tmp_path / os.fsdecode(b"k\xff.pt")))
    assert load_bundle(tmp_path / "bundle").packs["cubs"].facts == {"source": "k\\udcff.pt"}


def test_what_an_import_cannot_read_is_named_as_what_it_is(tmp_path: Path) -> None:
    assert f"No checkpoint at {tmp_path / 'no.pt'}" in run(tmp_path / "no.pt", fails=True)
    file = saved(packnet_checkpoint(), tmp_path / "packnet.pt")
    assert "as a checkpoint of PackNet: " in run(file, backbone="vgg11_bn", fails=True)


@pytest.mark.parametrize(
    ("last", "features", "said"),
    [
        (nn.Conv2d(6, 3, 1), 6, "ends in a convolution"),
        (nn.Linear(6, 3), 7, "takes 7 features, and the backbone gives 6"),
        (nn.Linear(6, 3), 5, "takes 5 features, and the backbone gives 6"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(last: nn.Module, features: int, said: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)
    task = ImportedTask("cubs", {}, {}, np.zeros((3, features), np.float32), np.zeros(3, np.float32))
    with pytest.raises(UserError, match=said):
        checkpoint = Checkpoint("element", None, (task,))
        imported_bundle(Path("file.pt"), checkpoint, [task], network, "tiny", "cpg", PREPROCESSING, {}, {})
