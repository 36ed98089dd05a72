"""A session: an artifact loaded on a device, switched between its tasks and run.

session = Session.load("artifact")
session.switch("cars")
logits = session.run(images)
"""

import functools
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm.runtime.vm import VirtualMachine

from ksm_hw.artifact.manifest import LIBRARY, MANIFEST, Manifest, read_manifest
from ksm_hw.errors import UserError
from ksm_hw.files.staging import read_whole
from ksm_hw.masks.bundle import open_bundle, task_of
from ksm_hw.runtime.device_session import (
    DeviceSession,
    Tensors,
    Uploaded,
    UploadedTask,
    bytes_of,
    device_failures,
    start_threads,
    upload_tasks,
)
from ksm_hw.runtime.forks import check_process, hold_while_forking, survives_forks
from ksm_hw.runtime.freed_memory import give_back_freed_memory
from ksm_hw.runtime.library import check_machine, loaded_library
from ksm_hw.runtime.machine import check_cpu_features


class Session(DeviceSession):
    """An artifact on a device. Safe to use from several threads, and on a CPU in forked processes.

    Attributes:
        manifest: what the artifact is.
        descriptions: what its tasks are, by name.
        switch_seconds: how long the last switch took; 0 when the weights were kept.
    """

    def __init__(self, uploaded: Uploaded, machine: VirtualMachine, keep: int, budget: int | None) -> None:
        super().__init__(uploaded)
        self.switch_seconds = 0.0
        self._machine = machine
        self._keep = keep
        self._budget = budget
        # One lock for switch and run: TVM's virtual machine serves one caller at a time.
        self._lock = threading.RLock()
        hold_while_forking(self._lock)
        self._weights: Tensors = []  # In the order that `main` takes them.
        self._kept: OrderedDict[str, Tensors] = OrderedDict()
        # Held, for a heap that each batch was allocated in anew grew by several of them.
        self._images = tvm.runtime.empty(uploaded.manifest.input_shape, "float32", uploaded.device)
        # As the virtual machine takes them: to make that of a list at each switch takes as long as some layers.
        self._rewrite_arguments = {name: tvm_ffi.convert(task.parameters) for name, task in uploaded.tasks.items()}

    @classmethod
    def load(
        cls, artifact: str | Path, *, threads: int | None = None, keep: int = 1, budget: int | None = None
    ) -> "Session":
        """Loads an artifact and switches to its first task.

        Args:
            artifact: folder that `ksm-hw compile` wrote.
            threads: of the CPU, at most one a core; without it as many as the target has cores, if this machine has as
                many. Where the target names cores they are pinned to these.
            keep: how many tasks' weights are held ready, the current one included.
            budget: bytes that the weights held ready may take together; the current task's are held in any case.

        Raises:
            UserError: the artifact is missing, incomplete or damaged, or this machine cannot run it.
        """
        folder = Path(artifact)

        def opened() -> "Session":
            return cls.open(folder, read_manifest(folder), threads=threads, keep=keep, budget=budget)

        return read_whole(folder, MANIFEST, opened)

    @classmethod
    @survives_forks
    def open(
        cls, folder: Path, manifest: Manifest, *, threads: int | None = None, keep: int = 1, budget: int | None = None
    ) -> "Session":
        """As `load`, of an artifact whose files were checked when its manifest was read."""
        if keep < 1:
            raise UserError(f"keep={keep}: at least the current task's weights are held, so keep must be 1 or more.")
        if manifest.ir != "relax":
            raise UserError(
                f"{folder} was compiled through Relay, which runs in a process of its own. Open it with "
                "ksm_hw.boards.open_session.open_session, or compile it with --ir relax."
            )
        check_machine(folder / LIBRARY)
        check_cpu_features(manifest.cpu_features, manifest.cpu.get("mcpu", manifest.target))
        prepare_device(manifest.device)
        threads = start_threads(manifest, threads)
        device = tvm.runtime.device(manifest.device, 0)
        library = loaded_library(folder / LIBRARY, tvm.runtime.load_module)
        with device_failures(manifest.device):
            machine = VirtualMachine(library, device)
            tasks = _tasks_on(device, folder, manifest)
        give_back_freed_memory()
        session = cls(Uploaded(manifest, tasks, device, threads), machine, keep, budget)
        session.switch(session.tasks[0])
        return session

    @property
    def kept_tasks(self) -> list[str]:
        """Names of the tasks whose weights are ready, the current one last."""
        return list(self._kept)

    @property
    def weights_bytes(self) -> int:
        """See `DeviceSession`."""
        return bytes_of(self._weights) if self.manifest.fold == "switch" else 0

    @survives_forks
    def switch(self, task: str) -> float:
        """Makes a task the current one and returns the seconds that it took, until the weights were there.

        Weights that will not be kept are given up before the new ones are made, and these take their memory: never more
        than the weights that are kept are there, and nothing is allocated. A switch that fails leaves the current task
        as it was; the next run makes its weights again if they were given up.

        Raises:
            UserError: there is no such task, or the device fails.
        """
        task_of(self.descriptions, task)
        with self._lock:
            start = time.perf_counter()
            if task == self._task:
                return 0.0
            weights = self._kept.get(task)
            if weights is None:
                self._make_room()
                weights = self._rewrite(task)
            self._task, self._weights = task, weights
            self._hold(task, weights)
            self.switch_seconds = time.perf_counter() - start
            return self.switch_seconds

    @survives_forks
    def run(self, images: npt.NDArray[np.float32], task: str | None = None) -> npt.NDArray[np.float32]:
        """Runs a batch and returns the logits, float32 [N, classes of the task].

        Args:
            images: float32 [N, 3, H, W], preprocessed, of the manifest's `input_shape`.
            task: the task to switch to first, in one step with the run; without it the current one, which another
                thread may have chosen.

        Raises:
            UserError: the images have another shape or dtype or are not finite, there is no such task, or the device
                fails.
        """
        self.check_images(images)
        with self._lock:
            if task is not None:
                self.switch(task)
            entry, weights = self.manifest.tasks[self.task], self._live_weights()
            with self._working():
                logits = self._machine[entry.main](self._images.copyfrom(images), *weights)
                return logits.numpy()[:, : len(self.descriptions[self.task].classes)]

    @survives_forks
    def run_all(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `AnySession`; no other thread switches the task meanwhile."""
        with self._lock:
            return super().run_all(images)

    @survives_forks
    def measure_run(self, repeats: int) -> list[float]:
        """See `DeviceSession`."""
        with self._lock, self._working():
            entry, weights = self.manifest.tasks[self.task], self._live_weights()
            images = self._images.copyfrom(np.zeros(self.manifest.input_shape, np.float32))
            evaluator = self._machine.module.time_evaluator(entry.main, self._device, number=1, repeat=repeats)
            return [float(seconds) for seconds in evaluator(images, *weights).results]

    @survives_forks
    def trace_run(self, instrument: Callable[..., None], images: npt.NDArray[np.float32] | None = None) -> None:
        """See `DeviceSession`."""
        with self._lock, self._working():
            data = self._images.copyfrom(np.zeros(self.manifest.input_shape, np.float32) if images is None else images)
            weights = self._live_weights()
            self._machine.set_instrument(instrument)
            try:
                self._machine[self.manifest.tasks[self.task].main](data, *weights)
                self._device.sync()
            finally:
                self._machine.set_instrument(None)

    def _uploaded(self, array: npt.NDArray[np.generic]) -> Any:
        return tvm.runtime.tensor(array, self._device)

    def _rewrite(self, task: str) -> Tensors:
        entry = self.manifest.tasks[task]
        if entry.rewrite is None:
            return self._uploaded_tasks[task].parameters
        with self._working():
            # A slice of TVM's array is a list, and made five times as fast as by iterating over it.
            weights: Tensors = self._machine[entry.rewrite](self._rewrite_arguments[task])[:]
            self._device.sync()
            return weights

    def _live_weights(self) -> Tensors:
        """The current task's weights; a switch that failed may have given them up."""
        if self.task not in self._kept:
            self._weights = self._rewrite(self.task)
            self._hold(self.task, self._weights)
        return self._weights

    def _make_room(self) -> None:
        """Gives up what will not be kept beside one more set of weights, the one that was used longest ago first."""
        while self._kept and (len(self._kept) >= self._keep or self._over_budget(sets=1)):
            task, _ = self._kept.popitem(last=False)
            if task == self._task:
                self._weights = []

    def _hold(self, task: str, weights: Tensors) -> None:
        self._kept[task] = weights
        self._kept.move_to_end(task)
        while len(self._kept) > 1 and (len(self._kept) > self._keep or self._over_budget()):
            self._kept.popitem(last=False)

    def _over_budget(self, sets: int = 0) -> bool:
        """Whether the weights that are kept, and so many more sets like the current, take more than they may."""
        if self._budget is None:
            return False
        return sum(map(bytes_of, self._kept.values())) + sets * bytes_of(self._weights) > self._budget


def _tasks_on(device: Any, folder: Path, manifest: Manifest) -> dict[str, UploadedTask]:
    backbone, packs = open_bundle(folder)
    return upload_tasks(manifest, backbone.tensors, packs, lambda _, __, array: tvm.runtime.tensor(array, device))


def prepare_device(device: str) -> None:
    """Makes a TVM device ready for use in this process.

    Raises:
        UserError: it is not there, or this process was forked from one that uses it.
    """
    if device != "cpu":
        check_process(_first_used_in(device), f"The device '{device}'")
    if device == "cuda":
        from ksm_hw.runtime.cuda import require_cuda_gpu

        require_cuda_gpu()
    if device == "opencl":
        from ksm_hw.runtime.opencl.load import load_opencl_runtime

        load_opencl_runtime()


@functools.cache
def _first_used_in(device: str) -> int:
    """The process in which a device was made ready first: this one, or one that it was forked from."""
    return os.getpid()
