"""Sessions on a device of this process: what is the same whichever TVM runs them."""

import abc
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ksm_hw.artifact.manifest import Manifest, TaskEntry
from ksm_hw.artifact.parameters import is_shared, task_parameters
from ksm_hw.errors import UserError
from ksm_hw.masks.task_pack import TaskDescription, TaskPack
from ksm_hw.runtime.any_session import AnySession
from ksm_hw.runtime.forks import check_process
from ksm_hw.runtime.threads import pinned, usable_cores, use_threads

Tensors = Sequence[Any]  # TVM's, on the device.

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadedTask:
    """A task on a device of this process, which is all that is kept of its pack.

    Attributes:
        description: what it is.
        parameters: of its functions, in the manifest's order.
        own_bytes: of those that it shares with no other task.
    """

    description: TaskDescription
    parameters: Tensors
    own_bytes: int


@dataclass(frozen=True)
class Uploaded:
    """An artifact's tasks on a device of this process.

    Attributes:
        manifest: see `AnySession`.
        tasks: by name (`upload_tasks`).
        device: TVM's.
        threads: of the CPU, on which a session works.
    """

    manifest: Manifest
    tasks: Mapping[str, UploadedTask]
    device: Any
    threads: int


class DeviceSession(AnySession):
    """A session in this process, which can be measured."""

    def __init__(self, uploaded: Uploaded) -> None:
        super().__init__(uploaded.manifest, {name: task.description for name, task in uploaded.tasks.items()})
        self._uploaded_tasks = uploaded.tasks
        self._device = uploaded.device
        self._threads = uploaded.threads
        self._process = os.getpid()

    @property
    @abc.abstractmethod
    def weights_bytes(self) -> int:
        """Bytes of the current task's live weights on the device; those of `bake` are inside the library."""

    @property
    def parameters_bytes(self) -> int:
        """Bytes of backbone and task packs on the device, each tensor counted once."""
        tensors = [tensor for task in self._uploaded_tasks.values() for tensor in task.parameters]
        return bytes_of({id(tensor): tensor for tensor in tensors}.values())

    @property
    def own_bytes(self) -> dict[str, int]:
        """Bytes on the device that each task alone adds to those of the others."""
        return {name: task.own_bytes for name, task in self._uploaded_tasks.items()}

    @abc.abstractmethod
    def measure_run(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` inferences of the current task, on images that stay on the device."""

    def measure_copies(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` copies of as many bytes as the live weights, inside the device's memory."""
        if not self.weights_bytes:
            return []
        # The source must be written to: memory that never was is one page of zeros, which stays in the cache.
        source = self._uploaded(np.ones(self.weights_bytes, np.uint8))
        destination = self._uploaded(np.zeros(self.weights_bytes, np.uint8))
        seconds = [self._seconds(lambda: source.copyto(destination)) for _ in range(repeats + 1)]
        return seconds[1:]  # The first may find pages that are not there yet.

    def trace_run(self, instrument: Callable[..., None], images: npt.NDArray[np.float32] | None = None) -> None:
        """Runs one inference of the current task; every call that it makes is told to a function before and after.

        Args:
            instrument: takes the function that is called, its symbol, whether this is before the call, the result, and
                the call's arguments.
            images: float32 [N, 3, H, W], as many as the artifact's batch; zeros without them.

        Raises:
            UserError: what runs the artifact tells of no calls, or the device fails.
        """
        raise UserError(f"Calls are not told apart in an artifact of --ir {self.manifest.ir}. Use --ir relax.")

    @abc.abstractmethod
    def _uploaded(self, array: npt.NDArray[np.generic]) -> Any:
        """A copy of an array on the device; TVM's versions call it differently."""

    def _seconds(self, function: Callable[[], object]) -> float:
        """How long a call takes, until the device has done it."""
        start = time.perf_counter()
        function()
        self._device.sync()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Around every call into the artifact: whichever thread calls, it has the session's threads and cores."""
        if self.manifest.device != "cpu":
            check_process(self._process, f"A session on the device '{self.manifest.device}'")
        use_threads(self._threads, self.manifest.cores)
        with pinned(self.manifest.cores), device_failures(self.manifest.device):
            yield


@contextlib.contextmanager
def device_failures(device: str) -> Iterator[None]:
    """Around calls of TVM: what it raises, such as for a kernel that a driver does not compile, becomes a UserError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # TVM 0.19 writes the stack of its C++ before the message.
        message = re.split(r"^\w+Error: ", str(error), flags=re.MULTILINE)[-1]
        raise UserError(f"The device '{device}' failed: {message}") from error


def start_threads(manifest: Manifest, threads: int | None) -> int:
    """Lets TVM's loops in this thread run on some threads, and returns how many.

    Args:
        manifest: of the artifact, whose target has so many cores, and may name them.
        threads: how many, at most one a core; without it as many as the target has cores, if this machine has as many.

    Raises:
        UserError: none, or fewer.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: an inference takes 1 or more; without it as many as the target has cores.")
    cores = sorted(usable_cores(manifest.cores))
    threads = min(manifest.cpu.get("num-cores", 1) if threads is None else threads, len(cores))
    use_threads(threads, manifest.cores)
    _log.info("%d threads on the cores %s: the target has %s", threads, cores, manifest.cpu.get("num-cores", 1))
    return threads


def upload_tasks(
    manifest: Manifest,
    backbone: Mapping[str, npt.NDArray[np.float32]],
    packs: Iterable[tuple[str, TaskPack]],
    upload: Callable[[TaskEntry, str, npt.NDArray[np.generic]], Any],
) -> dict[str, UploadedTask]:
    """The tasks on the device; what they share is there once.

    Args:
        manifest: which parameters each task takes.
        backbone: the tensors that tasks share.
        packs: the tasks and their names, of which none is kept.
        upload: makes a tensor of a task's array, given its name.
    """
    shared: dict[str, Any] = {}
    uploaded: dict[str, UploadedTask] = {}
    for task, pack in packs:
        entry = manifest.tasks[task]
        arrays = task_parameters(entry.parameters, pack, backbone, manifest.output_shape[1])
        parameters, own = [], []
        for name, array in zip(entry.parameters, arrays, strict=True):
            if not is_shared(name, pack):
                own.append(upload(entry, name, array))
                parameters.append(own[-1])
                continue
            if name not in shared:
                shared[name] = upload(entry, name, array)
            parameters.append(shared[name])
        uploaded[task] = UploadedTask(pack.description, parameters, bytes_of(own))
    return uploaded


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes that tensors hold."""
    return sum(int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize for tensor in tensors)
