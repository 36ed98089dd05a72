"""Looking up bytes in a table, by each CPU's instructions."""

from pathlib import Path

import numpy as np
import pytest
import tvm
from board_processes import needs_emulated_board
from kernel_cases import Case, assert_computed, assert_computed_on_a_board, built, target_of
from tvm.target.codegen import llvm_get_system_cpu

from tvm_passes.relax.kernels.integer_look_up import look_up
from tvm_passes.relax.kernels.integer_vectors import integer_vectors

INSTRUCTIONS = {"icelake-client": "vpermt2b", "haswell": "movzbl", "rpi4": "tbx", "rpi5": "tbx"}
SHAPES = [(1, 3, 3, 7), (2, 5, 64), (3, 61, 67, 3)]


def cases(target: tvm.target.Target) -> dict[str, Case]:
    """Less than a vector, whole vectors, and several tasks with a rest; every byte is an entry of the table."""
    vectors, generator = integer_vectors(target), np.random.default_rng(0)
    data_type = "uint8" if vectors is None else vectors.data_type
    found = {}
    for shape in SHAPES:
        data, table = (generator.integers(0, 256, of, np.uint8) for of in (shape, (256,)))
        arguments = [one.view(data_type) for one in (data, table, np.zeros_like(data))]
        found[f"of {shape}"] = Case(look_up(shape, data_type, vectors, 4), arguments, table[data].view(data_type))
    return found


@pytest.mark.parametrize("cpu", INSTRUCTIONS)
def test_the_instruction_of_a_cpu(cpu: str) -> None:
    target = target_of(cpu)
    assert INSTRUCTIONS[cpu] in built(cases(target), target).inspect_source("asm")


@pytest.mark.parametrize("cpu", [llvm_get_system_cpu(), "x86-64"])
def test_every_byte_is_looked_up(cpu: str) -> None:
    target = target_of(cpu)
    found = cases(target)
    assert_computed(built(found, target), found)


@pytest.mark.slow  # An emulated board.
@needs_emulated_board
@pytest.mark.parametrize("board", ["rpi5", "rpi4"])
def test_every_byte_is_looked_up_on_a_board(board: str, tmp_path: Path) -> None:
    target = target_of(board)
    found = cases(target)
    assert_computed_on_a_board(built(found, target), found, target, tmp_path)
