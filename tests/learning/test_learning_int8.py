"""Tasks that learn in int8: what is learned is what the integer model computes, and what is asked for in vain."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from learned_noise import noise
from PIL import Image
from tiny_network import TINY, make_known, save_tiny, tiny

from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import ImageSplit
from ksm_hw.learning.images import test_batches as batches_for_testing
from ksm_hw.learning.learn import learn
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import train_task
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.models.backbones import build_backbone, default_preprocessing
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of, operators_of

IN_INT8 = LearningOptions(epochs=3, batch_size=8, mask_rate=5e-3, head_rate=1e-2, precision="int8", int8_epochs=2)
PREPROCESSING = default_preprocessing("efficientnet-lite0", 32)
MASK = "0.0.parametrizations.weight.0.mask_real"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    make_known(monkeypatch)


def test_what_is_learned_is_the_integer_model(tmp_path: Path) -> None:
    data, folder = noise(0), tmp_path / "bundle"
    options = dataclasses.replace(IN_INT8, epochs=15, int8_epochs=3)
    train_task(data, "grey", folder, TINY, options, weights=save_tiny(tmp_path / "tiny.pt"), image_size=32)
    bundle = load_bundle(folder)
    pack = bundle.packs["grey"]
    model = integer_model(network_of(bundle, pack), bundle, pack)
    (images, labels), *_ = batches_for_testing(data.test, pack.preprocessing, 100, torch.device("cpu"))
    right = (model.logits(images.numpy()).argmax(1) == labels.numpy()).mean()
    assert pack.facts["learned_precision"] == "int8" and pack.facts["learned_accuracy"] == pytest.approx(right)
    assert right > 0.9
    # It learned with the biases that it has.
    assert pack.calibration is not None and not pack.calibration.biases


def test_epochs_in_int8_learn_masks_and_leave_statistics_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone, states, losses = tiny(), [], []
    operators = operators_of(backbone, TINY, 32)
    checkpoint = tmp_path / "state.pt"

    def keep(epoch: object) -> None:
        content = torch.load(checkpoint, weights_only=True)
        states.append(content["network"])
        losses.append(content["history"][-1]["loss"])

    options = dataclasses.replace(IN_INT8, epochs=4, int8_epochs=3)
    learn(backbone, noise(0), PREPROCESSING, options, checkpoint, on_epoch=keep, operators=operators)
    in_float, *_, last = states
    for name, tensor in last.items():
        if "running" in name:
            assert torch.equal(tensor, in_float[name]), name
    assert not torch.equal(last[MASK], in_float[MASK])
    assert losses[-1] < losses[1]


def test_an_interrupted_run_in_int8_goes_on_to_the_same_result(tmp_path: Path) -> None:
    def result(stop: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        backbone = tiny()
        operators, seen = operators_of(backbone, TINY, 32), 0

        def on_batch(done: int, total: int) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise KeyboardInterrupt

        network, _ = learn(
            backbone, noise(0), PREPROCESSING, IN_INT8, tmp_path / f"{stop > 0}.pt", on_batch, operators=operators
        )
        return network.state_dict()

    whole = result(0)
    with pytest.raises(KeyboardInterrupt):
        result(5)  # Two steps an epoch: in the third.
    resumed = result(-1)
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(tensor, resumed[name]) for name, tensor in whole.items())


class Unmounted:
    """Images that can be read so often."""

    def __init__(self, split: ImageSplit, reads: int) -> None:
        self.split, self.labels, self.reads = split, split.labels, reads

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.reads -= 1
        if self.reads < 0:
            raise UserError(f"{index}.png cannot be read.")
        return self.split[index]


def test_an_image_that_is_gone_is_told_and_is_no_divergence() -> None:
    """Images are kept for steps, and read again for the ranges."""
    data, backbone = noise(0), tiny()
    data = dataclasses.replace(data, train=Unmounted(data.train, len(data.train) + 5))
    with pytest.raises(UserError, match=r"^[0-9]+\.png cannot be read\.$"):
        learn(backbone, data, PREPROCESSING, IN_INT8, operators=operators_of(backbone, TINY, 32))


@pytest.mark.parametrize(
    "options, backbone, message",
    [
        (LearningOptions(int8_epochs=2), TINY, "Give --precision int8 too"),
        (dataclasses.replace(IN_INT8, int8_epochs=4), TINY, "--int8-epochs 4 is more than --epochs 3"),
        (dataclasses.replace(IN_INT8, method="cpg"), TINY, "CPG .*by the accuracy of each epoch.*--precision float32"),
        (IN_INT8, "squeezenet1_1", "int8 does not know .*squeezenet1_1 has. Use float32"),
    ],
)
def test_what_cannot_learn_in_int8_is_told_before_anything_is_learned(
    options: LearningOptions, backbone: str, message: str, tmp_path: Path
) -> None:
    weights, folder = tmp_path / "weights.pt", tmp_path / "bundle"
    if backbone == TINY:
        save_tiny(weights)
    else:
        torch.save(build_backbone(backbone).state_dict(), weights)
    with pytest.raises(UserError, match=message):
        train_task(noise(0), "grey", folder, backbone, options, weights=weights, image_size=32)
    assert not folder.exists()


@pytest.mark.parametrize("epochs, chosen, in_float", [(30, None, 20), (2, None, 1), (1, None, 0), (30, 5, 25)])
def test_a_third_of_the_epochs_is_in_int8(epochs: int, chosen: int | None, in_float: int) -> None:
    assert LearningOptions(epochs=epochs, precision="int8", int8_epochs=chosen).epochs_in_float == in_float
    assert LearningOptions(epochs=epochs).epochs_in_float == epochs
