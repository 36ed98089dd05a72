"""Checkpoints that cannot be imported: each ends in a message that names the file and the reason."""

import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published_checkpoints as published
import pytest
import torch
from damage import damaged_torch_file, read_damaged
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.importing.formats import FORMATS, read_tasks
from ksm_hw.importing.to_packs import chosen_tasks, imported_bundle
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)


def tiny_network() -> nn.Module:
    """With the children of a ResNet."""
    torch.manual_seed(0)
    layers = {"conv1": nn.Conv2d(3, 4, 3), "bn1": nn.BatchNorm2d(4), "relu": nn.ReLU(), "conv2": nn.Conv2d(4, 6, 1)}
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(6, 3)}
    return nn.Sequential(collections.OrderedDict({**layers, **head}))


MAKERS: dict[str, Callable[..., published.Published]] = {
    "ksm": published.ksm,
    "piggyback": published.piggyback,
    "piggyback in training": lambda network, family: published.piggyback_training(network, family, True),
    "packnet": lambda network, family: published.packnet(network, family, biases=True),
    "cpg": lambda network, family: published.cpg(network, family, (1, 1, 1)),
}


def imported(path: Path, name: str = "auto") -> Bundle:
    network = tiny_network()
    form, content = read_tasks(path, name, network)
    tasks = chosen_tasks(path, content, [])
    return imported_bundle(path, content, tasks, network, "tiny", form.name, PREPROCESSING, {}, {})


def saved(content: Any, path: Path, new: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("method", MAKERS)
def test_damaged_checkpoints_by_the_thousand(
    method: str, new: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = saved(MAKERS[method](tiny_network(), "resnet").content, tmp_path / "checkpoint.pt", new)
    assert imported(file).packs
    count = 10_000 if request.config.getoption("--slow") else 300

    def read() -> None:
        try:
            imported(file)
        except UserError as error:
            assert str(file) in str(error), error
            raise

    read_damaged(file, damaged_torch_file, read, range(count // (2 * len(MAKERS))))


def changed(method: str, change: Callable[[dict[str, Any]], None], path: Path) -> Path:
    content = MAKERS[method](tiny_network(), "resnet").content
    change(content)
    return saved(content, path)


def drop(*keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def put(value: Any, *keys: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


OWNERS = torch.ones(4, 3, 3, 3, dtype=torch.uint8)
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "no entry that is known": (
        "ksm",
        drop("model"),
        "it has the entries args, epoch, accuracy, errors, as none of theirs.*--backbone-weights",
    ),
    "no classifier": ("piggyback", drop("dataset2classifiers", "cubs"), "no classifier of 'cubs'"),
    "a mask of other values": (
        "piggyback",
        put(2 * OWNERS, "dataset2masks", "cubs", 1),
        "other values than 0, 1 and 255",
    ),
    "a mask of numbers": ("piggyback", put(OWNERS.float(), "dataset2masks", "cubs", 1), "no tensor of integers"),
    "a mask at another place": (
        "piggyback",
        put(OWNERS, "dataset2masks", "cubs", 2),
        "module 2 has no weight of shape",
    ),
    "a mask of another shape": ("packnet", put(OWNERS[:3], "previous_masks", 1), r"no weight of shape \[3, 3, 3, 3\]"),
    "no data sets": ("packnet", put({}, "dataset2idx"), "no classifier in its model belongs to"),
    "a mask that is not finite": (
        "ksm",
        put(torch.full((4, 3, 1, 1), torch.nan), "model", "shared.conv1.mask_real"),
        "not finite",
    ),
    "a mask that fits no granularity": (
        "ksm",
        put(torch.zeros(4, 2, 1, 1), "model", "shared.conv1.mask_real"),
        "neither kernel-, element- nor channel-wise",
    ),
    "a layer that is not there": (
        "ksm",
        put(torch.zeros(4, 2, 1, 1), "model", "shared.conv9.mask_real"),
        "the backbone has no layer 'shared.conv9'",
    ),
    "no history": ("cpg", drop("dataset_history"), "no dataset_history"),
    "nothing of a task": ("cpg", drop("shared_layer_info", "cubs"), "no shared_layer_info of 'cubs'"),
    "a piggymask that is too large": (
        "cpg",
        put(torch.zeros(5, 3, 3, 3), "shared_layer_info", "cubs", "piggymask", "module.conv1"),
        "larger than its weight",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_in_a_checkpoint_is_named(change: str, tmp_path: Path) -> None:
    method, make, said = CHANGES[change]
    path = changed(method, make, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=rf"checkpoint\.pt cannot be imported as a checkpoint of .*{said}"):
        imported(path)


def test_another_format_than_the_file_has(tmp_path: Path) -> None:
    path = saved(MAKERS["packnet"](tiny_network(), "resnet").content, tmp_path / "checkpoint.pt")
    for name in FORMATS.keys() - {"packnet"}:
        with pytest.raises(UserError, match=f"as a checkpoint of {FORMATS[name].title}"):
            imported(path, name)


def test_tasks_that_are_not_there_and_names_that_no_task_can_have(tmp_path: Path) -> None:
    path = saved(MAKERS["packnet"](tiny_network(), "resnet").content, tmp_path / "checkpoint.pt")
    _, content = read_tasks(path, "auto", tiny_network())
    assert [task.name for task in chosen_tasks(path, content, ["cubs=birds", "flowers"])] == ["birds", "flowers"]
    with pytest.raises(UserError, match=r"no task named 'cars'\. There are: imagenet, cubs, flowers"):
        chosen_tasks(path, content, ["cars"])
    with pytest.raises(UserError, match=r"'\.\./evil' cannot name a task"):
        chosen_tasks(path, content, ["cubs=../evil"])
    with pytest.raises(UserError, match="two tasks would be called 'cubs'"):
        chosen_tasks(path, content, ["cubs", "flowers=cubs"])


def test_a_network_that_concatenates_cannot_grow(tmp_path: Path) -> None:
    from ksm_hw.models.backbones import build_backbone, check_can_grow

    with torch.device("meta"):  # Shapes are all that is looked at.
        grows = build_backbone("resnet18")
        others = [
            build_backbone(name) for name in ("shufflenet_v2_x0_5", "densenet121", "resnext50_32x4d", "convnext_tiny")
        ]
    check_can_grow(grows)
    for network in others:
        with pytest.raises(UserError, match="cannot grow"):
            check_can_grow(network)
