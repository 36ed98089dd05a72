"""Types of values: what they take, and for which of them the models of schedules hold."""

from tvm import DataType
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

# A vector of these is multiplied and added within one register. Those of 16 bits are where a CPU calculates with them,
# which no target says yet; products of 8 bits are summed up in wider values. A rule whose tiles come from such a model
# leaves all others to the fallback.
_MODELLED = {"float32", "float64"}


def value_bytes(dtype: str) -> int:
    """Bytes of one value of a tensor.

    Raises:
        ValueError: values of the type are not whole bytes, or are vectors.
    """
    parsed = DataType(dtype)
    if parsed.bits % 8 or parsed.lanes != 1:
        raise ValueError(f"Schedules know types whose values are whole bytes, such as float32 and int8, not {dtype}.")
    return int(parsed.bits) // 8


def value_types(schedule: Schedule, block: SBlockRV) -> set[str]:
    """The types of what a block reads and writes."""
    statement = schedule.get(block)
    return {str(region.source.dtype) for region in (*statement.reads, *statement.writes)}


def widest_type(schedule: Schedule, block: SBlockRV) -> str:
    """The type of the largest values that a block reads or writes: as many of them as fill a register are a vector."""
    return max(value_types(schedule, block), key=value_bytes)


def is_modelled(schedule: Schedule, block: SBlockRV) -> bool:
    """Whether all that a reduction reads and writes is of one type, for which models hold."""
    types = value_types(schedule, block)
    return len(types) == 1 and types <= _MODELLED
