"""Tasks learned one after another into a bundle: older ones compute what they did, and each deploys as any other."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learned_noise import noise, refuse_to_calibrate, saved_weights
from random_tasks import SMALL_NETWORK

from ksm_hw.errors import UserError
from ksm_hw.learning import learn as learn_module
from ksm_hw.learning.learn import Epoch, learn
from ksm_hw.learning.mask_equations import MaskConstants
from ksm_hw.learning.methods.masked_weights import masked_layers
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.methods.table import METHODS
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import Trained, checked_start, train_task
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.models.backbones import bundled_backbone, default_preprocessing
from ksm_hw.models.task_module import task_module

# Large enough that masks cross the threshold and weights change within two steps.
FAST = LearningOptions(epochs=2, batch_size=8, mask_rate=6e-3, head_rate=1e-2)


def learned(bundle: Bundle, folder: Path, task: str, options: LearningOptions, seed: int = 0) -> Trained:
    """A task learned into the bundle of a folder, whose first one begins from the weights of another."""
    weights = saved_weights(bundle, folder.parent / "weights.pt")
    return train_task(noise(seed), task, folder, SMALL_NETWORK, options, weights=weights, image_size=32)


def fast(method: str) -> LearningOptions:
    """So that CPG keeps whatever it reaches, and does not ask for a wider network."""
    own = {"accuracy_goal": 0.0, "max_width": 1.0} if method == "cpg" else {}
    own |= {"mask_rate": LearningOptions().mask_rate} if method == "head" else {}  # It has no use for one.
    return dataclasses.replace(FAST, method=method, **own)


@pytest.fixture(autouse=True, scope="module")
def uncalibrated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        refuse_to_calibrate(patch)
        yield


def logits_of(bundle: Bundle, task: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return task_module(bundle, bundle.packs[task])(torch.randn(4, 3, 32, 32, generator=generator))


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A bundle after its first task and after its second, and what learning the second said."""

    before: Bundle
    after: Bundle
    second: Trained


@pytest.fixture(scope="module", params=["packnet", "cpg"])
def sequence(request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Sequence:
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    options = fast(request.param)
    assert learned(bundle, folder, "first", options).carried_over == []
    before = load_bundle(folder)
    second = learned(bundle, folder, "second", options, seed=1)
    return Sequence(before, load_bundle(folder), second)


def test_older_tasks_do_not_change_by_a_bit_when_one_is_added(sequence: Sequence) -> None:
    before, after = sequence.before, sequence.after
    assert sequence.second.carried_over == ["first"]
    assert after.backbone_sha256 != before.backbone_sha256, "the second task must own weights to show something"
    assert torch.equal(logits_of(before, "first"), logits_of(after, "first"))
    samples = after.samples
    assert samples and sorted(path.parent.name for path in samples.rglob("00-*.png")) == ["first", "second"]


def test_each_task_keeps_a_quarter_of_what_is_free_and_uses_what_is_owned(sequence: Sequence) -> None:
    picked = owned = 0
    for layer, mask in sequence.after.packs["second"].masks.items():
        first, second = unpack_mask(sequence.after.packs["first"].masks[layer]) != 0, unpack_mask(mask) != 0
        free = ~first
        assert first.sum() == first.size - round(0.75 * first.size)
        assert (second & free).sum() == free.sum() - round(0.75 * free.sum())
        assert not sequence.after.tensors[f"{layer}.weight"][~first & ~second].any(), "what nobody uses is 0"
        picked, owned = picked + int(second[first].sum()), owned + int(first.sum())
    if sequence.second.pack.method == "packnet":
        assert picked == owned
    else:
        assert 0 < picked < owned


def test_vectors_are_each_task_s_own_in_cpg_and_the_first_one_s_in_packnet(bundle: Bundle, sequence: Sequence) -> None:
    vectors = [name for name, array in bundle.tensors.items() if array.ndim == 1]
    before, after = sequence.before.tensors, sequence.after.tensors
    assert all(np.array_equal(before[name], after[name]) for name in vectors)
    own = [len(pack.batch_norms) for pack in sequence.after.packs.values()]
    if sequence.second.pack.method == "packnet":
        assert own == [0, 0] and any((before[name] != bundle.tensors[name]).any() for name in vectors)
    else:
        assert own == [len(vectors)] * 2 and all(np.array_equal(before[name], bundle.tensors[name]) for name in vectors)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("packnet", r"0\.\d\d% of the weights are free, and PackNet needs 1%: the older tasks .*kernel-task.*--prune"),
        ("fine-tuning", "another --bundle"),
    ],
)
def test_a_bundle_whose_tasks_use_all_weights(method: str, message: str, bundle: Bundle, copied_bundle: Path) -> None:
    before = {path: path.read_bytes() for path in copied_bundle.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=message):
        learned(bundle, copied_bundle, "more", dataclasses.replace(FAST, method=method))
    assert {path: path.read_bytes() for path in copied_bundle.rglob("*") if path.is_file()} == before


