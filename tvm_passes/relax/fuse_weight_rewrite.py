"""FuseWeightRewrite: all that is done to one weight becomes one kernel.

In:  a Relax module for a CPU, in which masks and BatchNorms are folded into weights (`FoldTaskMask`): the weight,
     multiplied by its mask (decode → reshape → repeat → slice), multiplied by a BatchNorm's scale, permuted to
     [kH, kW, I, O] or [I, O], packed into blocks of output channels or transformed for Winograd's form. All but the
     permutation may be missing; in int8 the permuted weight is quantised (`quantised_layer`).
Out: the same module; each such chain is one call of a kernel (`kernels/weight_rewrite.py`), which reads and writes
     memory once. What stands behind a chain stays, and so does a chain of any other form. The decoders of masks, which
     nothing calls any more, stay in the module for `DeadCodeElimination`.
"""

import logging
from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.ir import IRModule
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator

from tvm_passes.relax.kernels.mask_decoding import decoding_table
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite, weight_rewrite
from tvm_passes.relax.weight_chains import Chain, read_chains

_log = logging.getLogger(__name__)


@tvm.transform.module_pass(opt_level=0, name="FuseWeightRewrite")
class FuseWeightRewrite:
    """Fuses what is done to weights.

    Args:
        target: a CPU.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """Rewrites every function that does something to a weight.

        Raises:
            UnknownDtype: a mask or a BatchNorm is folded into a weight of a type that no kernel is for.
        """
        fuser = _Fuser(module, self.target)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                chains = read_chains(module, function)
                if chains:
                    fuser.builder_.update_func(name, fuser.fuse(function, chains))
                    _log.info("%s: %d weights are rewritten in one pass each", name.name_hint, len(chains))
        _log.info("%d kernels rewrite weights", len(fuser.kernels))
        return fuser.builder_.get()


@mutator
class _Fuser(PyExprMutator):
    """Fuses chains; `kernels` are those of the whole module, and chains and what is needed those of one function."""

    def __init__(self, module: IRModule, target: tvm.target.Target) -> None:
        super().__init__(module)
        self.target = target
        self.chains: Mapping[relax.Var, Chain] = {}
        self.needed: set[relax.Var] = set()
        self.kernels: dict[WeightRewrite, tvm.ir.GlobalVar] = {}
        self.table = relax.const(decoding_table(), "int8")

    def fuse(self, function: relax.Function, chains: Mapping[relax.Var, Chain]) -> relax.Function:
        """The function with a call of a kernel for each chain."""
        self.chains = chains
        self.needed = _needed(function, chains)
        return self.visit_expr(function)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var not in self.needed:
            return
        chain = self.chains.get(binding.var)
        if chain is None:
            super().visit_var_binding_(binding)
            return
        shared = chain.rewrite.shared
        if shared not in self.kernels:
            self.kernels[shared] = self.builder_.add_func(weight_rewrite(shared, self.target), "rewrite_weight")
        weight, *others = map(self.visit_expr, chain.operands)
        table = [self.table] if chain.mask else []
        call = relax.call_tir(self.kernels[shared], [weight, *table, *others], out_ty=chain.rewrite.result_types)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))


def _needed(function: relax.Function, chains: Mapping[relax.Var, Chain]) -> set[relax.Var]:
    """The variables that the result still depends on: what lies inside of chains is not, if nothing else reads it."""
    needed = set(relax.analysis.free_vars(function.body.body))
    for block in reversed(function.body.blocks):
        for binding in reversed(block.bindings):
            if binding.var in needed or not isinstance(binding.var, relax.DataflowVar):
                chain = chains.get(binding.var)
                read = relax.analysis.free_vars(binding.value) if chain is None else chain.operands
                needed.update(read, [binding.var])
    return needed
