"""Kernels with arguments and what they should give, run here or on an emulated board."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from board_processes import EMULATED_PYTHON
from tvm import tirx

from ksm_hw.toolchains.linker import link_shared_library, linker_command
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.pipeline import loop_pipeline


@dataclass(frozen=True)
class Case:
    """A kernel with arguments, the last of which is for its result, and what the result should be."""

    kernel: tirx.PrimFunc
    arguments: list[npt.NDArray[Any]]
    expected: npt.NDArray[Any]


def target_of(cpu: str) -> tvm.target.Target:
    """That of a board, or a CPU by LLVM's name."""
    return tvm.target.Target(dict(load_target(cpu).tvm) if cpu.startswith("rpi") else {"kind": "llvm", "mcpu": cpu})


def named(found: Mapping[str, Case]) -> tvm.IRModule:
    """The kernels as a module, by names that are symbols."""
    return tvm.IRModule(
        {symbol(name): case.kernel.with_attr("global_symbol", symbol(name)) for name, case in found.items()}
    )


def symbol(name: str) -> str:
    """Of a case."""
    return "case_" + "".join(letter if letter.isalnum() else "_" for letter in name)


def built(found: Mapping[str, Case], target: tvm.target.Target) -> tvm.runtime.Module:
    """Machine code of the kernels."""
    return tirx.build(named(found), target=target, pipeline=loop_pipeline())


def assert_computed(library: tvm.runtime.Module, found: Mapping[str, Case]) -> None:
    """Calls the kernels on this machine."""
    for name, case in found.items():
        tensors = [tvm.runtime.tensor(array) for array in case.arguments]
        library[symbol(name)](*tensors)
        assert np.array_equal(tensors[-1].numpy(), case.expected), name


def assert_computed_on_a_board(
    library: tvm.runtime.Module, found: Mapping[str, Case], target: tvm.target.Target, folder: Path, cpu: str = ""
) -> None:
    """Calls the kernels on the emulated board, as its CPU the target's or the emulator's of that name."""
    objects, arguments = str(folder / "kernels.o"), {}
    library.write_to_file(objects)
    link_shared_library(linker_command("aarch64"), str(folder / "kernels.so"), [objects])
    for name, case in found.items():
        arguments |= {f"{symbol(name)}/{place}": array for place, array in enumerate(case.arguments)}
    np.savez(folder / "arguments.npz", **arguments)  # type: ignore[arg-type]
    program, results = Path(__file__).with_name("kernels_on_a_board.py"), folder / "results.npz"
    command = [EMULATED_PYTHON, program, folder / "kernels.so", folder / "arguments.npz", results]
    environment = {**os.environ, "QEMU_CPU": cpu or str(target.attrs["mcpu"])}
    subprocess.run(list(map(str, command)), check=True, env=environment)
    computed = np.load(results)
    for name, case in found.items():
        assert np.array_equal(computed[symbol(name)], case.expected), name
