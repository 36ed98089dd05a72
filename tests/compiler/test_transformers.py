"""Transformers: tasks with masks of attention's weights and LayerNorms of their own, compiled, and switched."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from random_tasks import random_bundle
from small_transformers import SMALL_TRANSFORMERS, make_transformer_known
from torch import nn

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.report.verify import verify
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target


def two_tasks(network: str, masks_of_both: bool) -> Bundle:
    """One with masks and LayerNorms of its own, and one with the backbone's LayerNorms, and the same masks or none."""
    bundle = random_bundle(network, 32, ("kernel",))
    own = bundle.packs["kernel-task"]
    plain = dataclasses.replace(own, task="plain-task", masks=own.masks if masks_of_both else {}, parameters={})
    return dataclasses.replace(bundle, packs={own.task: own, plain.task: plain})


def assert_tasks_equal_pytorch_s(bundle: Bundle, fold: FoldMode, photographs: Path, folder: Path) -> None:
    """Compiled, on photographs; and whether each task has its own LayerNorms, or the backbone's, after the other."""
    artifacts = compile_bundle(bundle, load_target("host"), folder / "artifact", fold=fold)
    for artifact in artifacts:
        for result in verify(artifact, images=photographs):
            assert result.passed and not result.ill_conditioned, result
    if fold == "bake":
        return
    session = Session.load(artifacts[0])
    images = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    for task in ("plain-task", "kernel-task", "plain-task"):
        found = session.run(images, task)
        with torch.no_grad():
            expected = task_module(bundle, bundle.packs[task])(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_task_without_layer_norms_gets_the_backbone_s_back(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the same masks, attention's among them, so that nothing else tells the tasks apart."""
    make_transformer_known(monkeypatch, "small-vit")
    assert_tasks_equal_pytorch_s(two_tasks("small-vit", masks_of_both=True), "switch", photographs, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fold", ["switch", "fused", "bake"])
@pytest.mark.parametrize("network", SMALL_TRANSFORMERS)
def test_tasks_of_every_kind_of_transformer_in_every_mode(
    network: str, fold: FoldMode, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_transformer_known(monkeypatch, network)
    assert_tasks_equal_pytorch_s(two_tasks(network, masks_of_both=False), fold, photographs, tmp_path)


def test_int8_refuses_attention_in_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_transformer_known(monkeypatch, "small-vit")
    with pytest.raises(UserError, match=r"^int8 does not know .*, which small-vit has. Use float32.$"):
        compile_bundle(
            two_tasks("small-vit", masks_of_both=True), load_target("host"), tmp_path / "artifact", precision="int8"
        )
    assert not list(tmp_path.iterdir())


class Crossed(nn.Module):
    """Attention of a task's pixels to others', for which PyTorch takes parts out of the one weight."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pixels, self.others = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(3, 8, 8, 8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key = (layer(images).flatten(2).transpose(1, 2) for layer in (self.pixels, self.others))
        return self.head(self.attention(query, key, key, need_weights=False)[0].mean(1))


@pytest.mark.slow
def test_attention_to_other_tokens(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_transformer_known(monkeypatch, "crossed", Crossed)
    bundle = random_bundle("crossed", 32, ("kernel",))
    assert "attention.in_proj_weight" in bundle.packs["kernel-task"].masks
    (artifact,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")
    (result,) = verify(artifact, images=photographs)
    assert result.passed and not result.ill_conditioned, result
    with pytest.raises(UserError, match=r"^int8 does not know .*, which crossed has. Use float32.$"):
        compile_bundle(bundle, load_target("host"), tmp_path / "int8", precision="int8")
