"""Convolutions by each CPU's instructions for integers: bit for bit what NumPy makes of them, by the instruction."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm
from board_processes import EMULATED_PYTHON, needs_emulated_board
from integer_convolutions import SHAPES, cases, named, symbol
from tvm import tirx

from ksm_hw.toolchains.linker import link_shared_library, linker_command
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.pipeline import loop_pipeline

# CPUs, and what the machine that runs their code has by /proc/cpuinfo.
CPUS = {"cascadelake": {"avx512_vnni", "avx512bw"}, "alderlake": {"avx_vnni"}, "haswell": {"avx2"}}
BOARDS = ["rpi5", "rpi4"]
FEW = ["first layer", "grouped", "no padding", "dense", "depthwise", "depthwise 5x5"]


def has(features: set[str]) -> bool:
    with open("/proc/cpuinfo") as file:
        return any(features <= set(line.split()) for line in file if line.startswith("flags"))


@pytest.mark.parametrize("cpu", CPUS)
def test_convolutions_are_those_of_numpy(cpu: str) -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    vectors = integer_vectors(target)
    assert vectors is not None
    found = cases(vectors, SHAPES if vectors.lanes == 16 else FEW)
    library = tirx.build(named(found), target=target, pipeline=loop_pipeline())
    assert vectors.instruction in library.inspect_source("asm")
    if not has(CPUS[cpu]):
        pytest.skip(f"this machine cannot run code for {cpu}")
    for name, case in found.items():
        tensors = [tvm.runtime.tensor(array) for array in case.arguments]
        library[symbol(name)](*tensors)
        assert np.array_equal(tensors[-1].numpy(), case.expected), name


@pytest.mark.slow  # An emulated board takes longer for a few kernels than all tests of others here.
@needs_emulated_board
@pytest.mark.parametrize("board", BOARDS)
def test_convolutions_on_a_board_are_those_of_numpy(board: str, tmp_path: Path) -> None:
    target = tvm.target.Target(dict(load_target(board).tvm))
    vectors = integer_vectors(target)
    assert vectors is not None
    found = cases(vectors, FEW)
    library = tirx.build(named(found), target=target, pipeline=loop_pipeline())
    assert vectors.instruction in library.inspect_source("asm")
    objects, arguments = str(tmp_path / "kernels.o"), {}
    library.write_to_file(objects)
    link_shared_library(linker_command("aarch64"), str(tmp_path / "kernels.so"), [objects])
    for name, case in found.items():
        arguments |= {f"{symbol(name)}/{place}": array for place, array in enumerate(case.arguments)}
    np.savez(tmp_path / "arguments.npz", **arguments)  # type: ignore[arg-type]
    program = Path(__file__).resolve().parents[3] / "kernels_on_a_board.py"
    results = tmp_path / "results.npz"
    command = [
        str(EMULATED_PYTHON),
        str(program),
        str(tmp_path / "kernels.so"),
        str(tmp_path / "arguments.npz"),
        str(results),
    ]
    subprocess.run(command, check=True, env={**os.environ, "QEMU_CPU": str(target.attrs["mcpu"])})
    computed = np.load(results)
    for name, case in found.items():
        assert np.array_equal(computed[symbol(name)], case.expected), name
