"""What int8 learns with: forward the integer model's bits, backward the gradients of real numbers."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from every_operator import IMAGES as SMALL_IMAGES
from every_operator import every_operator, with_ranges
from random_tasks import random_bundle
from settled_networks import blurred_images
from torch import nn

from ksm_hw.masks.bundle import Bundle
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.float_model import convolved
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import integer_model, quantised_model
from ksm_hw.quantising.network import INPUT, Convolution, Network, network_of
from ksm_hw.quantising.rounded_network import RoundedNetwork, learned_weights
from ksm_hw.quantising.scheme import Quantisation, quantise_layer, requantise
from ksm_hw.quantising.straight_through import exact_sums, looked_up, quantised_layer, requantised, rounded

DATA, INTO = Quantisation(0.02, 128), Quantisation(0.5, 100)


def residual(_: pytest.MonkeyPatch) -> Bundle:
    """A network with residual additions, and ReLUs behind them."""
    return with_ranges(random_bundle("resnet18", 32, ("kernel",)))


def learning(bundle: Bundle) -> tuple[RoundedNetwork, nn.Module]:
    """The task's network as int8 computes it, and the module that holds its weights."""
    pack = bundle.packs["kernel-task"]
    assert pack.calibration is not None
    module = task_module(bundle, pack)
    return RoundedNetwork(module, network_of(bundle, pack), pack.calibration.ranges), module


