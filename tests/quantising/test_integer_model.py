"""A network as int8 sees it, what is calibrated of it, and the integer model."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from random_tasks import random_bundle
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.growth import carried_over, padded_tensor
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising import network
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.float_model import float_results
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import integer_model, sums
from ksm_hw.quantising.network import Convolution, NotQuantisable, network_of, read_network
from ksm_hw.quantising.observers import BiasCorrection
from ksm_hw.quantising.scheme import (
    LARGEST,
    LARGEST_BIAS,
    LARGEST_WEIGHT,
    MOST_PIXELS,
    MOST_PRODUCTS,
    QuantisedLayer,
    dequantise,
)

IMAGES = np.random.default_rng(0).standard_normal((6, 3, 32, 32), np.float32)


def calibrated(bundle: Bundle, task: str, observer: str = "minmax") -> Bundle:
    pack = bundle.packs[task]
    found = calibrate(bundle, pack, [IMAGES[:4], IMAGES[4:]], observer)  # type: ignore[arg-type]
    return dataclasses.replace(bundle, packs={task: dataclasses.replace(pack, calibration=found)})


@pytest.fixture(scope="module")
def residual() -> Bundle:
    """A network with residual additions, ReLUs behind them, and pooling."""
    return random_bundle("resnet18", image_size=32, granularities=("kernel",))


@pytest.mark.parametrize("network", ["bundle", "residual"])
def test_the_operators_of_a_network_compute_its_logits(network: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(network)
    pack = bundle.packs["kernel-task"]
    operators = read_network(bundle.backbone, len(pack.classes), 32)
    with torch.inference_mode():
        expected = task_module(bundle, pack)(torch.from_numpy(IMAGES)).numpy()
    found = float_results(operators, folded_weights(operators, bundle, pack), IMAGES)[operators.logits].numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_tensors_have_the_names_of_layers() -> None:
    names = read_network("resnet18", 5, 32).ranged_tensors()
    assert names[:4] == ["input", "conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert "layer2.0.downsample.0/addition" in names
    assert names[-1] == "layer4.1.conv2/mean"


def test_sums_that_32_bits_do_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = LARGEST * LARGEST_WEIGHT
    assert LARGEST_BIAS + MOST_PRODUCTS * largest < 2**31 <= LARGEST_BIAS + (MOST_PRODUCTS + 1) * largest
    assert MOST_PIXELS * LARGEST < 2**31 <= (MOST_PIXELS + 1) * LARGEST
    read = read_network.__wrapped__
    assert read("resnet18", 5, 64).most_values == 64 * 32 * 32
    for limit, most, message in (
        ("MOST_PRODUCTS", 9 * 512, ""),
        ("MOST_PRODUCTS", 9 * 512 - 1, r"sums of 4608 products \('layer4.0.conv2'\), more than 4607, which resnet18"),
        ("MOST_PIXELS", 4, ""),
        ("MOST_PIXELS", 3, r"a mean of 4 pixels, more than 3, which resnet18 has. Use float32"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(network, limit, most)
            with pytest.raises(NotQuantisable, match=message) if message else contextlib.nullcontext():
                read("resnet18", 5, 64)


def test_a_network_that_int8_does_not_know_is_refused() -> None:
    with pytest.raises(NotQuantisable, match=r"int8 does not know .*head 'classifier.1'.*squeezenet1_1.*float32"):
        read_network("squeezenet1_1", 5, 32)


class Transforming(nn.Module):
    """A convolution, an operator that no page names, and with `norm` what transformers are made of."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.head, self.norm = nn.Conv2d(3, 4, 1), nn.Linear(4, 5), norm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images).permute(0, 2, 3, 1)
        x = nn.functional.gelu(nn.functional.layer_norm(x, (4,))) if self.norm else x
        return self.head(x.mean((1, 2)))


