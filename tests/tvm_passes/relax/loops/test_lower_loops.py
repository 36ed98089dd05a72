"""Lowering: what a schedule leaves is looked for only where there was one, and arguments are not checked twice."""

import tvm
from tvm import te
from tvm.ir.instrument import pass_instrument
from tvm.s_tir.pipeline import default_s_tir_pipeline

from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.loops.lower_loops import _OF_SCHEDULES, WRITTEN_AS_LOOPS, LowerLoops
from tvm_passes.relax.pipeline import loop_pipeline

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "haswell", "num-cores": 2})


def written() -> tvm.tirx.PrimFunc:
    rewrite = WeightRewrite((64, 40, 1, 1), 40, 1, 32, True, 1e-5)
    return weight_rewrite(rewrite, TARGET).with_attr("global_symbol", "written")


def scheduled() -> tvm.tirx.PrimFunc:
    data = te.placeholder((16,), name="data")
    doubled = te.compute((16,), lambda i: data[i] * 2, name="doubled")
    return te.create_prim_func([data, doubled]).with_attr("global_symbol", "scheduled")


def test_what_schedules_leave_is_looked_for_in_scheduled_loops_alone() -> None:
    seen: dict[str, set[str]] = {}

    @pass_instrument
    class Passes:
        def run_before_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
            seen.setdefault(str(info.name), set()).update(variable.name_hint for variable in module.functions)

    module = tvm.IRModule({"written": written(), "scheduled": scheduled()})
    lower, _, _ = default_s_tir_pipeline()
    with tvm.transform.PassContext(instruments=[Passes()]):
        lowered = LowerLoops(lower)(tvm.tirx.transform.BindTarget(TARGET.with_host(TARGET))(module))
    assert {variable.name_hint for variable in lowered.functions} == {"written", "scheduled"}
    assert seen["tirx.MakePackedAPI"] == {"written", "scheduled"}
    assert [seen[name] for name in _OF_SCHEDULES] == [{"scheduled"}] * len(_OF_SCHEDULES)


def test_written_loops_become_the_same_code() -> None:
    kernel = written()
    sought = kernel.without_attr(WRITTEN_AS_LOOPS)
    texts = [
        tvm.tirx.build(tvm.IRModule({"written": function}), TARGET, loop_pipeline()).inspect_source("ll")
        for function in (kernel, sought)
    ]
    assert texts[0] == texts[1]


def test_arguments_are_not_checked_by_loops() -> None:
    module = tvm.IRModule({"scheduled": scheduled()})
    ours, default = (
        tvm.tirx.build(module, TARGET, pipeline).inspect_source("ll") for pipeline in (loop_pipeline(), "s_tir")
    )
    assert "ndim" in default and "ndim" not in ours
