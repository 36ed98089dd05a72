"""What tuning of TVM 0.19 stumbles over, in Relay's environment: `test_relay_tune.py` runs this file there."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relay

from ksm_hw.compiler.relay import autotvm_operators, meta_schedule_operators
from ksm_hw.compiler.relay.build_candidates import CandidateBuilder

X86 = tvm.target.Target("llvm -mcpu=x86-64-v3 -num-cores=2")


def convolution() -> tvm.IRModule:
    data, weight = relay.var("input", shape=(1, 8, 8, 8)), relay.var("weight", shape=(16, 8, 3, 3))
    body = relay.nn.conv2d(data, weight, channels=16, kernel_size=(3, 3), padding=(1, 1))
    return relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function([data, weight], body)))


def resizing() -> tvm.IRModule:
    data = relay.var("input", shape=(1, 3, 7, 7))
    resized = relay.image.resize2d(data, (14, 14), method="linear", coordinate_transformation_mode="half_pixel")
    return relay.transform.InferType()(tvm.IRModule.from_expr(relay.Function([data], resized)))


def test_no_schedules_are_fetched() -> None:
    assert os.environ["TOPHUB_LOCATION"] == "NONE"


def test_autotvm_s_model_learns_from_few_trials(tmp_path: Path) -> None:
    """The default comes first; with TVM's own plan of 64 trials the others would all be at random."""
    (operator,) = autotvm_operators.find_operators(convolution(), X86, tmp_path)
    assert operator.calls == 1
    (default,) = operator.propose(4)
    random = np.random.default_rng(0)
    tried = {default.index}
    operator.learn([default], [1e-3])
    for _ in range(2):
        candidates = operator.propose(autotvm_operators.PLAN)
        assert not tried & {candidate.index for candidate in candidates}
        tried |= {candidate.index for candidate in candidates}
        operator.learn(candidates, list(random.uniform(1e-4, 1e-3, len(candidates))))
    assert operator._tuner.train_ct == 2


def test_the_default_of_autotvm_is_what_is_compiled_without_records(tmp_path: Path) -> None:
    (operator,) = autotvm_operators.find_operators(convolution(), X86, tmp_path)
    (default,) = operator.propose(1)
    with X86:
        fallback = tvm.autotvm.task.space.FallbackConfigEntity()
        operator._task.instantiate(fallback)
        lowered = [tvm.lower(*operator._task.instantiate(config), simple_mode=True) for config in (fallback, default)]
    tvm.ir.assert_structural_equal(*lowered)


def test_bilinear_resizing_builds_in_metaschedule_s_builders(tmp_path: Path) -> None:
    operators = meta_schedule_operators.find_operators(resizing(), X86, tmp_path)
    with CandidateBuilder(["cc"]) as builder:
        for operator in operators:
            candidates = operator.propose(1)
            (built,) = builder.build(operator.build, [operator.job(candidate) for candidate in candidates])
            assert not built.error and built.path.is_file()


def test_a_builder_that_crashes_costs_that_candidate_only() -> None:
    def crash(job: int) -> tuple[tvm.runtime.Module, list]:
        os._exit(1)

    def add_one(job: int) -> tuple[tvm.runtime.Module, list]:
        from tvm import te

        x = te.placeholder((job,), "float32")
        y = te.compute((job,), lambda i: x[i] + 1)
        return tvm.build(te.create_schedule(y.op), [x, y], "llvm"), [("float32", [job])] * 2

    with CandidateBuilder(["cc"]) as builder:
        assert [built.error for built in builder.build(crash, [1, 2])] == ["its builder crashed"] * 2
        assert [built.error for built in builder.build(add_one, [1, 2])] == ["", ""]


def test_intrinsics_of_other_devices_are_not_imported() -> None:
    import tvm.tir.tensor_intrin

    assert "x86" in dir(tvm.tir.tensor_intrin)
    assert not any(hasattr(sys.modules[f"tvm.tir.tensor_intrin.{name}"], "__file__") for name in ("cuda", "hexagon"))


@pytest.mark.parametrize("failed", [True, False])
def test_a_failure_is_recorded_as_one(failed: bool, tmp_path: Path) -> None:
    for find in (autotvm_operators.find_operators, meta_schedule_operators.find_operators):
        folder = tmp_path / find.__module__
        folder.mkdir()
        operator = find(convolution(), X86, folder)[0]
        operator.record(operator.propose(1)[0], float("inf") if failed else 0.5)
        again = find(convolution(), X86, folder)[0]
        assert again.tried == [float("inf") if failed else 0.5]
