"""The arithmetic of int8: rounding, ranges, weights whose channels are near 0."""

from typing import get_args

import numpy as np
import pytest
import torch

from ksm_hw.quantising.activations import ActivationName, activated
from ksm_hw.quantising.scheme import (
    LARGEST_BIAS,
    NARROWEST,
    WIDEST,
    Quantisation,
    addition_factors,
    clamp_bounds,
    dequantise,
    is_range,
    lookup_table,
    quantisation_of,
    quantise,
    quantise_layer,
    requantise,
)


def test_what_is_quantised_is_off_by_half_a_step_and_zero_is_exact() -> None:
    values = np.linspace(-1.3, 2.9, 1001, dtype=np.float32)
    into = quantisation_of(-1.3, 2.9)
    assert np.abs(dequantise(quantise(values, into), into) - values).max() <= 0.5001 * into.scale
    assert dequantise(quantise(np.zeros(1, np.float32), into), into)[0] == 0
    assert list(quantise(np.array([-9, 9, np.inf], np.float32), into)) == [0, 255, 255]


def test_scale_and_zero_point_are_of_float32_operations() -> None:
    differing = 0
    for low, high in np.random.default_rng(0).uniform((-9, 0), (0, 9), (300, 2)).astype(np.float32):
        scale = (high - low) / np.float32(255)
        found = quantisation_of(float(low), float(high))
        assert (found.scale, found.zero_point) == (float(scale), int(np.rint(-low / scale)))
        differing += found.scale != np.float32((float(high) - float(low)) / 255)
    assert differing, "float64 would do as well"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [NARROWEST, WIDEST])
def test_the_narrowest_and_the_widest_range_quantise(width: float) -> None:
    assert is_range(-width, 0.0) and not (is_range(0.0, NARROWEST * 0.99) or is_range(-WIDEST * 1.01, 0.0))
    into = quantisation_of(-width / 2, width / 2)
    values = np.array([-width, -width / 4, 0, width / 4, width], np.float32)
    assert np.abs(dequantise(quantise(values, into), into) - np.clip(values, -width / 2, width / 2)).max() < width / 250
    weight = np.array([[1e-30, 0.0], [1e-15, -1e-15], [0.5, -0.5]], np.float32)
    layer = quantise_layer(weight, np.array([0.0, 0.0, 0.1], np.float32), into)
    assert layer.weight[:2].tolist() == [[0, 0], [127, -127]]
    assert np.isfinite(layer.scale).all() and (layer.scale > np.finfo(np.float32).tiny).all()


def test_ties_round_to_even() -> None:
    sums = np.array([1, 3, 5, -1, -3], np.int32)
    assert list(requantise(sums, np.float32(0.5), Quantisation(1.0, 10))) == [10, 12, 12, 10, 8]


def test_an_activation_is_the_clamp_of_quantised_values() -> None:
    into = quantisation_of(-3.0, 9.5)
    low, high = clamp_bounds(0.0, 6.0, into)
    assert low == into.zero_point
    assert high == into.zero_point + round(6.0 / into.scale)
    assert clamp_bounds(-np.inf, np.inf, into) == (0, 255)


def test_weights_have_a_scale_for_each_channel() -> None:
    weight = np.array([[[[0.5, -1.27]]], [[[100.0, 12.7]]]], np.float32)
    layer = quantise_layer(weight, np.array([0.02, -30], np.float32), Quantisation(0.5, 3))
    assert layer.weight.reshape(2, 2).tolist() == [[50, -127], [127, 16]]
    assert layer.bias.tolist() == [4, -76]
    assert layer.scale == pytest.approx([0.005, 50 / 127])


def test_a_channel_that_is_a_bias_alone_keeps_it() -> None:
    weight = np.array([[0.0, 0.0], [1e-30, 0.0], [0.0, 0.0]], np.float32)
    bias = np.array([3.7, -2.5, 0.0], np.float32)
    layer = quantise_layer(weight, bias, Quantisation(0.1, 0))
    assert not layer.weight.any()
    assert np.abs(layer.bias).max() <= LARGEST_BIAS
    assert layer.bias * layer.scale == pytest.approx(bias, rel=1e-6)


@pytest.mark.parametrize("function", get_args(ActivationName))
def test_a_table_is_off_by_half_a_step_of_its_function(function: ActivationName) -> None:
    data, into = quantisation_of(-7.0, 9.0), quantisation_of(-0.5, 7.5)
    values = np.arange(256, dtype=np.uint8)
    exact = getattr(torch.nn.functional, function)(torch.from_numpy(dequantise(values, data)).double()).numpy()
    table = lookup_table(function, data, into)
    assert table.dtype == np.uint8
    assert np.abs(dequantise(table, into) - exact.clip(-0.5, 7.5)).max() <= 0.5001 * into.scale


@pytest.mark.filterwarnings("error")
def test_a_sigmoid_is_near_the_true_one_everywhere() -> None:
    values = np.concatenate([np.linspace(-30, 30, 10001), [-1e15, -79, 79, 1e15]])
    exact = torch.sigmoid(torch.from_numpy(values)).numpy()
    assert np.abs(activated("sigmoid", values) - exact).max() < 1e-12


@pytest.mark.parametrize("scales", [(0.1, 0.3, 0.35), (2.0, 1e-4, 1.7), (1e-3, 1.0, 0.5)])
def test_an_addition_is_off_by_half_a_step(scales: tuple[float, float, float]) -> None:
    left, right, into = (Quantisation(float(np.float32(scale)), 100) for scale in scales)
    generator = np.random.default_rng(0)
    q, r = (generator.integers(0, 256, 1000).astype(np.uint8) for _ in range(2))
    factor, other, multiplier = addition_factors(left, right, into)
    sums = (q.astype(np.int32) - 100) * np.int32(factor) + (r.astype(np.int32) - 100) * np.int32(other)
    exact = np.clip(dequantise(q, left) + dequantise(r, right), -100 * into.scale, 155 * into.scale)
    assert np.abs(dequantise(requantise(sums, multiplier, into), into) - exact).max() <= 0.51 * into.scale
