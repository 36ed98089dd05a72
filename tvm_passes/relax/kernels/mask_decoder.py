"""The kernel that unpacks a mask: the form in which `FoldTaskMask` puts masks in front of weights.

What stays of it depends on the target: for CPUs `FuseWeightRewrite` decodes masks inside the kernel that rewrites a
weight, for others this one is scheduled as it is.
"""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.rounded_product import rounded

# Marks the decoders of masks, for the passes behind, and says whether they round code · step before low is added.
MASK_DECODER = "mask_decoder"
MASK_DTYPE = "float32"


def mask_decoder(rows: int, columns: int, coded: bool, rounds: bool = False) -> tirx.PrimFunc:
    """From a packed mask to float32 [rows, columns]: 1 at each set bit, the next soft value at each other.

    The rows are independent, because `row_start` says how many soft values come before each. A binary mask has none but
    8 zeros, which stand for all of its own: positions behind the last value read the last.

    Args:
        rows: output channels.
        columns: values of the mask in each.
        coded: whether soft values are codes, uint8; else they are float32.
        rounds: whether code · step is rounded before low is added, as int8 wants it; for CPUs alone.

    Returns:
        A function of bits, scale, row_start and scale_range, as `FoldTaskMask` describes them, and the result. It is
        built and not parsed: TVMScript's parser takes 80 times as long, and a network has dozens of masks.
    """
    size = -(-rows * columns // 8)
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("unpack_mask")
        T.func_attr({"op_pattern": 8, "tirx.noalias": True, MASK_DECODER: rounds})
        zeros = tirx.Var("zeros", "int64")
        bits = T.arg("bits", T.buffer((size,), "uint8"))
        scale = T.arg("scale", T.buffer((zeros,), "uint8" if coded else "float32"))
        row_start = T.arg("row_start", T.buffer((rows,), "int32"))
        scale_range = T.arg("scale_range", T.buffer((2,), "float32"))
        mask = T.arg("mask", T.buffer((rows, columns), MASK_DTYPE))
        with T.serial(rows) as i, T.sblock("row"):
            row = IRBuilder.name("row", T.axis.spatial(rows, IRBuilder.name("i", i)))
            # Named, because what TVM finds by itself depends on `position`, which is not there outside the block.
            T.reads(bits[0:size], scale[0:zeros], row_start[row], scale_range[0:2])
            T.writes(mask[row, 0:columns])
            position = IRBuilder.name("position", T.sblock_alloc_buffer((1,), "int32", scope="local"))
            T.buffer_store(position, row_start[row], [0])
            with T.serial(columns) as column:
                index = row * columns + IRBuilder.name("column", column)
                bit = T.bitwise_and(T.shift_right(T.Cast("int32", bits[index // 8]), 7 - index % 8), 1)
                number = T.Cast(MASK_DTYPE, scale[tirx.min(T.Cast("int64", position[0]), zeros - 1)])
                above = number * scale_range[1]
                soft = scale_range[0] + (rounded(above, MASK_DTYPE) if rounds else above)
                T.buffer_store(mask, T.if_then_else(bit == 1, T.float32(1), soft), [row, column])
                T.buffer_store(position, position[0] + 1 - bit, [0])
    return builder.get()
