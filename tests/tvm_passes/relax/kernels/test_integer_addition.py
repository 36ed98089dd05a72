"""Sums of bytes are those of the integers that are stated, by each CPU's vectors."""

import re
from pathlib import Path

import numpy as np
import pytest
import tvm
from board_processes import needs_emulated_board
from kernel_cases import Case, assert_computed, assert_computed_on_a_board, built, target_of
from tvm.target.codegen import llvm_get_system_cpu

from tvm_passes.relax.kernels.integer_addition import fills_vectors, integer_addition
from tvm_passes.relax.kernels.integer_vectors import integer_vectors

# A vector and a rest, one task and a rest, and several of which the last is short.
SHAPES = [(1, 5, 13), (2, 9, 40), (1, 61, 67, 32)]
# Zero points, factors of which the larger is 2^16 and the product of both at most 2^25, and the result's bounds.
PARAMETERS = [(117, 1 << 16, 3, 40503, 7.1e-6), (0, 1, 255, 1 << 16, 1.5e-5), (255, 1 << 16, 0, (1 << 16) - 1, 3e-6)]
BOUNDS = [(0, 0, 255), (128, 128, 255), (7, 10, 201)]


def cases(target: tvm.target.Target) -> dict[str, Case]:
    """All pairs of bytes are in the largest; what is halfway between two integers is in the second."""
    vectors, generator = integer_vectors(target), np.random.default_rng(0)
    assert vectors is not None
    found = {}
    for shape, (zero, factor, other_zero, other_factor, multiplier), bounds in zip(
        SHAPES, PARAMETERS, BOUNDS, strict=True
    ):
        left, right = (generator.integers(0, 256, shape, np.uint8) for _ in range(2))
        if left.size > 1 << 16:
            every = np.arange(1 << 16)
            left.reshape(-1)[: 1 << 16], right.reshape(-1)[: 1 << 16] = every >> 8, every & 255
        of_left, of_right = left.astype(np.int32) - zero, right.astype(np.int32) - other_zero
        sums = of_left * factor + of_right * other_factor
        steps = np.rint(sums.astype(np.float32) * np.float32(multiplier)) + bounds[0]
        expected = np.clip(steps, *bounds[1:]).astype(np.uint8)
        stored = [one if vectors.data_type == "uint8" else (one ^ 128).view(np.int8) for one in (left, right, expected)]
        numbers = (zero, factor, other_zero, other_factor, multiplier)
        arguments = [*stored[:2], np.array(numbers, np.float32), np.array(bounds, np.float32), np.zeros_like(stored[2])]
        assert fills_vectors(shape, vectors)
        found[f"of {shape}"] = Case(integer_addition(shape, vectors, 4), arguments, stored[2])
    return found


@pytest.mark.parametrize("cpu", [llvm_get_system_cpu(), "haswell"])
def test_sums_are_those_of_integers(cpu: str) -> None:
    target = target_of(cpu)
    if integer_vectors(target) is None:
        pytest.skip("this machine has no vectors for integers")
    found = cases(target)
    assert_computed(built(found, target), found)


@pytest.mark.parametrize("cpu", ["cascadelake", "haswell", "rpi4", "rpi5"])
def test_no_integers_are_multiplied(cpu: str) -> None:
    target = target_of(cpu)
    assembly = built(cases(target), target).inspect_source("asm")
    assert not re.search(r"\t(vpmulld|mul\tv|mla\tv)", assembly)
    assert re.search(r"\t(vmulps|fmul\tv)", assembly)


@pytest.mark.slow  # An emulated board.
@needs_emulated_board
@pytest.mark.parametrize("board", ["rpi5", "rpi4"])
def test_sums_on_a_board_are_those_of_integers(board: str, tmp_path: Path) -> None:
    target = target_of(board)
    found = cases(target)
    assert_computed_on_a_board(built(found, target), found, target, tmp_path)
