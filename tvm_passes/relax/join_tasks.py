"""Joins what was folded with masks of different layouts into one module."""

from collections.abc import Mapping
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import relax

from tvm_passes.relax.name_parameters import PARAMETERS

# The names of functions that compute inferences begin so; those of others do not.
MAIN = "main"


@dataclass(frozen=True)
class TaskFunctions:
    """The functions that tasks with one layout of masks use, and the parameters these take.

    Attributes:
        main: `main(input, *weights)`, or with `fused` `main(input, *parameters)`.
        rewrite: from a tuple of parameters to the tuple of weights; None with `fused`.
        parameters: names, in order, of what `rewrite` takes, or `main` with `fused`.
    """

    main: str
    rewrite: str | None
    parameters: tuple[str, ...]


def join_tasks(folded: Mapping[str, tvm.IRModule]) -> tuple[tvm.IRModule, dict[str, TaskFunctions]]:
    """Joins modules of one network.

    Args:
        folded: `main`, whose parameters have names (`NameParameters`), and where they were lifted
            `main_transform_params`, by a name for each.

    Returns:
        `main_NAME` and `rewrite_weights_NAME` of each, and for each name its functions. Those whose `main` is the same
        share it.
    """
    functions: dict[tvm.ir.GlobalVar, tvm.ir.BaseFunc] = {}
    mains: dict[str, relax.Function] = {}
    tasks: dict[str, TaskFunctions] = {}
    for name, module in folded.items():
        parameters = tuple(map(str, module["main"].attrs[PARAMETERS]))
        main = module["main"].without_attr("global_symbol").without_attr(PARAMETERS)
        main_name = next((known for known, other in mains.items() if _same(main, other)), f"{MAIN}_{name}")
        rewrite_name = None
        for variable, function in module.functions.items():
            if isinstance(function, tvm.tirx.PrimFunc):
                functions[variable] = function
            elif variable.name_hint == "main_transform_params":
                rewrite_name = f"rewrite_weights_{name}"
                functions[tvm.ir.GlobalVar(rewrite_name)] = function.with_attr("global_symbol", rewrite_name)
            elif main_name not in mains:
                mains[main_name] = main
                # Each `main` was folded from the same network, and no two functions may share a variable.
                own = relax.utils.copy_with_new_vars(main)
                functions[tvm.ir.GlobalVar(main_name)] = own.with_attr("global_symbol", main_name)
        tasks[name] = TaskFunctions(main_name, rewrite_name, parameters)
    return tvm.IRModule(functions), tasks


def _same(function: relax.Function, other: relax.Function) -> bool:
    return bool(tvm_ffi.structural_equal(function, other, map_free_vars=True))
