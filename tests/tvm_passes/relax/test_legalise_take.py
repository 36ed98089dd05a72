"""Look-ups are the loops that TVM makes of them, without its warnings, and from the end where an index says so."""

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax
from tvm.relax.transform import LegalizeOps

from tvm_passes.relax.legalise_take import legalise_take
from tvm_passes.relax.pipeline import fuse_kernels

DATA = np.arange(120, dtype=np.float32).reshape(4, 5, 6)
OURS = LegalizeOps({"relax.take": legalise_take})


def looking_up(indices: object, axis: int, constant: bool = True) -> tvm.IRModule:
    """A module whose `main` takes these indices along an axis; others than constants are its argument."""
    data = relax.Var("data", relax.TensorType(DATA.shape, "float32"))
    given = relax.Var("indices", relax.TensorType(np.shape(indices), "int64"))
    builder = relax.BlockBuilder()
    with builder.function("main", [data] if constant else [data, given]):
        with builder.dataflow():
            taken = relax.op.take(data, relax.const(np.array(indices), "int64") if constant else given, axis=axis)
            result = builder.emit_output(builder.emit(taken))
        builder.emit_func_output(result)
    return builder.get()


@pytest.mark.parametrize(("indices", "axis"), [([[0, 3], [1, 2]], 0), ([1], 1), (2, 1), ([0, 5], -1)])
def test_the_loops_are_tvm_s(indices: object, axis: int, capfd: pytest.CaptureFixture[str]) -> None:
    module = looking_up(indices, axis, constant=False)
    ours = OURS(module)
    assert "Warning" not in capfd.readouterr().err
    assert tvm_ffi.structural_equal(ours, LegalizeOps()(module))


@pytest.mark.parametrize(("indices", "axis"), [([[0, -1], [-4, 2]], 0), (-1, 1), ([5, -6], -1)])
def test_indices_may_count_from_the_end(indices: object, axis: int) -> None:
    machine = relax.VirtualMachine(tvm.compile(OURS(looking_up(indices, axis)), target="llvm"), tvm.cpu())
    assert np.array_equal(machine["main"](tvm.runtime.tensor(DATA)).numpy(), np.take(DATA, indices, axis))


def test_what_lies_outside_is_no_code() -> None:
    with pytest.raises(ValueError, match="A look-up of -7 to 0 in 6 values"):
        OURS(looking_up([0, -7], 2))


def test_the_compiler_takes_it(capfd: pytest.CaptureFixture[str]) -> None:
    fuse_kernels(looking_up([0, 3], 0), tvm.target.Target("llvm"))
    assert "Warning" not in capfd.readouterr().err
