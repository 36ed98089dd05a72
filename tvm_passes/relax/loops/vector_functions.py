"""VectorFunctions: exp, sigmoid, tanh and erf of float32 as arithmetic that vector units have.

In:  lowered loops, vectorised where a schedule says so.
Out: the same loops. For these four LLVM would call a function of the C library for each value of a vector; nothing is
     called now.

Polynomials are minimax fits, rational ones for tanh and erf, evaluated by Horner's rule. Measured against float64, for
one in 4093 of all float32 and 300 000 from -105 to 105 (`test_vector_functions.py`):

    exp        relative error below 1.2e-7; results below 2^-125.5 (x < -86.99) become 0.
    sigmoid    1 / (1 + exp(-x)): relative error below 2.5e-7, and 0 below x = -88.73.
    tanh, erf  relative error below 4e-7, never beyond 1, and exactly 1 or -1 from |x| = 10 and 4.3 on. So GELU of what
               is far below 0 is 0.

NaN stays NaN, and infinities have the limits of the functions.
"""

import math
from collections.abc import Callable, Sequence

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.transform import PassContext
from tvm.tirx.transform import prim_func_pass
from tvm_ffi import structural_map

# exp(r) for |r| <= log(2) / 2, lowest power first.
_EXP = (1.0, 1.0, 0.49999994, 0.16666421, 0.041668057, 0.008374966, 0.0013842714)
# exp(x) = 2^n · exp(r) with n = rint(x / log(2)). log(2) in two parts, so that n times the first is exact.
_LOG2_HIGH, _LOG2_LOW = 0.693359375, -2.12194440e-4
_ROUNDING = 1.5 * 2.0**23 + 126
"""Added to a float32 n of less than 2^22, it leaves the nearest integer, plus 126, in the lowest bits, and no fraction.

Shifted to the exponent's place, these are 2^(n-1), valid for n = 128 too. No integers are added for it: those of a NaN
might overflow, of which LLVM may make anything."""
_EXP_LEAST, _EXP_MOST = -87.3, 88.8
# The coefficients of P and Q, lowest power first, in x·P(x²)/Q(x²), for |x| up to the last number. There the quotient
# is 1.6e-6 and 2.3e-6 above 1, more than its rounding: cut off at 1, it is exactly 1 from there on.
_TANH = (
    (0.99999998, 0.13374469, 0.0034878037, 2.0481069e-05, 1.3177368e-08),
    (1.0, 0.46707783, 0.02584736, 0.00032729083, 7.7039812e-07),
    10.0,
)
_ERF = (
    (1.1283791, 0.1935467, 0.05310197, 0.003883416, 0.00028456782, 1.9867740e-06),
    (1.0, 0.50485885, 0.11535068, 0.015207395, 0.0011855891, 3.7420188e-05),
    4.3,
)

# TVM makes no vectors of loops with erf, for LLVM has no such function of them. In functions for CPUs it is this
# operator meanwhile, and for GPUs all stays as it is.
_ERF_IN_VECTORS = "tvm_passes.erf"
tvm_ffi.get_global_func("ir.RegisterOp")(_ERF_IN_VECTORS, "erf, which VectorFunctions writes out.")
tvm.ir.register_op_attr(_ERF_IN_VECTORS, "TCallEffectKind", tvm.ir.Op.get("tirx.erf").get_attr("TCallEffectKind"))
tvm.ir.register_op_attr(_ERF_IN_VECTORS, "TVectorizable", True)


@prim_func_pass(opt_level=0, name="VectorizeErf")
class VectorizeErf:
    """Has loops with erf become vectors, in scheduled functions for CPUs; `VectorFunctions` must follow."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it does not call erf."""
        return func.with_body(structural_map(func.body, (tvm.ir.Call, _erf_in_vectors))) if _is_for_cpu(func) else func


def _erf_in_vectors(call: tvm.ir.Call) -> tvm.ir.Call:
    return tvm.ir.Call(_ERF_IN_VECTORS, call.args, ret_ty=call.ty) if _operator(call) == "tirx.erf" else call