@pytest.mark.parametrize("made", [every_operator, residual])
def test_forward_is_the_integer_model_bit_for_bit(
    made: Callable[[pytest.MonkeyPatch], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made(monkeypatch)
    pack = bundle.packs["kernel-task"]
    images = SMALL_IMAGES if made is every_operator else blurred_images(3, 32, seed=1).numpy()
    network, _ = learning(bundle)
    model = integer_model(network.operators, bundle, pack)
    with torch.no_grad():
        found = network.results(torch.from_numpy(images))
    for name, expected in model.results(images).items():
        zero_point = model.quantisations[name].zero_point if name in model.quantisations else 0
        assert np.array_equal(found[name].numpy() + zero_point, expected.astype(np.float32)), name


def test_weights_are_folded_as_a_task_s_are(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = every_operator(monkeypatch)
    network, module = learning(bundle)
    found = learned_weights(network.operators, module)
    expected = folded_weights(network.operators, bundle, bundle.packs["kernel-task"])
    assert found.keys() == expected.keys()
    for layer, arrays in expected.items():
        assert all(map(np.array_equal, found[layer], arrays)), layer


def test_a_layer_is_quantised_as_the_scheme_says() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0, weight[2] * np.float32(1e-9)  # Nothing, and less than its bias can be told in.
    weight[3, 0] = np.float32(63.5) / 127 * np.abs(weight[3]).max()
    bias = generator.standard_normal(6).astype(np.float32)
    bias[1] = 0
    expected = quantise_layer(weight, bias, DATA)
    found = quantised_layer(torch.from_numpy(weight), torch.from_numpy(bias), DATA)
    assert np.array_equal(found.weight.numpy(), expected.weight)
    assert np.array_equal(found.bias.numpy().astype(np.int32), expected.bias)
    assert np.array_equal(found.scale.numpy(), expected.scale)


def test_the_gradient_of_a_weight_is_that_of_what_it_stands_for() -> None:
    """d(sum · scale)/dw is the data, as if nothing were rounded."""
    weight = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    bias = torch.zeros(4, requires_grad=True)
    layer = quantised_layer(weight, bias, DATA)
    steps = torch.arange(7.0)
    ((layer.weight @ steps + layer.bias) * layer.scale).sum().backward()
    assert weight.grad is not None and bias.grad is not None
    assert torch.allclose(weight.grad, (steps * DATA.scale).expand(4, 7), rtol=1e-5)
    assert torch.allclose(bias.grad, torch.ones(4), rtol=1e-5)


def test_requantisation_rounds_ties_to_even_and_learns_between_its_bounds() -> None:
    sums = torch.tensor([-900.0, -3.0, 1.0, 3.0, 5.0, 900.0], requires_grad=True)
    bounds = (INTO.zero_point, 103)  # A ReLU and one more step than 2.
    found = requantised(sums, 0.5, INTO, bounds)
    expected = requantise(sums.detach().numpy().astype(np.int32), 0.5, INTO, bounds)
    assert (found.detach().numpy() + INTO.zero_point).tolist() == expected.tolist() == [100, 100, 100, 102, 102, 103]
    found.sum().backward()
    assert sums.grad is not None and sums.grad.tolist() == [0, 0, 0.5, 0.5, 0.5, 0]


def test_a_clamp_s_edges_learn_and_nothing_beyond_them() -> None:
    """What rounds to a bound is let through, from either side of it."""
    low, high = 90, 103
    products = torch.tensor([-10.6, -10.4, -10.0, -9.6, 2.6, 3.0, 3.4, 3.6], requires_grad=True)
    found = requantised(products, 1.0, INTO, (low, high))
    assert found.tolist() == [-10, -10, -10, -10, 3, 3, 3, 3]
    found.sum().backward()
    assert products.grad is not None and products.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


LARGE_SUMS = {
    "dense": (Convolution("layer", INPUT, "layer", has_bias=False, dense=True), (3, 1200), (4, 1200)),
    "window": (
        Convolution("layer", INPUT, "layer", has_bias=False, padding=(1, 1, 1, 1)),
        (2, 130, 5, 5),
        (4, 130, 3, 3),
    ),
    "groups": (Convolution("layer", INPUT, "layer", has_bias=False, groups=2), (2, 260, 5, 5), (4, 130, 3, 3)),
}


@pytest.mark.parametrize("kind", LARGE_SUMS)
def test_sums_that_float32_does_not_hold_are_exact(kind: str) -> None:
    operator, of_data, of_weight = LARGE_SUMS[kind]
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(200, 256, of_data, generator=generator).float().requires_grad_()
    weight = torch.randint(100, 128, of_weight, generator=generator).float().requires_grad_()
    expected = convolved(operator, data.detach().double(), weight.detach().double())
    assert expected.max() > 2**24 and not torch.equal(expected.float().double(), expected)
    found = exact_sums(operator, data, weight, 0)
    assert torch.equal(found.double(), expected)
    found.sum().backward()
    gradients = data.grad, weight.grad
    data.grad = weight.grad = None
    convolved(operator, data, weight).sum().backward()
    for exact, plain in zip(gradients, (data.grad, weight.grad), strict=True):
        assert exact is not None and plain is not None and torch.allclose(exact, plain, rtol=1e-5)


def test_logits_of_large_sums_are_the_integer_model_s() -> None:
    """4096 products of positive numbers: float32 alone would add up other logits."""
    generator = torch.Generator().manual_seed(0)
    learned = nn.ModuleDict({"head": nn.Linear(4096, 3)})
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / 2 + 0.5)
    network = Network((Convolution("head", INPUT, "head", has_bias=True, dense=True),), "head", 4096)
    images = torch.rand(5, 4096, generator=generator) / 2 + 0.5
    rounded_network = RoundedNetwork(learned, network, {INPUT: (0.0, 1.0)})
    model = quantised_model(network, learned_weights(network, learned), {INPUT: (0.0, 1.0)})
    assert np.array_equal(rounded_network(images).detach().numpy(), model.logits(images.numpy()))


def test_a_table_has_the_gradient_of_its_function() -> None:
    steps = torch.arange(-60.0, 60.0, 7.0, requires_grad=True)
    data, into = Quantisation(0.05, 128), Quantisation(0.02, 20)
    looked_up("silu", steps, data, into).sum().backward()
    x = steps.detach().numpy() * data.scale
    sigmoid = 1 / (1 + np.exp(-x))
    assert steps.grad is not None
    expected = sigmoid * (1 + x * (1 - sigmoid)) * data.scale / into.scale
    assert np.allclose(steps.grad.numpy(), expected, rtol=1e-4)


def test_large_values_are_rounded_exactly() -> None:
    values = torch.tensor([2.0**23 + 1, -(2.0**30), 0.5, 1.5, -2.5])
    assert torch.equal(rounded(values), torch.tensor([2.0**23 + 1, -(2.0**30), 0.0, 2.0, -2.0]))


def test_gradients_are_near_those_of_the_network_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, module = learning(every_operator(monkeypatch))
    images, gradients = torch.from_numpy(SMALL_IMAGES), []
    labels = torch.arange(len(images)) % 5
    for computed in (module, network):
        module.zero_grad()
        nn.functional.cross_entropy(computed(images), labels).backward()
        gradients.append([parameter.grad for parameter in module.parameters() if parameter.ndim > 1])
    angles = []
    for exact, found in zip(*gradients, strict=True):
        assert exact is not None and found is not None
        length = math.sqrt(float((exact**2).sum()) * float((found**2).sum()))
        angles.append(float((exact * found).sum()) / length)
    assert min(angles) > 0.7 and np.mean(angles) > 0.9, angles
