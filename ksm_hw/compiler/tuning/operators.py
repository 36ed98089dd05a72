"""The operators of a network that have a choice of schedules, and what was measured of each."""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.arg_info import ArgInfo
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from ksm_hw.compiler.tuning.tensor_intrinsics import leave_out_tensor_intrinsics
from ksm_hw.compiler.tuning.tuning_records import TuningRecords
from tvm_passes.relax.kernels.integer_kernel import described_convolution
from tvm_passes.relax.pipeline import fuse_kernels
from tvm_passes.relax.schedules import target_rules
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.tuned import LONGEST_RUN, workload_module


@dataclass(eq=False)
class Operator:
    """An operator and its candidates.

    Attributes:
        calls: how often the network calls it.
        default: the candidate that is taken without tuning.
        space: those that are not made yet; `made` the others by `key_of`.
        tried: seconds of each measurement of a candidate, infinite where it failed.
    """

    workload: Workload
    calls: int
    arguments: list[ArgInfo]
    context: TuneContext
    default: Schedule
    space: Iterator[Schedule]
    made: dict[str, Schedule] = field(default_factory=dict)
    tried: dict[str, list[float]] = field(default_factory=dict)

    @property
    def has_loops(self) -> bool:
        """Whether the candidates are loops, and not descriptions of kernels that are written when they are built."""
        return described_convolution(self.workload.mod["main"]) is None

    def seconds(self, key: str) -> float:
        """Of a candidate: the median of its measurements; infinite if there is none."""
        return statistics.median(self.tried.get(key, [float("inf")]))

    @property
    def best(self) -> float:
        """Seconds of the fastest candidate."""
        return min(map(self.seconds, self.tried), default=float("inf"))

    def finalists(self, measurements: int) -> list[Schedule]:
        """The default and the fastest candidate, as long as they were measured less often than that."""
        if len(self.tried) < 2:
            return []
        candidates = self.candidates()
        # Records of another version of ksm-hw may be of ways that are no candidates any more.
        fastest = min((key for key in self.tried if key in candidates), key=self.seconds, default=key_of(self.default))
        keys = dict.fromkeys([key_of(self.default), fastest])
        return [candidates[key] for key in keys if len(self.tried.get(key, [])) < measurements]

    def untried(self) -> list[Schedule]:
        """The candidates that are left, in the order of the rule."""
        return [schedule for key, schedule in self.candidates().items() if key not in self.tried]

    def candidates(self) -> dict[str, Schedule]:
        """All candidates by `key_of`, in the order of the rule. The first call makes them: tens of ms each."""
        self.made |= {key_of(schedule): schedule for schedule in self.space}
        return self.made


def find_operators(module: tvm.IRModule, records: TuningRecords) -> list[Operator]:
    """The operators that have a choice of schedules, with what the records hold of each."""
    leave_out_tensor_intrinsics("tvm.s_tir.tensor_intrin")  # Our schedules use no tensor instructions.
    tvm_target = tvm.target.Target(dict(records.target.tvm))
    fused = fuse_kernels(module, tvm_target)
    operators: dict[Workload, Operator] = {}
    for function, calls in _calls(fused).items():
        module = workload_module(fused[function])
        space = _candidates(module["main"], tvm_target)
        default = next(space, None)
        if default is None:
            continue
        workload = records.database.commit_workload(module)
        if workload in operators:
            operators[workload].calls += calls
            continue
        arguments = list(ArgInfo.from_prim_func(module["main"]))
        context = TuneContext(module, target=tvm_target, num_threads=1)
        space = itertools.chain([default], space)
        operators[workload] = Operator(workload, calls, arguments, context, default, space)
    for record in records.database.get_all_tuning_records():
        if record.workload in operators:
            operators[record.workload].tried.setdefault(key_of(record), []).append(seconds_of(record.run_secs))
    return list(operators.values())


def _calls(module: tvm.IRModule) -> Counter[tvm.ir.GlobalVar]:
    """How often the functions of a module call each loop nest."""
    calls: Counter[tvm.ir.GlobalVar] = Counter()

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.call_tir"):
            calls[expression.args[0]] += 1

    for function in module.functions.values():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return calls


def _candidates(func: tirx.PrimFunc, target: tvm.target.Target) -> Iterator[Schedule]:
    """The candidates of the first rule that matches a function; none if that rule has only one schedule."""
    for rule in target_rules(target):
        if isinstance(rule, DesignSpaceRule):
            space = (candidate.schedule for candidate in rule.candidates(func, target))
            if (first := next(space, None)) is not None:
                return itertools.chain([first], space)
        elif rule.apply(func, target, False) is not None:
            break
    return iter(())


def key_of(of: Schedule | TuningRecord) -> str:
    """Tells the candidates of an operator apart, also when they come back from a file."""
    return str(of.trace)


def seconds_of(runs: Sequence[float]) -> float:
    """The seconds of a candidate; infinite for what stands for a failed trial."""
    mean = float(np.mean([float(run) for run in runs]))
    return mean if mean < LONGEST_RUN else float("inf")
