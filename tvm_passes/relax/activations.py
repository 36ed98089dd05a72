"""Activations that are several operators of Relax: where one begins, and which operators it is."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

_Form = tuple[tuple[str, tuple[float, ...]], ...]

_CUT: _Form = (("add", (3,)), ("clip", (0, math.inf)), ("clip", (-math.inf, 6)))
# Operators, with their constants, each of which reads the one before; a product is that with the activation's data.
_FORMS: Mapping[str, _Form] = {
    "hardswish": (*_CUT, ("multiply", ()), ("divide", (6,))),
    "hardsigmoid": (*_CUT, ("divide", (6,))),
    "silu": (("sigmoid", ()), ("multiply", ())),
    "sigmoid": (("sigmoid", ()),),
}


@dataclass(frozen=True)
class Activation:
    """An activation.

    Attributes:
        function: its name, as `ksm_hw.quantising.activations` has it.
        steps: the results of its operators; the last is its own.
    """

    function: str
    steps: tuple[relax.Var, ...]


def activation_at(
    variable: relax.Var, values: Mapping[relax.Var, relax.Expr], readers: Mapping[relax.Var, Sequence[relax.Var]]
) -> Activation | None:
    """The activation whose first operator gives a variable; None if there is none.

    Args:
        variable: of a binding.
        values: of all bindings.
        readers: of each variable those whose values read it.
    """
    first = values[variable]
    if not isinstance(first, relax.Call) or not first.args:
        return None
    for function, form in _FORMS.items():
        steps = [variable]
        while len(steps) < len(form) and len(readers.get(steps[-1], ())) == 1:
            steps += readers[steps[-1]]
        calls = [values[step] for step in steps]
        if len(steps) == len(form) and all(_is_step(*one, first.args[0]) for one in zip(calls, form, strict=True)):
            return Activation(function, tuple(steps))
    return None


def _is_step(call: relax.Expr, step: tuple[str, tuple[float, ...]], data: relax.Expr) -> bool:
    name, numbers = step
    if not isinstance(call, relax.Call) or call.op.name != f"relax.{name}":
        return False
    reads_data = name != "multiply" or any(factor.same_as(data) for factor in call.args)
    return reads_data and tuple(map(scalar_constant, call.args[1:] if numbers else ())) == numbers


def scalar_constant(value: relax.Expr) -> float | None:
    """A constant; None for any other value."""
    if not isinstance(value, tvm.ir.expr.Constant):
        return None
    number = value.value.numpy() if isinstance(value.value, tvm.runtime.Tensor) else value.value
    return float(number) if np.ndim(number) == 0 else None
