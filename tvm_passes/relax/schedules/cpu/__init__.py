"""Schedule rules for CPUs: one operator a file. Tiles come from the vector unit that the target names."""

from tvm.s_tir.dlight.base import ScheduleRule

from tvm_passes.relax.schedules.cpu.concatenation import Concatenation
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.dense import Dense
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.cpu.expanded_depthwise import ExpandedDepthwise
from tvm_passes.relax.schedules.cpu.fallback import Fallback
from tvm_passes.relax.schedules.cpu.few_channels import FewChannels
from tvm_passes.relax.schedules.cpu.grouped_convolution import GroupedConvolution
from tvm_passes.relax.schedules.cpu.integer_kernel import IntegerKernel
from tvm_passes.relax.schedules.cpu.mask_decoder import MaskDecoder
from tvm_passes.relax.schedules.cpu.matrix_product import MatrixProduct
from tvm_passes.relax.schedules.cpu.packed_product import PackedProduct
from tvm_passes.relax.schedules.cpu.reduction import PixelReduction
from tvm_passes.relax.schedules.cpu.row_reductions import RowReductions
from tvm_passes.relax.schedules.cpu.winograd import WinogradConvolution


def cpu_rules() -> list[ScheduleRule]:
    """The rules for llvm targets, most specific first."""
    return [
        IntegerKernel(),
        WinogradConvolution(),
        ExpandedDepthwise(),
        DepthwiseConvolution(),
        FewChannels(),
        GroupedConvolution(),
        Convolution(),
        PackedProduct(),
        MatrixProduct(),
        Dense(),
        PixelReduction(),
        RowReductions(),
        Concatenation(),
        MaskDecoder(),
        Fallback(),
    ]
