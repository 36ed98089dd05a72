"""Look-ups (`take`) as loops: as TVM's own, but quiet, and with numbers that count from the end where they are known.

TVM legalises a look-up whose index no one checks with a warning of segmentation faults, each time, on stderr. The
indices of a network are constants (Swin's relative positions), and are checked here; others come from operators that
torch.export knows to stay inside.
"""

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax, te, tirx, topi


def legalise_take(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """For `LegalizeOps`: a loop over the result, of one read each.

    Raises:
        ValueError: a constant index lies outside of the data.
    """
    data, indices = call.args
    if call.attrs.axis is None or call.attrs.mode != "fast":
        return builder.call_te(topi.take, data, indices, call.attrs.axis, mode=call.attrs.mode)
    axis = int(call.attrs.axis) % data.ty.ndim
    if isinstance(indices, tvm.ir.expr.Constant):
        numbers = indices.value.numpy() if isinstance(indices.value, tvm.runtime.Tensor) else np.array(indices.value)
        indices = relax.const(_from_the_beginning(numbers, int(data.ty.shape[axis])), indices.ty.dtype)
    return builder.call_te(_look_up, data, indices, axis, primfunc_name_hint="take")


def _from_the_beginning(indices: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """The same indices, all from 0 on."""
    if not np.all((-length <= indices) & (indices < length)):
        raise ValueError(f"A look-up of {indices.min()} to {indices.max()} in {length} values.")
    return np.where(indices < 0, indices + length, indices)


def _look_up(data: te.Tensor, indices: te.Tensor, axis: int) -> te.Tensor:
    behind = axis + len(indices.shape)

    def value(*at: tirx.Var) -> tirx.Expr:
        index = indices(*at[axis:behind]) if indices.shape else indices()
        return data(*at[:axis], index, *at[behind:])

    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return te.compute(shape, value, name="T_take", tag="injective")
