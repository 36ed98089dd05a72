"""Lifts what depends on parameters alone out of `main`.

In:  `main(input, *parameters)` whose types are known.
Out: `main(input, *weights)`, and `rewrite(*parameters)`, which gives the tuple of weights. With it goes whatever the
     layout passes put between a parameter and its convolution, so that inference pays for none of it.
"""

import tvm
from tvm import relay

from tvm_passes.relay.names import weight_name


def lift_weights(module: tvm.IRModule) -> tuple[tvm.IRModule, tvm.IRModule]:
    """A module with the new `main`, and one whose `main` is `rewrite`."""
    function = module["main"]
    lifter = _Lifter(function)
    body = lifter.visit(function.body)
    variables = [variable for _, variable in lifter.weights.values()]
    # A parameter that `main` takes as it is would be an output that is an input, which the graph executor cannot own.
    weights = [relay.copy(weight) if isinstance(weight, relay.Var) else weight for weight, _ in lifter.weights.values()]
    main = relay.Function([function.params[0], *variables], body)
    rewrite = relay.Function(function.params[1:], relay.Tuple(weights))
    infer = relay.transform.InferType()
    return infer(tvm.IRModule.from_expr(main)), infer(tvm.IRModule.from_expr(rewrite))


class _Lifter(relay.ExprMutator):
    """Replaces each largest expression over parameters alone by a variable."""

    def __init__(self, function: relay.Function) -> None:
        super().__init__()
        self.weights: dict[relay.Expr, tuple[relay.Expr, relay.Var]] = {}
        self.of_input, self.of_parameters = _dependencies(function)

    def visit(self, expression: relay.Expr) -> relay.Expr:
        if expression not in self.of_parameters or expression in self.of_input:
            return super().visit(expression)
        if isinstance(expression.checked_type, tvm.ir.TupleType):
            return super().visit(expression)
        if expression not in self.weights:
            variable = relay.Var(weight_name(len(self.weights)), expression.checked_type)
            self.weights[expression] = (expression, variable)
        return self.weights[expression][1]


def _dependencies(function: relay.Function) -> tuple[set[relay.Expr], set[relay.Expr]]:
    """The expressions that depend on the input, the first parameter; and those that depend on any other."""
    of_input, of_parameters = {function.params[0]}, set(function.params[1:])

    def visit(expression: relay.Expr) -> None:
        match expression:
            case relay.Call():
                operands = list(expression.args)
            case relay.Tuple():
                operands = list(expression.fields)
            case relay.TupleGetItem():
                operands = [expression.tuple_value]
            case _:
                return
        for dependent in (of_input, of_parameters):
            if any(operand in dependent for operand in operands):
                dependent.add(expression)

    relay.analysis.post_order_visit(function.body, visit)
    return of_input, of_parameters
