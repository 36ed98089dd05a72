"""The state of learning after its last whole epoch: written, and read to go on from it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ksm_hw.errors import UserError
from ksm_hw.files.written import written_file


@dataclass(frozen=True)
class Checkpoint:
    """What is kept, and where.

    Attributes:
        path: of the file; None keeps nothing.
        parts: network, optimizer and schedule: what has a state dict.
        fingerprint: what must be the same where learning goes on, but the rates.
        rates: of Adam; the same too, but for learning that diverged with them.
    """

    path: Path | None
    parts: Mapping[str, Any]
    fingerprint: str
    rates: tuple[float, ...]


def save_checkpoint(checkpoint: Checkpoint, history: list[dict[str, Any]]) -> None:
    """Writes the state after an epoch; `history` has that epoch and those before it.

    Raises:
        UserError: the file cannot be written.
    """
    if checkpoint.path is not None:
        state = {name: part.state_dict() for name, part in checkpoint.parts.items()}
        identity = {"fingerprint": checkpoint.fingerprint, "rates": list(checkpoint.rates), "diverged": False}
        _write(checkpoint.path, {**state, **identity, "history": history})


def mark_diverged(checkpoint: Checkpoint) -> bool:
    """Lets learning go on with other rates from the last whole epoch; False where no epoch was kept.

    Raises:
        UserError: the file cannot be written.
    """
    if checkpoint.path is None or not checkpoint.path.exists():
        return False
    _write(checkpoint.path, {**_read(checkpoint.path), "diverged": True})
    return True


def resume(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Brings the parts into the state that was kept, and returns its history; empty where none was kept.

    Raises:
        UserError: the file cannot be read, or belongs to other options, images or weights.
    """
    if checkpoint.path is None or not checkpoint.path.exists():
        return []
    content = _read(checkpoint.path)
    same_rates = content["rates"] == list(checkpoint.rates) or content["diverged"]
    if content["fingerprint"] != checkpoint.fingerprint or not same_rates:
        raise UserError(
            f"The checkpoint {checkpoint.path} was begun with other options, other images or another backbone. "
            "Give the same to go on, or --restart to learn from the start."
        )
    try:
        for name, part in checkpoint.parts.items():
            part.load_state_dict(content[name])
        history: list[dict[str, Any]] = content["history"]
    except Exception as error:  # As many types as there are ways to damage it.
        raise _unreadable(checkpoint.path) from error
    return history


def _read(path: Path) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if content.keys() >= {"fingerprint", "rates", "diverged", "history"}:
            return content
    except Exception as error:  # torch raises many types for damaged files; each means the same here.
        raise _unreadable(path) from error
    raise _unreadable(path)


def _unreadable(path: Path) -> UserError:
    return UserError(f"Cannot read the checkpoint {path}. Learn from the start with --restart.")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    # Through memory, because torch hides the error of a full disk.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with written_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