class PooledTo(nn.Module):
    """What VGG does: pooling to a size, whatever is there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 5), nn.Linear(4 * 7 * 7, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.adaptive_avg_pool2d(self.first(images), (7, 7)).flatten(1))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: Transforming(norm=True), "LayerNorm, GELU"),
        (lambda: Transforming(norm=False), "the operator 'permute'"),
        (PooledTo, "mean pooling from 2×2 to 7×7 pixels (images of another size may need none)"),
    ],
)
def test_what_int8_does_not_know_is_said_in_words(
    build: Callable[[], nn.Module], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "head_path", lambda _model: "head")
    monkeypatch.setattr(network, "build_backbone", lambda _name, _classes: build())
    with pytest.raises(NotQuantisable, match=f"^int8 does not know {re.escape(what)}, which own has. Use float32.$"):
        read_network.__wrapped__("own", 5, 6)


class Resting(nn.Module):
    """Operators that change nothing: pooling to the size that is there, and dropout in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 5), nn.Linear(4 * 4 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = nn.functional.adaptive_avg_pool2d(self.first(images), (4, 4))
        return self.head(nn.functional.dropout(features.flatten(1), training=self.training, inplace=True))


class Windows(nn.Module):
    """Means of windows, with some padding."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.head, self.padding = nn.Conv2d(3, 4, 5), nn.Linear(4, 5), padding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.avg_pool2d(self.first(images), 2, padding=self.padding)
        return self.head((x * x.sigmoid()).mean((2, 3)))


def test_means_of_windows_and_a_silu_that_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "head_path", lambda _model: "head")
    monkeypatch.setattr(network, "build_backbone", lambda _name, _classes: Windows(0))
    operators = read_network("windows", 5, 12).operators
    names = [one.result for one in operators]
    assert names == ["first", "first/mean", "first/silu", "first/mean_2", "head"]
    assert operators[1] == network.WindowMean("first/mean", "first", (2, 2), (2, 2))
    monkeypatch.setattr(network, "build_backbone", lambda _name, _classes: Windows(1))
    with pytest.raises(NotQuantisable, match=r"a mean of windows that are padded.*padded-windows has. Use float32"):
        read_network("padded-windows", 5, 12)


class Twice(nn.Module):
    """A layer or a BatchNorm that is used twice."""

    def __init__(self, used: nn.Module) -> None:
        super().__init__()
        self.first, self.used, self.head = nn.Conv2d(3, 4, 1), used, nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(images).relu()
        return self.head(self.used(self.used(x) * x).mean((2, 3)))


@pytest.mark.parametrize("used", [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)])
def test_what_is_used_twice_is_refused(used: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "head_path", lambda _model: "head")
    monkeypatch.setattr(network, "build_backbone", lambda _name, _classes: Twice(used))
    with pytest.raises(NotQuantisable, match=r"a layer 'used' that is used twice"):
        read_network.__wrapped__("twice", 5, 12)


def test_pooling_to_the_same_size_and_dropout_move_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "build_backbone", lambda _name, _classes: Resting())
    monkeypatch.setattr(network, "head_path", lambda _model: "head")
    operators = read_network("resting", 5, 8).operators
    assert [type(one).__name__ for one in operators] == ["Convolution", *["Rearrangement"] * 3, "Convolution"]
    data = torch.rand(2, 4, 4, 4)
    for one in operators[1:-1]:
        assert isinstance(one, network.Rearrangement)
        data = one.function(data)
    assert data.shape == (2, 64)


def test_ranges_are_the_extremes_of_all_images_with_zero_in_them(bundle: Bundle) -> None:
    pack = bundle.packs["kernel-task"]
    found = calibrated(bundle, "kernel-task").packs["kernel-task"].calibration
    assert found is not None
    assert (found.images, found.image_size, found.backbone_sha256) == (6, 32, bundle.backbone_sha256)
    network = read_network(bundle.backbone, len(pack.classes), 32)
    results = float_results(network, folded_weights(network, bundle, pack), IMAGES)
    assert list(found.ranges) == network.ranged_tensors()
    for name, (low, high) in found.ranges.items():
        assert (low, high) == pytest.approx((min(0, float(results[name].min())), float(results[name].max())), rel=1e-4)


@pytest.mark.parametrize("observer", ["histogram", "percentile"])
def test_other_observers_choose_ranges_inside_of_the_extremes(bundle: Bundle, observer: str) -> None:
    extremes, chosen = (
        calibrated(bundle, "kernel-task", name).packs["kernel-task"].calibration for name in ("minmax", observer)
    )
    assert extremes is not None and chosen is not None
    widths = [
        (chosen.ranges[name][1] - chosen.ranges[name][0]) / (high - low)
        for name, (low, high) in extremes.ranges.items()
    ]
    assert max(widths) < 1.02
    assert 0.3 < min(widths) < 0.999


@pytest.mark.parametrize("network", ["bundle", "residual"])
def test_the_integer_model_is_near_the_float_one(network: str, request: pytest.FixtureRequest) -> None:
    bundle = calibrated(request.getfixturevalue(network), "kernel-task")
    pack = bundle.packs["kernel-task"]
    operators = read_network(bundle.backbone, len(pack.classes), 32)
    model = integer_model(operators, bundle, pack)
    exact = float_results(operators, folded_weights(operators, bundle, pack), IMAGES)
    for name, result in model.results(IMAGES).items():
        found = result if name == operators.logits else dequantise(result, model.quantisations[name])
        noise = float(np.square(found - exact[name].numpy()).mean())
        assert noise < 0.1 * float(exact[name].square().mean()), name


# Letters on an even ground are such: what rounding does to the products of a few weights does not average out.
EVEN = 0.05 * IMAGES + np.random.default_rng(1).standard_normal((6, 3, 1, 1)).astype(np.float32)


def channel_shifts(bundle: Bundle, pack: TaskPack) -> list[float]:
    """Of the first six layers, by how much of its spread the means of channels are off, in the integer model."""
    operators = network_of(bundle, pack)
    known = float_results(operators, folded_weights(operators, bundle, pack), EVEN)
    model = integer_model(operators, bundle, pack)
    found, shifts = model.results(EVEN), []
    for layer in (one.result for one in operators.convolutions[:6]):
        exact = known[layer].numpy()
        off = dequantise(found[layer], model.quantisations[layer]) - exact
        shifts.append(float(np.abs(off.mean((0, *range(2, exact.ndim)))).mean() / exact.std()))
    return shifts


def test_corrected_biases_take_out_what_rounding_shifts(bundle: Bundle) -> None:
    """Later layers of random weights make too much of the least difference to tell."""
    pack = bundle.packs["kernel-task"]
    names = [f"{one.batch_norm}.bias" for one in network_of(bundle, pack).convolutions[:-1]] + ["head/bias"]
    shifts = {}
    for correction, expected in (("none", []), ("first", names[:1]), ("all", names)):
        found = calibrate(bundle, pack, [EVEN[:4], EVEN[4:]], "minmax", correction=cast(BiasCorrection, correction))
        assert list(found.biases) == expected
        shifts[correction] = channel_shifts(bundle, dataclasses.replace(pack, calibration=found))
    assert shifts["first"][0] == shifts["all"][0] < 0.8 * shifts["none"][0]
    assert sum(shifts["all"]) < 0.7 * sum(shifts["first"])


def test_a_depthwise_network_that_grew_is_as_wide_as_its_weights() -> None:
    narrow = random_bundle("mobilenet_v2", image_size=32, granularities=("element",))
    (pack,) = narrow.packs.values()
    shapes = {name: tuple(size if size in (1, 3) else size * 3 // 2 for size in array.shape)
              for name, array in narrow.tensors.items()}  # fmt: skip
    tensors = {name: padded_tensor(name, array, shapes[name]) for name, array in narrow.tensors.items()}
    sha256 = sha256_of_tensors(tensors)
    head = (pack.head_weight.shape[1] * 3 // 2,)
    wide = carried_over(pack, narrow.tensors, tensors, sha256, head)
    grown = Bundle(narrow.backbone, sha256, tensors, {wide.task: wide})
    found = calibrated(grown, pack.task).packs[pack.task].calibration
    operators = network_of(grown, wide)
    with torch.inference_mode():
        expected = task_module(grown, wide)(torch.from_numpy(IMAGES)).numpy()
    logits = float_results(operators, folded_weights(operators, grown, wide), IMAGES)[operators.logits].numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    model = integer_model(operators, grown, dataclasses.replace(wide, calibration=found))
    assert model.logits(IMAGES).shape == expected.shape


@pytest.mark.parametrize("factor", [1e-17, 1e30])
def test_tensors_of_values_that_float32_cannot_scale(bundle: Bundle, factor: float) -> None:
    pack = bundle.packs["kernel-task"]
    if factor > 1:
        with pytest.raises(UserError, match="'input' that are too large or not finite"):
            calibrate(bundle, pack, [IMAGES * np.float32(factor)], "minmax")
    else:
        assert calibrate(bundle, pack, [IMAGES * np.float32(factor)], "minmax").ranges["input"] == (0, 1)


def test_sums_are_exact_where_float32_is_not() -> None:
    generator = np.random.default_rng(0)
    data = generator.integers(200, 256, (1, 700, 5, 5)).astype(np.uint8)
    layer = QuantisedLayer(
        generator.integers(100, 128, (8, 700, 3, 3)).astype(np.int8),
        generator.integers(-9, 9, 8).astype(np.int32),
        np.ones(8, np.float32),
    )
    found = sums(Convolution("c", "x", "c", True, padding=(1, 0, 0, 1)), data, 3, layer)
    padded = np.pad(data.astype(np.int64) - 3, ((0, 0), (0, 0), (1, 0), (0, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    exact = np.einsum("niyxkl,oikl->noyx", windows, layer.weight.astype(np.int64)) + layer.bias.reshape(-1, 1, 1)
    assert exact.max() > 2**24
    assert np.array_equal(found, exact)


def test_the_same_calibration_of_the_same_images(bundle: Bundle) -> None:
    first, again = (calibrated(bundle, "element-task").packs["element-task"].calibration for _ in range(2))
    assert isinstance(first, Calibration) and first == again
