"""What a table makes of each byte of a tensor."""

import math

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from tvm_passes.relax.kernels.integer_vectors import IntegerVectors
from tvm_passes.relax.kernels.written_function import ATTRIBUTES, root_block

ENTRIES = 256
_OF_TASK = 8 << 10  # Bytes that are worth a second core.


def look_up(shape: tuple[int, ...], data_type: str, vectors: IntegerVectors | None, cores: int) -> tirx.PrimFunc:
    """A function of data and a table of 256 bytes, that writes the results, all of a type.

    Args:
        shape: of the data.
        data_type: of the bytes; the table's places are bytes as uint8.
        vectors: of the CPU, that may look up several bytes at once; None where it has none.
        cores: that share the work.
    """
    count = math.prod(shape)
    width = 1 if vectors is None else vectors.looked_up_at_once
    tasks = max(1, min(4 * cores, count // _OF_TASK))
    of_task = -(-count // tasks // width) * width
    with IRBuilder() as builder, T.prim_func(private=True, s_tir=True):
        T.func_name("look_up")
        T.func_attr(ATTRIBUTES)
        data = T.arg("data", T.buffer(shape, data_type))
        table = T.arg("table", T.buffer((ENTRIES,), data_type))
        result = T.arg("result", T.buffer(shape, data_type))
        with root_block():
            read, written = (T.decl_buffer((count,), data_type, data=one.data) for one in (data, result))
            with (T.serial if tasks == 1 else T.parallel)(tasks) as task:
                begin = T.bind(task * of_task)
                end = T.bind(tirx.min(begin + of_task, T.int32(count)))
                whole = T.bind(tirx.floordiv(end - begin, width) if width > 1 else T.int32(0))
                if vectors is not None and width > 1:
                    entries = [T.bind(table[T.ramp(place, 1, width)]) for place in range(0, ENTRIES, width)]
                    with T.serial(whole) as number:
                        place = T.ramp(begin + number * width, 1, width)
                        T.buffer_store(written, vectors.looked_up(entries, read[place]), [place])
                with T.serial(end - begin - whole * width) as number:
                    place = T.bind(begin + whole * width + number)
                    byte = T.cast(T.cast(read[place], "uint8"), "int32")
                    T.buffer_store(written, table[byte], [place])
    return builder.get()
