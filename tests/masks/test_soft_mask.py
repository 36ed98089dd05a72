"""Packing a soft mask and reading it back; its size; how it broadcasts; and what a damaged one answers."""

import dataclasses
import math

import numpy as np
import pytest

from ksm_hw.errors import UserError
from ksm_hw.masks.mask_format import GRANULARITIES, GROUP_SIZE, Granularity, mask_shape
from ksm_hw.masks.soft_mask import (
    PackedMask,
    binary_mask,
    broadcast_mask,
    check_packed,
    pack_mask,
    soft_values,
    unpack_mask,
)

# Convolutions, a depthwise one, linear layers; none of 37, 1, 3 and 11 fills whole bytes or groups.
WEIGHT_SHAPES = [(37, 11, 3, 3), (8, 16, 1, 1), (5, 1, 3, 3), (1, 1, 1, 1), (13, 7), (3, 24, 5, 5)]


def random_mask(shape: tuple[int, ...], seed: int = 0, ones: float = 0.6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    values = generator.uniform(0, 0.5, shape).astype(np.float32)
    return np.where(generator.random(shape) < ones, np.float32(1), values)


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    assert left.dtype == right.dtype and left.shape == right.shape
    assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("weight_shape", WEIGHT_SHAPES)
def test_unpacking_gives_the_packed_bits_back(weight_shape: tuple[int, ...], granularity: Granularity) -> None:
    mask = random_mask(mask_shape(weight_shape, granularity))
    packed = pack_mask(mask)
    check_packed(packed, "test")
    assert_same_bits(unpack_mask(packed), mask)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 63, 64, 65])
def test_every_remainder_of_eight(count: int) -> None:
    for ones in (0.0, 0.5, 1.0):
        mask = random_mask((count,), seed=count, ones=ones)
        packed = pack_mask(mask)
        assert packed.bits.shape == (math.ceil(count / 8),)
        assert_same_bits(unpack_mask(packed), mask)


def test_values_near_one_and_negative_zero_survive() -> None:
    below, above = np.nextafter(np.float32(1), np.float32([0, 2]))
    mask = np.array([1, below, above, 0, -0.0, -3, np.finfo(np.float32).smallest_subnormal], np.float32)
    packed = pack_mask(mask)
    assert binary_mask(packed).tolist() == [True, *[False] * 6]
    assert_same_bits(unpack_mask(packed), mask)


def test_first_value_is_the_highest_bit() -> None:
    mask = np.array([1, 0, 0, 0, 0, 0, 0, 0.5, 0, 1], np.float32)
    assert pack_mask(mask).bits.tolist() == [0b1000_0000, 0b0100_0000]


def test_a_value_costs_one_bit_and_a_soft_value_only_where_it_is_zero() -> None:
    mask = random_mask((37, 11, 1, 1))
    zeros = int((mask != 1).sum())
    packed = pack_mask(mask)
    assert packed.bits.nbytes == math.ceil(37 * 11 / 8)
    assert packed.scale.dtype == np.float32 and packed.scale.shape == (zeros,)
    assert_same_bits(packed.scale, mask[mask != 1])
    assert packed.nbytes == math.ceil(37 * 11 / 8) + 4 * zeros
    assert pack_mask(mask, 8).nbytes == math.ceil(37 * 11 / 8) + zeros
    assert pack_mask(mask, 4).nbytes == math.ceil(37 * 11 / 8) + math.ceil(zeros / 2)


def test_a_binary_mask_stores_no_soft_values() -> None:
    mask = (random_mask((19, 3, 1, 1)) == 1).astype(np.float32)
    packed = pack_mask(mask, 0)
    check_packed(packed, "test")
    assert packed.scale.size == 0 and packed.nbytes == math.ceil(19 * 3 / 8)
    assert_same_bits(unpack_mask(packed), mask)
    assert soft_values(packed).size == 0


@pytest.mark.parametrize("others", [(0, -1), (-1, -1), (0.25, 0.75)])
def test_a_mask_of_two_values_beside_1_takes_a_bit_for_each_and_one_more_where_it_is_not_1(
    others: tuple[float, float],
) -> None:
    mask = np.random.default_rng(0).choice(np.array([1, *others], np.float32), (19, 3, 3, 3))
    packed = pack_mask(mask, 1)
    check_packed(packed, "test")
    assert packed.nbytes == math.ceil(mask.size / 8) + math.ceil((mask != 1).sum() / 8)
    assert_same_bits(unpack_mask(packed), mask)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(37, 11), (9,), (64,)])
def test_quantising_is_off_by_at_most_half_a_step(bits: int, shape: tuple[int, ...]) -> None:
    mask = random_mask(shape, seed=bits)
    packed = pack_mask(mask, bits)  # type: ignore[arg-type]
    check_packed(packed, "test")
    values = mask[mask != 1].astype(np.float64)
    step = (values.max() - values.min()) / (2**bits - 1)
    error = np.abs(unpack_mask(packed).astype(np.float64) - mask)
    assert error.max() <= step / 2 + 1e-7
    assert (unpack_mask(packed)[mask == 1] == 1).all()
    # The ends of the range are codes themselves.
    assert np.isclose(soft_values(packed).min(), values.min()) and np.isclose(soft_values(packed).max(), values.max())


