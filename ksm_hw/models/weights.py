"""Weights that people have, under the names and in the type that a network of ours has them."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain

import torch

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

# Parts of a module's path that wrappers put in (DataParallel and SWA, torch.compile, checkpointing, FSDP), and names
# that torchvision's own files of DenseNet and of vision transformers still have.
_WRAPPED = re.compile(r"(?<![^.])(?:module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)


def fitted_weights(
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    left_out: Collection[str],
    where: str,
    level: int = logging.WARNING,
) -> dict[str, torch.Tensor]:
    """The tensors of a state dict under the names that a network expects, float32.

    Wrappers (`module.`, `_orig_mod.`) and whatever stands before most of the names (`model.backbone.`) are stripped.
    Left out is what stands beside that prefix, what `left_out` names, and counters: tensors of one element that the
    network does not have. What was done is logged. Other tensors that the network does not have stay in,
    for they may be layers of a larger network.

    Args:
        state: as `read_state_dict` gives it.
        expected: the network's own tensors.
        left_out: module paths whose tensors are not wanted: the head, auxiliary heads.
        where: the file, for messages.
        level: of what is logged: a user is told what becomes of a file of theirs.

    Raises:
        UserError: a tensor is no plain one of floating-point numbers, or has one that is not finite.
    """
    plain_names = {name: plain_name(name) for name in state}
    prefix = _common_prefix(plain_names.values(), expected)
    fitted: dict[str, torch.Tensor] = {}
    dropped = []
    for name, plain in plain_names.items():
        own = plain.removeprefix(prefix)
        counter = own not in expected and state[name].numel() <= 1
        unwanted = counter or own in fitted or any(own.startswith(f"{path}.") for path in left_out)
        if unwanted or not plain.startswith(prefix):
            dropped.append(name)
        else:
            fitted[own] = _as_float32(state[name], expected.get(own), name, where)
    if stripped := {*chain.from_iterable(map(_WRAPPED.findall, state)), prefix} - {""}:
        _log.log(level, "%s: stripped %s from the names of tensors", where, ", ".join(sorted(stripped)))
    if dropped:
        _log.log(level, "%s: left out %s", where, _listed(dropped))
    dtypes = {_name_of(tensor.dtype) for tensor in state.values() if tensor.is_floating_point()} - {"float32"}
    if dtypes:
        _log.log(level, "%s: converted %s to float32", where, ", ".join(sorted(dtypes)))
    return fitted


def plain_name(name: str) -> str:
    """A tensor's name without the wrappers of single modules, and as torchvision calls it today."""
    name = _WRAPPED.sub("", name)
    for old, new in _OLD_NAMES:
        name = old.sub(new, name)
    return name


def _common_prefix(names: Iterable[str], expected: Collection[str]) -> str:
    """What stands before most of the expected names; where several do alike the first that names no moving average."""
    found: Counter[str] = Counter()
    for name in names:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        found.update(name[:start] for start in starts if name[start:] in expected)
    return max(found, key=lambda prefix: (found[prefix], "ema" not in prefix), default="")


def _as_float32(tensor: torch.Tensor, own: torch.Tensor | None, name: str, where: str) -> torch.Tensor:
    """The tensor in float32; integers only where the network's own tensor, if it has one, holds integers too."""
    floating = tensor.is_floating_point() or (own is not None and not own.is_floating_point())
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or not floating:
        raise UserError(
            f"{where} has '{name}' as {_name_of(tensor.dtype)}, {_name_of(tensor.layout)}; expected plain "
            "floating-point numbers. Convert quantised or sparse weights before they are saved."
        )
    numbers = tensor.cpu().float()
    if not torch.isfinite(numbers).all() or (name.endswith("running_var") and (numbers < 0).any()):
        raise UserError(
            f"{where} has numbers in '{name}' that are not finite in float32 (NaN or infinite), or variances below 0. "
            "The training that made the file diverged, or the file is damaged; give another."
        )
    return numbers


def _name_of(constant: torch.dtype | torch.layout) -> str:
    return str(constant).removeprefix("torch.")


def _listed(names: list[str]) -> str:
    """Names for a message, those of one module as one."""
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(name)
    shown = [f"{module} ({len(own)} tensors)" if len(own) > 1 else own[0] for module, own in modules.items()]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
