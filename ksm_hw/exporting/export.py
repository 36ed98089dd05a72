"""A task written for other engines: ONNX, PyTorch's exported program, a state dict; checked before it is there."""

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.exporting.plain_network import plain_network
from ksm_hw.files.written import written_file
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.task_module import task_module

ExportFormat = Literal["onnx", "pt2", "state-dict"]
_TOLERANCE = 1e-4  # Of the largest logit: folding rounds, and each engine adds in an order of its own.
_ONNX = ("onnx", "onnxscript", "onnxruntime")

Logits = Callable[[torch.Tensor], npt.NDArray[Any]]


class OtherLogits(Exception):
    """What was written computes something else than the task does in PyTorch; the message has both numbers."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        bytes: its size.
        largest_difference: from the logits of the task in PyTorch, over random images.
        largest_logit: of those.
    """

    path: str
    bytes: int
    largest_difference: float
    largest_logit: float


def check_export(form: ExportFormat, batch: int | None = None) -> None:
    """Checks, before the task is read, that it can be written in a format; `batch` is None where nobody gave it.

    Raises:
        UserError: packages are missing, or the format has no batch.
    """
    if form == "state-dict" and batch is not None:
        raise UserError("A state dict takes any --batch. Leave that out, or give --format onnx or pt2.")
    if form == "onnx" and (missing := [name for name in _ONNX if importlib.util.find_spec(name) is None]):
        raise UserError(f"ONNX needs {', '.join(missing)}. Install them: pip install 'ksm-hw[onnx]'.")


def export_task(bundle: Bundle, pack: TaskPack, form: ExportFormat, path: Path, batch: int | None = None) -> Exported:
    """Writes a task as a plain network, which must give the logits that the task gives in PyTorch.

    Args:
        bundle, pack: the task.
        form: of the file: `onnx` and `pt2` take images float32 [batch, 3, H, W] as `images` and give `logits`;
            `state-dict` holds the tensors of `plain_network`, as safetensors where the file is called so.
        path: of the file, which is there whole or not at all.
        batch: images an inference, 1 without it; not for `state-dict`.

    Raises:
        UserError: packages are missing, the format has no batch, or the file cannot be written.
        OtherLogits: what it computes is something else; nothing is written.
    """
    check_export(form, batch)
    network = plain_network(bundle, pack)
    size = pack.preprocessing.image_size
    images = torch.randn(batch or 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with written_file(path) as temporary:
        {"onnx": _write_onnx, "pt2": _write_program, "state-dict": _write_state}[form](network, images, temporary, path)
        read = {"onnx": _read_onnx, "pt2": _read_program, "state-dict": _read_state}[form]
        with torch.no_grad():
            expected = task_module(bundle, pack)(images).numpy()
            found = read(temporary, path, bundle, pack)(images)
        difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
        if not difference <= _TOLERANCE * max(largest, 1e-3):
            raise OtherLogits(
                f"As {form} task '{pack.task}' computes something else: logits differ by {difference:.3g}, where the "
                f"largest is {largest:.3g}. Nothing is written. Try another --format, or report this."
            )
        written = temporary.stat().st_size
    return Exported(str(path), written, difference, largest)


def _write_onnx(network: nn.Module, images: torch.Tensor, file: Path, _: Path) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # The exporter tells of its steps.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (images,), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
        )
        assert program is not None
        program.save(str(file), external_data=False)


def _read_onnx(file: Path, _: Path, bundle: Bundle, pack: TaskPack) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images.numpy()})[0])


def _write_program(network: nn.Module, images: torch.Tensor, file: Path, _: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns of deprecated parts of its own.
        content = io.BytesIO()  # To a file torch hides the error of a full disk.
        torch.export.save(torch.export.export(network, (images,)), content)
    file.write_bytes(content.getbuffer())


def _read_program(file: Path, _: Path, bundle: Bundle, pack: TaskPack) -> Logits:
    with file.open("rb") as stream:
        network = torch.export.load(stream).module()
    return lambda images: network(images).detach().numpy()


def _write_state(network: nn.Module, images: torch.Tensor, file: Path, path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save

        file.write_bytes(save(state))
    else:
        content = io.BytesIO()  # As above.
        torch.save(state, content)
        file.write_bytes(content.getbuffer())


def _read_state(file: Path, path: Path, bundle: Bundle, pack: TaskPack) -> Logits:
    from ksm_hw.state_dicts import read_state_dict

    network = plain_network(bundle, pack)
    for tensor in network.state_dict().values():
        tensor.zero_()
    network.load_state_dict(read_state_dict(file))
    return lambda images: network(images).detach().numpy()
