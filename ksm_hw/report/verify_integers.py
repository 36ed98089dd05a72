"""An int8 artifact beside the integer model of its tasks: every tensor, bit for bit, and how far it is from float32."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.float_model import float_results
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import Network, Rearrangement, network_of
from ksm_hw.quantising.scheme import dequantise
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.device_session import DeviceSession

Float32Array = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of a task over all images.

    Attributes:
        tensor: its name (docs/quantisation.md).
        equal: whether the compiled model's is the integer model's, bit for bit; None where it was not seen: on boards
            the logits alone are.
        signal_to_noise: Σ x² / Σ (x - y)² in decibels, of x in float32 and y in int8; None where one of them is 0.
    """

    tensor: str
    equal: bool | None
    signal_to_noise: float | None


@dataclass(frozen=True)
class Logits:
    """Of a batch of images, each float32 [N, classes]: the compiled model's, the integer model's, and float32's."""

    compiled: Float32Array
    stated: Float32Array
    real: Float32Array


class IntegerCheck:
    """Compares the session's current task with its integer model, batch by batch.

    A tensor of the compiled model has no name. It is the model's of a name where it equals that in every batch at the
    same place of the calls, and it is that of no second name. What is merely moved (`Rearrangement`) may be done where
    it is computed; then all that was moved of it is looked for instead.

    Raises:
        UserError: the task's ranges are missing, damaged, or of another network.
    """

    def __init__(self, session: AnySession, bundle: Bundle) -> None:
        pack = bundle.packs[session.task]
        self._session = session
        self._network = network_of(bundle, pack)
        self._folded = folded_weights(self._network, bundle, pack)
        self._model = integer_model(self._network, bundle, pack)
        self._names = self._network.computed_tensors()
        self._places: dict[str, set[int]] | None = None  # In the calls of an inference; None where none are seen.
        self._logits_equal = True
        self._signal, self._noise = dict.fromkeys(self._names, 0.0), dict.fromkeys(self._names, 0.0)

    def add(self, images: Float32Array) -> Logits:
        """Compares on a batch, float32 [N, 3, H, W], and returns its logits.

        Raises:
            UserError: the device fails, or an inference on this machine computes no tensor of 8 bits.
        """
        stated = self._model.results(images)
        real = {name: tensor.numpy() for name, tensor in float_results(self._network, self._folded, images).items()}
        compiled, logits = self._session.run_all(images), self._network.logits
        if isinstance(self._session, DeviceSession):
            seen = _seen_tensors(self._session, images)
            found = {name: _places(tensor, seen) for name, tensor in stated.items() if name != logits}
            known = found if self._places is None else self._places
            self._places = {name: places & known[name] for name, places in found.items()}
        self._logits_equal &= np.array_equal(compiled, stated[logits])
        for name in self._names:
            quantised = stated[name] if name == logits else dequantise(stated[name], self._model.quantisations[name])
            self._signal[name] += float(np.square(real[name], dtype=np.float64).sum())
            self._noise[name] += float(np.square(real[name] - quantised, dtype=np.float64).sum())
        return Logits(compiled, stated[logits], real[logits])

    def tensors(self) -> tuple[TensorCheck, ...]:
        """What was found of each tensor, in the order of computation; the last are the logits."""
        equal = dict.fromkeys(self._names) if self._places is None else _found(self._network, self._names, self._places)
        equal[self._network.logits] = self._logits_equal
        return tuple(
            TensorCheck(name, equal[name], _decibels(self._signal[name], self._noise[name])) for name in self._names
        )


def _found(network: Network, names: list[str], places: Mapping[str, set[int]]) -> dict[str, bool | None]:
    """Of each name but the logits whether it was found at a place that no other name has."""
    free = {place for found in places.values() for place in found}

    def takes_place(name: str) -> bool:
        place = min(places[name] & free, default=None)
        free.discard(-1 if place is None else place)
        return place is not None

    def is_moved(name: str) -> bool:
        """Whether all that is in a tensor was found in what was moved of it."""
        moves = [one for one in network.operators if isinstance(one, Rearrangement) and one.data == name]
        parts = [one.result for one in moves if one.keeps == "part"]
        wholes = [one.result for one in moves if one.keeps == "all"]
        return any(map(is_there, wholes)) or (bool(parts) and all([is_there(part) for part in parts]))

    def is_there(name: str) -> bool:
        return takes_place(name) or is_moved(name)

    # First what was found itself: what is moved may have the values of another tensor.
    found: dict[str, bool | None] = {name: takes_place(name) for name in names if name != network.logits}
    return {name: there or is_moved(name) for name, there in found.items()}


def first_difference(tensors: tuple[TensorCheck, ...]) -> str | None:
    """The first tensor that is not the integer model's; None if there is none."""
    return next((one.tensor for one in tensors if one.equal is False), None)


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal and noise else None


def _seen_tensors(session: DeviceSession, images: Float32Array) -> list[UInt8Array]:
    """All tensors of 8 bits that an inference of these images computes, in its order, images along the first axis.

    Those of a CPU that multiplies signed integers hold `q - 128`; what is returned is q.

    Raises:
        UserError: it computes none.
    """
    batch, *one = session.manifest.input_shape
    parts: list[list[UInt8Array]] = []
    # Tensors that were allocated since the last kernel: those that the next one writes, its last arguments.
    results = 0

    def watch(_function: Any, symbol: str, before: bool, _result: Any, *arguments: Any) -> None:
        nonlocal results
        if before:
            return
        if symbol == "vm.builtin.alloc_tensor":
            results += 1
        elif not symbol.startswith("vm."):
            written = arguments[len(arguments) - results :]
            parts[-1] += [_unsigned(one.numpy()) for one in written if str(one.dtype) in ("uint8", "int8")]
            results = 0

    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        parts.append([])
        session.trace_run(watch, np.concatenate([part, np.zeros((batch - len(part), *one), np.float32)]))
    if not all(parts):
        raise UserError(
            f"An inference of task '{session.task}' computes no tensor of 8 bits, which int8 is verified by. Compile "
            "the bundle again with this ksm-hw."
        )
    return [np.concatenate(tensors)[: len(images)] for tensors in zip(*parts, strict=True)]


def _unsigned(tensor: npt.NDArray[Any]) -> UInt8Array:
    return tensor if tensor.dtype == np.uint8 else tensor.view(np.uint8) ^ np.uint8(128)


def _places(expected: UInt8Array, seen: list[UInt8Array]) -> set[int]:
    """Which of the tensors, whose channels are the last axis, are this one, whose channels are the second."""
    last = np.moveaxis(expected, 1, -1)
    return {
        place
        for place, one in enumerate(seen)
        if one.size == last.size and np.array_equal(one.reshape(last.shape), last)
    }
