"""SeparateKernels: every kernel of a GPU is a function of its own.

In:  a module whose loop nests are scheduled. A function may have several nests, one behind the other, and tensors
     between them in the GPU's memory: parts of sums, or what is broadcast behind a reduction.
Out: the same module with a function a nest, called one after the other. What lay between them is a tensor that the
     memory plan knows. Without this TVM takes it from a pool of the calling thread at each call, and a captured graph
     would go on using it when that thread has ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.ir.expr import TensorLoad
from tvm.ir.transform import PassContext
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import SBlock, SBlockRealize


@dataclass(frozen=True)
class _Kernel:
    """A nest as a function; `inputs` and `output` are tensors of the function that it was in."""

    function: tirx.PrimFunc
    inputs: tuple[tirx.Var, ...]
    output: tirx.Var


@tvm.transform.module_pass(opt_level=0, name="SeparateKernels")
class SeparateKernels:
    """Takes functions of several kernels apart."""

    def transform_module(self, module: IRModule, _context: PassContext) -> IRModule:
        """The module with a function a kernel."""
        separated = {
            variable: kernels
            for variable, function in module.functions.items()
            if isinstance(function, tirx.PrimFunc) and (kernels := _kernels(function))
        }
        separator = _Separator(module, separated)
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                separator.builder_.update_func(name, separator.visit_expr(function))
        return relax.transform.DeadCodeElimination()(separator.builder_.get())


@mutator
class _Separator(PyExprMutator):
    """Calls the kernels of a function in its place."""

    def __init__(self, module: IRModule, separated: dict[tvm.ir.GlobalVar, list[_Kernel]]) -> None:
        super().__init__(module)
        self.functions = dict(module.functions.items())
        self.separated = separated
        self.added: dict[tvm.ir.GlobalVar, list[tvm.ir.GlobalVar]] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = super().visit_call_(call)
        if call.op != tvm.ir.Op.get("relax.call_tir") or call.args[0] not in self.separated:
            return call
        variable, arguments = call.args[0], call.args[1]
        kernels = self.separated[variable]
        if variable not in self.added:
            self.added[variable] = [
                self.builder_.add_func(kernel.function, f"{variable.name_hint}_kernel_{number}_of_{len(kernels)}")
                for number, kernel in enumerate(kernels, 1)
            ]
        function = self.functions[variable]
        values: dict[tirx.Var, relax.Expr] = dict(zip(function.params, arguments.fields, strict=False))
        for kernel, added in zip(kernels, self.added[variable], strict=True):
            shape, dtype = kernel.output.ty.shape, kernel.output.ty.dtype
            result = relax.call_tir(
                added, [values[tensor] for tensor in kernel.inputs], relax.TensorType(shape, str(dtype))
            )
            values[kernel.output] = self.builder_.emit(result)
        return values[kernels[-1].output]


def _kernels(function: tirx.PrimFunc) -> list[_Kernel]:
    """The kernels of a function in their order; none where it is one kernel, or not of the form above."""
    body = function.body.block.body if isinstance(function.body, SBlockRealize) else None
    known = all(isinstance(tensor.ty, tirx.buffer.BufferType) for tensor in function.params)
    if not isinstance(body, tirx.SeqStmt) or not known:
        return []
    block = function.body.block
    between = [tensor for tensor in block.alloc_buffers if tensor.scope() == "global"]
    tensors = [*function.params, *between]
    kernels = []
    for nest in body.seq:
        read, written = _accesses(nest)
        outputs = [tensor for tensor in tensors if _among(tensor, written)]
        if len(outputs) != 1:
            return []
        inputs = [tensor for tensor in tensors if _among(tensor, read) and not tensor.same_as(outputs[0])]
        own = [tensor for tensor in block.alloc_buffers if _among(tensor, written) and not _among(tensor, between)]
        root = SBlock([], [], [], "root", nest, alloc_buffers=own)
        kernel = tirx.PrimFunc([*inputs, outputs[0]], SBlockRealize([], True, root), function.ret_type)
        kernels.append(_Kernel(kernel.with_attrs(function.attrs), tuple(inputs), outputs[0]))
    # Each but the last writes what lies between, and the last the only result.
    chained = [_among(kernel.output, between) for kernel in kernels] == [True] * (len(kernels) - 1) + [False]
    return kernels if chained else []


def _accesses(nest: tirx.Stmt) -> tuple[list[tirx.Var], list[tirx.Var]]:
    """The tensors that a nest reads, and those that it writes."""
    read: list[tirx.Var] = []
    written: list[tirx.Var] = []
    visitors = [
        (TensorLoad, lambda load: read.append(load.source)),
        (tirx.BufferStore, lambda store: written.append(store.buffer)),
    ]
    tvm_ffi.structural_walk(nest, visitors, order="post")
    return read, written


def _among(tensor: tirx.Var, tensors: Iterable[tirx.Var]) -> bool:
    return any(tensor.same_as(other) for other in tensors)