@pytest.mark.parametrize("bits", [32, 8, 4, 1])
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_layer_whose_soft_values_are_all_the_same(value: float, bits: int) -> None:
    mask = np.array([[1, value, value], [value, 1, value]], np.float32)
    packed = pack_mask(mask, bits)  # type: ignore[arg-type]
    check_packed(packed, "test")
    assert_same_bits(unpack_mask(packed), mask)


@pytest.mark.parametrize("bits", [32, 8, 4, 1, 0])
def test_a_layer_without_zeros(bits: int) -> None:
    packed = pack_mask(np.ones((5, 3), np.float32), bits)  # type: ignore[arg-type]
    check_packed(packed, "test")
    assert packed.scale.size == 0
    assert_same_bits(unpack_mask(packed), np.ones((5, 3), np.float32))


@pytest.mark.parametrize(
    ("mask", "bits"),
    [
        (np.ones(3, np.float64), 32),
        (np.array([1, np.nan], np.float32), 32),
        (np.array([1, np.inf], np.float32), 8),
        (np.array([1, 0.5], np.float32), 0),
        (np.array([1, 0, -1, 0.5], np.float32), 1),
    ],
)
def test_what_is_no_soft_mask_is_refused(mask: np.ndarray, bits: int) -> None:
    with pytest.raises(ValueError, match="mask"):
        pack_mask(mask, bits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("granularity", "weight_shape", "expected"),
    [
        ("kernel", (6, 5, 3, 3), (6, 5, 1, 1)),
        ("kernel", (6, 5), (6, 5)),
        ("element", (6, 5, 3, 3), (6, 5, 3, 3)),
        ("channel", (6, 5, 3, 3), (6, 1, 1, 1)),
        ("channel", (6, 5), (6, 1)),
        ("group", (6, 5, 3, 3), (6, 1, 1, 1)),
        ("group", (6, 17), (6, 3)),
    ],
)
def test_shape_of_a_mask(granularity: Granularity, weight_shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert mask_shape(weight_shape, granularity) == expected


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("weight_shape", WEIGHT_SHAPES)
def test_broadcasting_equals_a_loop(weight_shape: tuple[int, ...], granularity: Granularity) -> None:
    mask = random_mask(mask_shape(weight_shape, granularity), seed=3)
    weight = np.random.default_rng(4).standard_normal(weight_shape).astype(np.float32)
    expected = np.empty_like(weight)
    for index in np.ndindex(*weight_shape):
        output, channel, *place = index
        nothing = [0] * len(place)
        read = {
            "kernel": (output, channel, *nothing),
            "element": index,
            "channel": (output, 0, *nothing),
            "group": (output, channel // GROUP_SIZE, *nothing),
        }[granularity]
        expected[index] = weight[index] * mask[read]
    assert_same_bits(weight * broadcast_mask(mask, weight_shape, granularity), expected)


def packed_example(bits: int = 32) -> PackedMask:
    mask = random_mask((9, 5, 1, 1))
    return pack_mask(np.floor(mask) if bits == 1 else mask, bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [32, 8, 4, 1])
def test_too_few_bits_or_soft_values_are_named(bits: int) -> None:
    packed = packed_example(bits)
    with pytest.raises(UserError, match=r"here: .*needs 6 bytes of bits, found 5"):
        check_packed(dataclasses.replace(packed, bits=packed.bits[:-1]), "here")
    with pytest.raises(UserError, match=r"here: \d+ zeros of the mask need"):
        check_packed(dataclasses.replace(packed, scale=packed.scale[:-1]), "here")


def test_a_flipped_bit_no_longer_fits_the_soft_values() -> None:
    packed = packed_example()
    bits = packed.bits.copy()
    bits[0] ^= 0b1000_0000
    with pytest.raises(UserError, match="zeros of the mask need"):
        check_packed(dataclasses.replace(packed, bits=bits), "here")


def test_a_binary_mask_with_soft_values_is_refused() -> None:
    packed = pack_mask(np.array([1, 0], np.float32), 0)
    with pytest.raises(UserError, match="need 0 stored soft values, found 1"):
        check_packed(dataclasses.replace(packed, scale=np.zeros(1, np.uint8)), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"scale_bits": 5},
        {"shape": (9, -5, 1, 1)},
        {"shape": (9.0, 5, 1, 1)},
        {"scale": np.zeros(20, np.float64)},
        {"bits": np.zeros(6, np.float32)},
        {"scale_range": (float("nan"), 0.0)},
    ],
)
def test_a_header_that_makes_no_sense_is_a_message(change: dict[str, object]) -> None:
    packed = dataclasses.replace(packed_example(), **change)  # type: ignore[arg-type]
    if "scale_range" in change:
        packed = dataclasses.replace(packed, scale_bits=8, scale=np.zeros(packed.scale.shape, np.uint8))
    with pytest.raises(UserError, match="here"):
        check_packed(packed, "here")
