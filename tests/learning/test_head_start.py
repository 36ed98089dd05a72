"""A head that is fitted first: to the features of the network as it is, and to nothing else."""

import dataclasses

import torch
from learned_noise import noise
from torch import nn

from ksm_hw.learning.head_start import keep_statistics, start_head
from ksm_hw.learning.images import training_batches
from ksm_hw.learning.learn import learn
from ksm_hw.learning.options import LearningOptions
from ksm_hw.models.backbones import default_preprocessing

PREPROCESSING = default_preprocessing("efficientnet-lite0", 32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), *pooled, nn.Linear(8, 3))


def test_the_head_alone_changes_and_tells_the_classes_apart() -> None:
    fitted, data = network(), noise(0)
    before = {name: tensor.clone() for name, tensor in fitted.state_dict().items()}
    fitted.requires_grad_(False)[5].requires_grad_(True)
    assert start_head(fitted, training_batches(data.train, PREPROCESSING, 8, (0, 0), False), seed=0)
    changed = {name for name, tensor in fitted.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"5.weight", "5.bias"}
    right = sum(
        int((fitted(images).argmax(1) == labels).sum())
        for images, labels in training_batches(data.train, PREPROCESSING, 8, (0, 1), False)
    )
    assert right == len(data.train)


def test_a_head_that_is_a_convolution_is_left_as_it_is() -> None:
    assert not start_head(nn.Sequential(nn.Conv2d(3, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), [], seed=0)


def test_learning_with_a_head_start_keeps_the_statistics_and_is_the_same_each_time() -> None:
    options = LearningOptions("ksm", epochs=1, batch_size=8, mask_rate=1e-4, norm_rate=1e-2, head_start=True)
    (found, history), (again, _) = (learn(network(), noise(0), PREPROCESSING, options) for _ in range(2))
    state = found.state_dict()
    assert torch.equal(state["1.running_mean"], network().state_dict()["1.running_mean"])
    assert not torch.equal(state["1.weight"], network().state_dict()["1.weight"])
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in state.items())
    _, without = learn(network(), noise(0), PREPROCESSING, dataclasses.replace(options, head_start=False))
    assert history[0].accuracy == 1 and history[0].loss < 0.8 * without[0].loss
    keep_statistics(found.train())
    assert found.training and not found[1].training
