"""Convolutions by each CPU's instructions for integers: bit for bit what NumPy makes of them, by the instruction."""

import numpy as np
import pytest
import tvm
from integer_convolutions import cases, named, symbol
from tvm import tirx

from tvm_passes.relax.kernels.integer_vectors import integer_vectors
from tvm_passes.relax.pipeline import loop_pipeline

# CPUs, and what the machine that runs their code has by /proc/cpuinfo.
CPUS = {"cascadelake": {"avx512_vnni", "avx512bw"}}


def has(features: set[str]) -> bool:
    with open("/proc/cpuinfo") as file:
        return any(features <= set(line.split()) for line in file if line.startswith("flags"))


@pytest.mark.parametrize("cpu", CPUS)
def test_convolutions_are_those_of_numpy(cpu: str) -> None:
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    vectors = integer_vectors(target)
    assert vectors is not None
    found = cases(vectors)
    library = tirx.build(named(found), target=target, pipeline=loop_pipeline())
    assert vectors.instruction in library.inspect_source("asm")
    if not has(CPUS[cpu]):
        pytest.skip(f"this machine cannot run code for {cpu}")
    for name, case in found.items():
        tensors = [tvm.runtime.tensor(array) for array in case.arguments]
        library[symbol(name)](*tensors)
        assert np.array_equal(tensors[-1].numpy(), case.expected), name
