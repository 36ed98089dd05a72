"""Schedule rules: one operator and device class a file, in the way of TVM's dlight."""

from tvm.s_tir.dlight.base import ScheduleRule
from tvm.target import Target

from tvm_passes.relax.schedules.cpu import cpu_rules
from tvm_passes.relax.schedules.gpu import gpu_rules

__all__ = ["cpu_rules", "gpu_rules", "target_rules"]


def target_rules(target: Target) -> list[ScheduleRule]:
    """The schedule rules for a target's class of devices, most specific first."""
    return gpu_rules() if "gpu" in target.keys else cpu_rules()
