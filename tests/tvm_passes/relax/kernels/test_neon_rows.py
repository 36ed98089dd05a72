"""Weights rewritten by NEON: bit for bit what NumPy makes of them on an emulated board, and cheap by LLVM's tables."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from board_processes import EMULATED_PYTHON, needs_emulated_board
from tvm import tirx
from weight_rewrites import MASKS, assert_as_expected, kernel_and_expected

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "benchmarks"))

from arm64_loops.cores import BOARDS
from arm64_rewriting import KERNELS, cycles

from ksm_hw.toolchains.linker import link_shared_library, linker_command
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.pipeline import loop_pipeline

RPI4 = tvm.target.Target(dict(load_target("rpi4").tvm))


REWRITES = {
    "codes": WeightRewrite((48, 80, 1, 1), 80, 1, 24, True, 1e-3, coded=True),
    "floats": WeightRewrite((48, 80, 1, 1), 80, 1, 24, True, 1e-3),
    "elements": WeightRewrite((32, 8, 3, 3), 72, 1, 16, True, 1e-5),
    "codes_rounded": WeightRewrite((48, 80, 1, 1), 80, 1, 24, True, 1e-3, coded=True, rounds=True),
    "odd": WeightRewrite((37, 20, 1, 1), 20, 1, 37, False, 1e-5, coded=True),
    "a_kernel_a_value": WeightRewrite((40, 11, 3, 3), 11, 9, 8, True, 1e-5, coded=True),
}
# Of a kernel that is shared: less than a tile, a whole one, and most of a second.
CHANNELS = {"codes": [(48, 80), (24, 8), (48, 64), (72, 120)], "floats": [(48, 80), (24, 8)]}


@needs_emulated_board
def test_weights_on_a_board_are_those_of_numpy(tmp_path: Path) -> None:
    kernels = {
        name: weight_rewrite(rewrite.shared, RPI4).with_attr("global_symbol", name)
        for name, rewrite in REWRITES.items()
    }
    objects = str(tmp_path / "kernels.o")
    tirx.build(tvm.IRModule(kernels), target=RPI4, pipeline=loop_pipeline()).write_to_file(objects)
    link_shared_library(linker_command("aarch64"), str(tmp_path / "kernels.so"), [objects])
    arguments, expected = {}, {}
    for name, rewrite in REWRITES.items():
        for channels in CHANNELS.get(name, [rewrite.shape[:2]]):
            for kind, (ones, binary) in MASKS.items():
                shape = (*channels, *rewrite.shape[2:])
                columns = rewrite.columns if channels == rewrite.shape[:2] else channels[1]
                case = dataclasses.replace(rewrite, shape=shape, columns=columns)
                inputs, result = kernel_and_expected(case, ones, binary)
                call = f"{name}/{channels}, {kind}"
                expected[call] = case, result
                for place, array in enumerate([*inputs, np.full(result.shape, np.nan, np.float32)]):
                    arguments[f"{call}/{place}"] = array
    np.savez(tmp_path / "arguments.npz", **arguments)
    program = Path(__file__).parents[3] / "kernels_on_a_board.py"
    files = (tmp_path / name for name in ("kernels.so", "arguments.npz", "results.npz"))
    environment = {**os.environ, "QEMU_CPU": "cortex-a72"}
    subprocess.run([EMULATED_PYTHON, program, *files], check=True, env=environment)
    results = np.load(tmp_path / "results.npz")
    for call, (case, result) in expected.items():
        assert_as_expected(case, results[call], result)


@pytest.mark.parametrize("name", ["codes of 8 bits", "float32"])
def test_rewriting_is_cheap_on_cortex_a76(name: str) -> None:
    """By llvm-mca, which times nothing; 279 and 213 before NEON's `tbl`."""
    (core,) = BOARDS["rpi5"]
    usual, *others = cycles(KERNELS[name], tvm.target.Target(dict(load_target("rpi5").tvm)), core)
    assert usual < 136 and others and max(others) < 170
