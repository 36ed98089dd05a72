"""NameParameters: parameters get names that C takes, and keep their own beside.

In:  `main(input, *parameters)`, whose parameters are named by their paths (`layer1.0.conv1.weight`).
Out: the same `main`, whose parameters are named `layer1_0_conv1_weight`, because kernels for a GPU are source and take
     the names; its attribute `parameters` has their own, in order.
"""

import re

import tvm
from tvm import relax
from tvm.ir.transform import PassContext

PARAMETERS = "parameters"


@tvm.transform.module_pass(opt_level=0, name="NameParameters")
class NameParameters:
    """Renames the parameters of `main`."""

    def transform_module(self, module: tvm.IRModule, _context: PassContext) -> tvm.IRModule:
        """Rewrites `main`."""
        main = module["main"]
        renamed = {variable: relax.Var(re.sub(r"\W", "_", variable.name), variable.ty) for variable in main.params}
        body = main.bind_params(renamed).body
        named = relax.Function(list(renamed.values()), body, main.ret_ty, attrs=main.attrs)
        paths = [parameter.name for parameter in main.params[1:]]
        module.update_func(module.get_global_var("main"), named.with_attr(PARAMETERS, paths))
        return module
