"""What an importer makes compiles for this machine and computes what the method's own rule says.

Over a network of two convolutions: ternary masks, biases and slopes of each task's own, and a network that grew.
"""

import collections
from pathlib import Path

import numpy as np
import published_checkpoints as published
import pytest
import torch
from torch import nn

from ksm_hw.importing.formats import read_tasks
from ksm_hw.importing.to_packs import imported_bundle
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.models.task_module import task_module

SIDE = 16


def tiny_network(slopes: bool = False) -> nn.Module:
    """With the children of a ResNet, biases, and a mask whose size is no multiple of 8; with `slopes` of a PReLU."""
    torch.manual_seed(0)
    layers = {"conv1": nn.Conv2d(3, 6, 3), "bn1": nn.BatchNorm2d(6)}
    layers |= {"relu": nn.PReLU(6) if slopes else nn.ReLU(), "conv2": nn.Conv2d(6, 10, 3)}
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(10, 11)}
    return nn.Sequential(collections.OrderedDict({**layers, **head}))


@pytest.mark.parametrize(
    ("made", "slopes"), [(published.piggyback, False), (published.cpg, False), (published.cpg, True)]
)
def test_imported_tasks_compile_and_compute_what_the_method_says(
    made: published.Made, slopes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ksm_hw.compiler.compile import compile_bundle
    from ksm_hw.runtime.session import Session
    from ksm_hw.toolchains.targets import load_target

    found = made(tiny_network(slopes), "resnet")
    torch.save(found.content, tmp_path / "checkpoint.pt")
    network = tiny_network(slopes)
    if found.backbone:
        network.load_state_dict(found.backbone)
    form, content = read_tasks(tmp_path / "checkpoint.pt", "auto", network)
    preprocessing = Preprocessing(SIDE, SIDE, "bilinear", (0.5,) * 3, (0.5,) * 3)
    bundle = imported_bundle(tmp_path, content, content.tasks, network, "resnet18", form.name, preprocessing, {}, {})
    if made is published.piggyback:
        ternary = bundle.packs["flowers"].masks["conv1"]
        assert ternary.scale_bits == 1 and ternary.nbytes <= -(-ternary.bits.size * 8 * 2 // 8) + 1
    for module in ("ksm_hw.compiler.lower", "ksm_hw.models.task_module"):
        monkeypatch.setattr(f"{module}.build_backbone", lambda _, classes: with_classes(tiny_network(slopes), classes))
    artifact = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")[0]
    session = Session.load(artifact)
    images = torch.randn(1, 3, SIDE, SIDE)
    for task, logits in found.logits.items():
        expected = logits(images).numpy()
        compiled = session.run(images.numpy(), task)[:, : expected.shape[1]]
        np.testing.assert_allclose(compiled, expected, rtol=1e-4, atol=1e-4)
        reference = task_module(bundle, bundle.packs[task])(images).detach().numpy()
        np.testing.assert_allclose(reference, expected, rtol=1e-4, atol=1e-4)
    assert len({task: float(logits(images)[0, 0]) for task, logits in found.logits.items()}) == len(found.logits)


def with_classes(network: nn.Module, classes: int) -> nn.Module:
    network.set_submodule("fc", nn.Linear(10, classes))
    return network
