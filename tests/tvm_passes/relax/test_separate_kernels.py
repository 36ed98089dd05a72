"""SeparateKernels: a function of two kernels becomes two functions, and what lies between them a tensor of the plan."""

import numpy as np
import pytest
import tvm
from operator_cases import convolution_case, lowered
from tvm import relax
from tvm.target import Target

from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.schedules.gpu.staged_convolution import StagedConvolution
from tvm_passes.relax.schedules.gpu.staged_tiles import StagedTile
from tvm_passes.relax.separate_kernels import SeparateKernels

_CUDA = {key: value for key, value in load_target("cuda-sm_80").tvm.items() if key != "arch"}
TARGET = Target({**_CUDA, "kind": "opencl"})
CASE = (1, 9, 7, 32, 16, 3, 1, (1, 1, 1, 1), 1, 1, "")


@pytest.fixture
def scheduled():
    """A module whose only loop nest is a convolution with a depth in so many parts, its arguments, and the result."""

    def scheduled(parts):
        module, arrays, expected = convolution_case(CASE, epilogue=True)
        module = lowered(module, TARGET)
        (kernel,) = kernels_of(module)
        schedule, operator = StagedConvolution().match(module[kernel], TARGET)
        StagedConvolution().apply_way(schedule, operator, StagedTile(4, 4, 8, 4, 8, parts), TARGET)
        module[kernel] = schedule.mod["main"].with_attrs({"tirx.is_scheduled": True, "schedule": "staged"})
        return module, arrays, expected

    return scheduled


def kernels_of(module):
    return [name for name, function in module.functions.items() if isinstance(function, tvm.tirx.PrimFunc)]


def test_two_kernels_are_two_functions_and_what_they_compute_is_the_same(scheduled, opencl, tmp_path):
    module, arrays, expected = scheduled(parts=2)
    module = SeparateKernels()(module)
    first, second = (module[name] for name in kernels_of(module))
    assert not any(isinstance(one.body.block.body, tvm.tirx.SeqStmt) for one in (first, second))
    assert {one.attrs["schedule"] for one in (first, second)} == {"staged"}
    calls = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    parts = [call.ty for call in calls if isinstance(call, relax.Call)]
    assert [list(map(int, tensor.shape)) for tensor in parts] == [[2, 64, 16], [1, 9, 7, 16]]
    tvm.compile(module, target=TARGET).export_library(str(tmp_path / "kernels.so"))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "kernels.so")), tvm.opencl())
    found = machine["main"](*(tvm.runtime.tensor(np.ascontiguousarray(array), tvm.opencl()) for array in arrays))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=4e-5)


def test_one_kernel_stays_as_it_is(scheduled):
    module, _, _ = scheduled(parts=1)
    tvm.ir.assert_structural_equal(SeparateKernels()(module), module)
