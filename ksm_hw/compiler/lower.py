"""From a PyTorch network to Relax: torch.export, with every tensor that a task may change as a parameter."""

import warnings
from collections.abc import Mapping

import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from ksm_hw.artifact.parameters import HEAD_BIAS, HEAD_WEIGHT
from ksm_hw.compiler.exported_operators import CONVERTERS, misread_operators, needs_decomposition
from ksm_hw.errors import UserError
from ksm_hw.models.backbones import build_backbone, head_path, widen

# How TVM's importer begins to say which operators it does not have.
_UNSUPPORTED = "Unsupported function types "


def lower_backbone(
    backbone: str, classes: int, batch: int, image_size: int, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tvm.IRModule:
    """Lowers a network to `main(input, *parameters)`.

    `input` is float32 [batch, 3, image_size, image_size] and the result the logits, float32 [batch, classes]. A
    parameter's name is its path in the network's state dict; those of the head are `head/weight` and `head/bias`.
    Layers have the widths that `shapes` gives them (`shapes_of`).

    Raises:
        UserError: there is no such network, it is not in float32, or TVM has not all of its operators.
    """
    model = widen(build_backbone(backbone, classes), shapes or {}).eval()
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            # TVM's importer writes float32 for what convolutions and matrix products of any type give.
            raise UserError(f"'{path}' of {backbone} is {parameter.dtype}. Networks are lowered from float32 alone.")
    head = head_path(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            _make_statistics_parameters(module)
    with warnings.catch_warnings():
        # torch.export and TVM's importer warn of each other's deprecated parts; a user can do nothing about it.
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, (torch.zeros(batch, 3, image_size, image_size),))
        if misread := misread_operators(exported.graph):
            raise _cannot_be_compiled(backbone, f"TVM computes something else than {', '.join(misread)}")
        decompose = needs_decomposition(exported.graph)
        try:
            module = from_exported_program(
                exported,
                keep_params_as_input=True,
                unwrap_unit_return_tuple=True,
                custom_convert_map=None if decompose else CONVERTERS,
                run_ep_decomposition=decompose,
            )
        except AssertionError as error:
            if not str(error).startswith(_UNSUPPORTED):
                raise
            raise _cannot_be_compiled(backbone, f"TVM knows none of {str(error).removeprefix(_UNSUPPORTED)}") from error
    module, _ = relax.frontend.detach_params(module)
    names = {
        argument: {f"{head}.weight": HEAD_WEIGHT, f"{head}.bias": HEAD_BIAS}.get(path, path)
        for argument, path in exported.graph_signature.inputs_to_parameters.items()
    }
    return _rename_parameters(module, names)


def _cannot_be_compiled(backbone: str, why: str) -> UserError:
    return UserError(f"{backbone} cannot be compiled: {why}. Other engines take it: ksm-hw export.")


def _make_statistics_parameters(batch_norm: nn.BatchNorm2d) -> None:
    """Turns the running mean and variance into parameters, in place: the importer turns buffers into constants."""
    for name in ("running_mean", "running_var"):
        buffer = batch_norm.get_buffer(name)
        delattr(batch_norm, name)
        setattr(batch_norm, name, nn.Parameter(buffer, requires_grad=False))


def _rename_parameters(module: tvm.IRModule, names: dict[str, str]) -> tvm.IRModule:
    main = module["main"]
    renamed = {parameter: relax.Var(names[parameter.name], parameter.ty) for parameter in main.params[1:]}
    bound = main.bind_params(renamed)
    module["main"] = relax.Function([main.params[0], *renamed.values()], bound.body, main.ret_ty, attrs=main.attrs)
    return module
