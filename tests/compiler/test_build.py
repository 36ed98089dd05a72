"""Building in parts: each loop nest lies in one part, what was built before is not built again, and results stay."""

import platform
from pathlib import Path

import numpy as np
import pytest
import tvm
from operator_cases import HOST, function, values
from tvm import relax, tirx

from ksm_hw.compiler import build
from ksm_hw.compiler.build import Builder, build_executable, export_library
from ksm_hw.toolchains.linker import architecture_of
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.pipeline import plan_memory, schedule_kernels


def planned() -> tvm.IRModule:
    """A module with eleven operators, as `plan_memory` leaves it."""

    def compute(emit, data):
        result = data
        for _ in range(11):
            result = emit(relax.op.nn.softmax(emit(relax.op.concat([result, data], axis=0))))
        return result

    return plan_memory(schedule_kernels(function(compute, (1, 8)), HOST), HOST)


def loops_of(module: tvm.IRModule) -> list[str]:
    return [variable.name_hint for variable, own in module.functions.items() if isinstance(own, tirx.PrimFunc)]


def test_each_loop_nest_lies_in_one_part() -> None:
    module = planned()
    first, *others = build._parts(module)
    assert len(loops_of(module)) > len(others) > 1 and loops_of(first)
    assert sorted(loops_of(module)) == sorted(name for part in (first, *others) for name in loops_of(part))
    assert "main" in [variable.name_hint for variable in first.functions]
    # The same parts whatever the order of the functions: the library depends on the module alone.
    turned = tvm.IRModule(dict(reversed(list(module.functions.items()))), attrs=module.attrs)
    assert [sorted(loops_of(part)) for part in build._parts(turned)[1:]] == [sorted(loops_of(part)) for part in others]


def test_parts_compute_what_one_module_does(tmp_path) -> None:
    module, (data,) = planned(), values((1, 8))
    built = Builder(HOST).build(module)
    assert len(built.objects) > 1
    export_library(built, tmp_path / "model.so", platform.machine())
    loaded = relax.VirtualMachine(tvm.runtime.load_module(str(tmp_path / "model.so")), tvm.cpu())
    whole = relax.VirtualMachine(build_executable(module, HOST), tvm.cpu())
    results = [machine["main"](tvm.runtime.tensor(data)).numpy() for machine in (loaded, whole)]
    assert results[0].tobytes() == results[1].tobytes() and np.ptp(results[0]) > 0


@pytest.mark.parametrize("target", [HOST, tvm.target.Target(dict(load_target("mali").tvm))], ids=["cpu", "gpu"])
def test_loops_of_a_cpu_alone_are_shared_out(target: tvm.target.Target, tmp_path: Path) -> None:
    module = plan_memory(
        schedule_kernels(function(lambda emit, data: emit(relax.op.exp(data)), (1, 8)), target), target
    )
    architecture = architecture_of(load_target("mali").cpu) if target is not HOST else platform.machine()
    export_library(Builder(target).build(module), tmp_path / "model.so", architecture)
    assert (b"TVMBackendParallelLaunch" in (tmp_path / "model.so").read_bytes()) == (target is HOST)


def test_what_was_built_is_not_built_again(monkeypatch) -> None:
    module, builder = planned(), Builder(HOST)
    first = builder.build(module)
    monkeypatch.setattr(tirx, "build", None)
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_executable", lambda *arguments: first.executable)
        assert builder.build(module).objects == first.objects
