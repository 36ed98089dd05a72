"""Schedule rules for GPUs (OpenCL, CUDA): one operator a file. Tiles come from the limits that the target names."""

from tvm.s_tir.dlight.base import ScheduleRule

from tvm_passes.relax.schedules.gpu.concatenation import Concatenation
from tvm_passes.relax.schedules.gpu.convolution import Convolution
from tvm_passes.relax.schedules.gpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.gpu.fallback import Fallback
from tvm_passes.relax.schedules.gpu.reduction import Reduction
from tvm_passes.relax.schedules.gpu.staged_convolution import StagedConvolution
from tvm_passes.relax.schedules.gpu.staged_dense import StagedDense


def gpu_rules() -> list[ScheduleRule]:
    """The rules for OpenCL and CUDA targets, most specific first."""
    return [
        DepthwiseConvolution(),
        StagedConvolution(),
        Convolution(),
        StagedDense(),
        Reduction(),
        Concatenation(),
        Fallback(),
    ]