@prim_func_pass(opt_level=0, name="VectorFunctions")
class VectorFunctions:
    """Writes the functions out, in lowered functions for CPUs."""

    def transform_function(self, func: tirx.PrimFunc, _module: tvm.IRModule, _context: PassContext) -> tirx.PrimFunc:
        """The function, as it is if it calls none of them."""
        return func.with_body(structural_map(func.body, (tvm.ir.Call, _written_out))) if _is_for_cpu(func) else func


def _is_for_cpu(func: tirx.PrimFunc) -> bool:
    target = func.attrs.get("target")
    return target is not None and "cpu" in target.keys


def _operator(call: tvm.ir.Call) -> str:
    """The name of what is called; empty if it is no operator."""
    return str(call.op.name) if isinstance(call.op, tvm.ir.Op) else ""


def _written_out(call: tvm.ir.Call) -> tirx.Expr:
    name = _operator(call)
    if name not in _FUNCTIONS:
        return call
    dtype = call.ty.dtype
    if dtype.with_lanes(1) == "float32":
        return _with_value(call.args[0], _FUNCTIONS[name])
    if name == _ERF_IN_VECTORS:
        return _with_value(call.args[0], _erf_value_by_value)
    return call


def _erf_value_by_value(x: tirx.Expr) -> tirx.Expr:
    lanes = range(x.ty.dtype.lanes)
    if len(lanes) == 1:
        return tirx.erf(x)
    return tirx.Shuffle([tirx.erf(tirx.Shuffle([x], [lane])) for lane in lanes], list(lanes))


def _exp(x: tirx.Expr) -> tirx.Expr:
    return _with_value(_within(x, _EXP_LEAST, _EXP_MOST), _exp_within)


def _exp_within(x: tirx.Expr) -> tirx.Expr:
    def scaled(shifted: tirx.Expr) -> tirx.Expr:
        n = shifted - _number(_ROUNDING, x)
        rest = x - n * _number(_LOG2_HIGH, x) - n * _number(_LOG2_LOW, x)
        integers = str(x.ty.dtype).replace("float", "int")
        power = tirx.reinterpret(integers, shifted) << _number(23, integers)
        twice = [2 * coefficient for coefficient in _EXP]
        return _with_value(rest, lambda r: _polynomial(r, twice)) * tirx.reinterpret(x.ty.dtype, power)

    return _with_value(x * _number(1 / math.log(2), x) + _number(_ROUNDING, x), scaled)


def _sigmoid(x: tirx.Expr) -> tirx.Expr:
    one = _number(1, x)
    return one / (one + _exp(_number(0, x) - x))


def _odd_rational(x: tirx.Expr, numerator: Sequence[float], denominator: Sequence[float], limit: float) -> tirx.Expr:
    def of_clipped(x: tirx.Expr) -> tirx.Expr:
        quotient = _with_value(x * x, lambda z: x * _polynomial(z, numerator) / _polynomial(z, denominator))
        return _with_value(quotient, lambda value: _within(value, -1, 1))

    return _with_value(_within(x, -limit, limit), of_clipped)


_FUNCTIONS: dict[str, Callable[[tirx.Expr], tirx.Expr]] = {
    "tirx.exp": _exp,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": lambda x: _odd_rational(x, *_TANH),
    _ERF_IN_VECTORS: lambda x: _odd_rational(x, *_ERF),
}


def _polynomial(x: tirx.Expr, coefficients: Sequence[float]) -> tirx.Expr:
    """The sum of coefficients by powers of x, the lowest first."""
    result = _number(coefficients[-1], x)
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + _number(coefficient, x)
    return result


def _within(x: tirx.Expr, least: float, most: float) -> tirx.Expr:
    """What is beyond a limit, moved to it; NaN stays, as it is beyond nothing."""
    raised = tirx.Select(x < _number(least, x), _number(least, x), x)
    return tirx.Select(raised > _number(most, x), _number(most, x), raised)


def _number(value: float, like: tirx.Expr | str) -> tirx.Expr:
    """A number of the type of an expression, or of a type: as often as its vectors have values."""
    return tirx.const(value, like if isinstance(like, str) else like.ty.dtype)


def _with_value(value: tirx.Expr, result: Callable[[tirx.Expr], tirx.Expr]) -> tirx.Expr:
    """What is computed from a value that is computed once."""
    variable = tirx.Var("value", value.ty.dtype)
    return tirx.Let(variable, value, result(variable))
