"""Schedule rules: one operator and device class a file, in the way of TVM's dlight."""

from tvm.s_tir.dlight.base import ScheduleRule

from tvm_passes.relax.schedules import gpu
from tvm_passes.relax.schedules.cpu.concatenation import Concatenation
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.dense import Dense
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.cpu.fallback import Fallback
from tvm_passes.relax.schedules.cpu.mask_decoder import MaskDecoder
from tvm_passes.relax.schedules.cpu.reduction import PixelReduction
from tvm_passes.relax.schedules.cpu.winograd import WinogradConvolution


def cpu_rules() -> list[ScheduleRule]:
    """The rules for llvm targets, most specific first: `dlight.ApplyDefaultSchedule(*cpu_rules())`."""
    return [
        WinogradConvolution(),
        DepthwiseConvolution(),
        Convolution(),
        Dense(),
        PixelReduction(),
        Concatenation(),
        MaskDecoder(),
        Fallback(),
    ]


def gpu_rules() -> list[ScheduleRule]:
    """The rules for OpenCL and CUDA targets, most specific first."""
    return [
        gpu.DepthwiseConvolution(),
        gpu.Convolution(),
        gpu.Reduction(),
        gpu.Concatenation(),
        gpu.Fallback(),
    ]