def test_cpg_goes_on_by_picking_where_no_weight_is_free(bundle: Bundle, copied_bundle: Path) -> None:
    trained = learned(bundle, copied_bundle, "more", fast("cpg"))
    after = load_bundle(copied_bundle)
    assert trained.carried_over == [] and after.backbone_sha256 == bundle.backbone_sha256
    assert any(not unpack_mask(mask).all() for mask in after.packs["more"].masks.values())


def test_an_epoch_that_is_taken_back_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth epoch prunes and misses the goal: the task stays what it was, in a run that goes on from there too, and
    the sixth, which would prune more, is not begun."""
    cpg = dataclasses.replace(METHODS["cpg"], end_epoch=lambda options, accuracies: "undo" * (len(accuracies) == 5))
    monkeypatch.setitem(METHODS, "cpg", cpg)
    options = dataclasses.replace(FAST, method="cpg", epochs=6)
    measured = learn_module._measured

    def told_apart(*given: Any) -> Epoch:
        """Of every epoch another accuracy, for over noise they are alike."""
        return dataclasses.replace(measured(*given), accuracy=given[-1].number / 10)

    monkeypatch.setattr(learn_module, "_measured", told_apart)

    def masks_and_history() -> tuple[list[bool], list[Epoch]]:
        network = bundled_backbone(SMALL_NETWORK, bundle.tensors, 32)
        preprocessing = default_preprocessing(SMALL_NETWORK, 32)
        learned, history = learn(network, noise(0), preprocessing, options, tmp_path / "state.pt")
        return [bool(layer.mask().all()) for layer in masked_layers(learned).values()], history

    masks, history = masks_and_history()
    assert all(masks), "nothing is pruned"
    *_, before, last = history
    assert [epoch.number for epoch in history] == [1, 2, 3, 4, 5] and last.verdict == "undo"
    assert (last.accuracy, last.validation) == (before.accuracy, before.validation) and before.accuracy == 0.4
    assert masks_and_history() == (masks, history)


@pytest.mark.parametrize("method", TITLES)
def test_every_method_s_task_is_the_network_that_it_learned(method: str, bundle: Bundle, tmp_path: Path) -> None:
    """Accuracy is measured on the stored pack; that the networks agree bit for bit is shown for KSM elsewhere."""
    trained = learned(bundle, tmp_path / "bundle", "task", fast(method))
    assert trained.pack.facts["accuracy"] == trained.pack.facts["learned_accuracy"]
    assert logits_of(load_bundle(tmp_path / "bundle"), "task").std(dim=0).min() > 0


def test_a_task_that_is_learned_again_frees_its_own_weights(bundle: Bundle, tmp_path: Path) -> None:
    folder, options = tmp_path / "bundle", dataclasses.replace(FAST, method="packnet", prune=0.0)
    learned(bundle, folder, "only", options)
    learned(bundle, folder, "only", dataclasses.replace(options, prune=0.5))
    shares = [unpack_mask(mask).mean() for mask in load_bundle(folder).packs["only"].masks.values()]
    assert np.allclose(shares, 0.5, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LearningOptions("packnet", epochs=1), "PackNet .* takes at least 2 epochs"),
        (LearningOptions("piggyback", granularity="kernel"), "Leave out --granularity"),
        (LearningOptions("cpg", validation=0.0), "Leave out --validation"),
        (LearningOptions("ksm", prune=0.5), "no use for --prune.* packnet, cpg"),
        (LearningOptions("packnet", max_width=3.0), "no use for --max-width.* cpg"),
        (LearningOptions("cpg", max_width=3.0), "Give --accuracy-goal too"),
        (LearningOptions("piggyback", norm_rate=1e-3), "no use for --norm-rate.* ksm, binary, packnet"),
        (LearningOptions("head", norm_rate=1e-3), "no use for --norm-rate"),
        (LearningOptions("head", mask_rate=1e-3), "no use for --mask-rate.* ksm, binary, piggyback"),
        (
            LearningOptions("piggyback", constants=MaskConstants(slope=1.0)),
            "no use for --mask-slope.* ksm, binary",
        ),
        (LearningOptions("head", granularity="kernel"), "no use for --granularity"),
    ],
)
def test_what_a_method_cannot_do_is_told_before_anything_is_learned(
    options: LearningOptions, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        checked_start("task", tmp_path / "bundle", SMALL_NETWORK, tmp_path / "nowhere.pt", 32, options)
