"""An artifact of Relay, loaded: what `ksm_hw.runtime.session.Session` is for Relax. Runs in Relay's environment."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm.contrib.graph_executor import GraphModule

from ksm_hw.artifact.manifest import MANIFEST, TaskEntry, read_manifest
from ksm_hw.artifact.parameters import mask_part_of
from ksm_hw.files.staging import read_whole
from ksm_hw.masks.bundle import open_bundle, task_of
from ksm_hw.runtime.device_session import (
    DeviceSession,
    Uploaded,
    bytes_of,
    device_failures,
    start_threads,
    upload_tasks,
)
from ksm_hw.runtime.library import check_machine, loaded_library
from ksm_hw.runtime.machine import check_cpu_features
from ksm_hw.runtime.relay.opencl.runtime import load_relay_opencl_runtime
from tvm_passes.relay.names import INPUT, weight_name


class RelaySession(DeviceSession):
    """An artifact on a device of this machine, for one thread."""

    def __init__(self, uploaded: Uploaded, executors: dict[str, GraphModule]) -> None:
        super().__init__(uploaded)
        self._executors = executors
        self._weights: dict[str, Any] = {}  # The current task's, by the names of the parameters of `main`.

    @classmethod
    def load(cls, folder: Path, threads: int | None = None) -> "RelaySession":
        """Loads an artifact and switches to its first task.

        Raises:
            UserError: as `Session.load`.
        """
        return read_whole(folder, MANIFEST, lambda: cls._load(folder, threads))

    @classmethod
    def _load(cls, folder: Path, threads: int | None) -> "RelaySession":
        manifest = read_manifest(folder)
        for name in manifest.libraries:
            check_machine(folder / name)
        check_cpu_features(manifest.cpu_features, manifest.cpu.get("mcpu", manifest.target))
        if manifest.device == "opencl":
            load_relay_opencl_runtime()
        backbone, packs = open_bundle(folder)
        threads = start_threads(manifest, threads)
        device = tvm.runtime.device(manifest.device, 0)
        with device_failures(manifest.device):
            executors = {}
            for name in manifest.libraries:
                library = loaded_library(folder / name, tvm.runtime.load_module)
                executors[Path(name).stem] = GraphModule(library["default"](device))

            def upload(entry: TaskEntry, name: str, array: npt.NDArray[np.generic]) -> Any:
                array = filled(executors[entry.rewrite or entry.main], name, array)
                return _shareable(tvm.nd.array(array, device))

            tasks = upload_tasks(manifest, backbone.tensors, packs, upload)
        session = cls(Uploaded(manifest, tasks, device, threads), executors)
        session.switch(session.tasks[0])
        return session

    @property
    def weights_bytes(self) -> int:
        """See `DeviceSession`."""
        return bytes_of(self._weights.values())

    def switch(self, task: str) -> float:
        """See `AnySession`; after one that failed there is no current task."""
        task_of(self.descriptions, task)
        start = time.perf_counter()
        if task == self._task:
            return 0.0
        entry = self.manifest.tasks[task]
        main = self._executors[entry.main]
        function = main if entry.rewrite is None else self._executors[entry.rewrite]
        self._task = ""  # A switch that fails leaves weights of no task.
        with self._working():
            for name, tensor in zip(entry.parameters, self._uploaded_tasks[task].parameters, strict=True):
                function.set_input_zero_copy(name, tensor)
            if entry.rewrite is not None:
                function.run()
                # Asked for anew each time: a weight that is a parameter in another shape lies where that does.
                self._weights = {name: _shareable(weight) for name, weight in weights_of(function).items()}
                for name, weight in self._weights.items():
                    main.set_input_zero_copy(name, weight)
                self._device.sync()
        self._task = task
        return time.perf_counter() - start

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `AnySession`.

        Raises:
            UserError: the device fails, or the last switch did.
        """
        description = task_of(self.descriptions, self.task)
        main = self._executors[self.manifest.tasks[self.task].main]
        with self._working():
            main.set_input(INPUT, tvm.nd.array(images))
            main.run()
            logits: npt.NDArray[np.float32] = main.get_output(0).numpy()
        return logits[:, : len(description.classes)]

    def measure_run(self, repeats: int) -> list[float]:
        """See `DeviceSession`.

        TVM's evaluator adds up the times of the kernels where the device is a GPU, without the gaps between them.
        """
        main = self._executors[self.manifest.tasks[self.task].main]
        with self._working():
            return [self._seconds(main.run) for _ in range(repeats)]

    def _uploaded(self, array: npt.NDArray[np.generic]) -> Any:
        return tvm.nd.array(array, self._device)


def _shareable(tensor: Any) -> Any:
    """The same memory, as a tensor that an executor takes without a copy: on OpenCL TVM asks too much of others."""
    return (
        tensor
        if tensor.device.device_type == tvm.cpu().device_type
        else tvm.get_global_func("ksm_hw.opencl.aligned")(tensor)
    )


def weights_of(rewrite: GraphModule) -> dict[str, Any]:
    """What a rewriting function gave last: tensors that it owns, by the names of the parameters of `main`."""
    return {weight_name(number): rewrite.get_output(number) for number in range(rewrite.get_num_outputs())}


def filled(function: GraphModule, name: str, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A task's parameter, with zeros behind the soft values of a task that has fewer than others."""
    masked = mask_part_of(name)
    if masked is None or masked[1] != "scale":
        return array
    return np.pad(array, (0, function.get_input(name).shape[0] - len(array)))
