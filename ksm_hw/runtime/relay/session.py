"""An artifact of Relay, loaded: what `ksm_hw.runtime.session.Session` is for Relax. Runs in Relay's environment."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm.contrib.graph_executor import GraphModule

from ksm_hw.artifact.manifest import Manifest, read_manifest
from ksm_hw.artifact.parameters import is_shared, task_parameters
from ksm_hw.masks.bundle import Bundle, load_bundle, task_of
from ksm_hw.runtime.device_failures import device_failures
from ksm_hw.runtime.machine import check_cpu_features
from ksm_hw.runtime.relay.opencl.runtime import load_relay_opencl_runtime
from ksm_hw.runtime.threads import pinned, usable_cores, use_threads
from tvm_passes.relay.names import INPUT, weight_name


class RelaySession:
    """An artifact on a device of this machine, for one thread.

    Attributes:
        manifest: what the artifact is.
        packs: its tasks, by name.
        task: the current one.
    """

    def __init__(
        self, manifest: Manifest, bundle: Bundle, executors: dict[str, GraphModule], device: Any, threads: int
    ) -> None:
        self.manifest, self.packs, self._device, self._threads = manifest, bundle.packs, device, threads
        self.task = ""
        self._executors = executors
        self._parameters = self._upload(bundle)
        self._weights: dict[str, Any] = {}  # The current task's, by the names of the parameters of `main`.

    @classmethod
    def load(cls, folder: Path, threads: int | None = None) -> "RelaySession":
        """Loads an artifact and switches to its first task.

        Raises:
            UserError: as `Session.load`.
        """
        manifest = read_manifest(folder)
        check_cpu_features(manifest.cpu_features, manifest.cpu.get("mcpu", manifest.target))
        if manifest.device == "opencl":
            load_relay_opencl_runtime()
        device = tvm.runtime.device(manifest.device, 0)
        threads = threads or min(manifest.cpu.get("num-cores", 1), len(usable_cores(manifest.cores)))
        use_threads(threads, manifest.cores)
        with device_failures(manifest.device):
            executors = {}
            for name in manifest.libraries:
                library = tvm.runtime.load_module(str((folder / name).absolute()))
                executors[Path(name).stem] = GraphModule(library["default"](device))
            session = cls(manifest, load_bundle(folder), executors, device, threads)
        session.switch(next(iter(session.packs)))
        return session

    def _upload(self, bundle: Bundle) -> dict[str, list[Any]]:
        """Each task's parameters on the device; what tasks share is there once."""
        shared: dict[str, Any] = {}
        uploaded: dict[str, list[Any]] = {}
        for task, entry in self.manifest.tasks.items():
            pack, function = bundle.packs[task], self._executors[entry.rewrite or entry.main]
            arrays = task_parameters(entry.parameters, pack, bundle.tensors, self.manifest.output_shape[1])
            uploaded[task] = []
            for name, array in zip(entry.parameters, filled(function, entry.parameters, arrays), strict=True):
                tensor = shared.get(name) if is_shared(name, pack) else None
                if tensor is None:
                    tensor = _shareable(tvm.nd.array(array, self._device))
                    if is_shared(name, pack):
                        shared[name] = tensor
                uploaded[task].append(tensor)
        return uploaded

    @property
    def weights_bytes(self) -> int:
        """Bytes of the current task's live weights; those of `bake` are inside the library."""
        return _bytes(self._weights.values())

    @property
    def parameters_bytes(self) -> int:
        """Bytes of backbone and task packs on the device, each tensor counted once."""
        return _bytes({id(tensor): tensor for tensors in self._parameters.values() for tensor in tensors}.values())

    def switch(self, task: str) -> float:
        """Makes a task the current one and returns the seconds that it took, until the weights were there.

        Raises:
            UserError: there is no such task, or the device fails.
        """
        task_of(self.packs, task)
        start = time.perf_counter()
        if task == self.task:
            return 0.0
        entry = self.manifest.tasks[task]
        main = self._executors[entry.main]
        function = main if entry.rewrite is None else self._executors[entry.rewrite]
        self.task = ""  # A switch that fails leaves weights of no task.
        with self._working():
            for name, tensor in zip(entry.parameters, self._parameters[task], strict=True):
                function.set_input_zero_copy(name, tensor)
            if entry.rewrite is not None:
                function.run()
                # Asked for anew each time: a weight that is a parameter in another shape lies where that does.
                self._weights = {name: _shareable(weight) for name, weight in weights_of(function).items()}
                for name, weight in self._weights.items():
                    main.set_input_zero_copy(name, weight)
                self._device.sync()
        self.task = task
        return time.perf_counter() - start

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits of a batch, float32 [N, classes of the task]; the images are of the manifest's `input_shape`.

        Raises:
            UserError: the device fails, or the last switch did.
        """
        pack = task_of(self.packs, self.task)
        main = self._executors[self.manifest.tasks[self.task].main]
        with self._working():
            main.set_input(INPUT, tvm.nd.array(images))
            main.run()
            logits: npt.NDArray[np.float32] = main.get_output(0).numpy()
        return logits[:, : len(pack.classes)]

    def measure_run(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` inferences of the current task, on images that stay where they are."""
        main = self._executors[self.manifest.tasks[self.task].main]
        with self._working():
            return [self._seconds(main.run) for _ in range(repeats)]

    def measure_copies(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` copies of as many bytes as the live weights, inside the device's memory."""
        if not self.weights_bytes:
            return []
        # The source must be written to: memory that never was is one page of zeros, which stays in the cache.
        source = tvm.nd.array(np.ones(self.weights_bytes, np.uint8), self._device)
        destination = tvm.nd.empty(source.shape, source.dtype, self._device)
        seconds = [self._seconds(lambda: source.copyto(destination)) for _ in range(repeats + 1)]
        return seconds[1:]  # In the first the system finds pages for the destination.

    def _seconds(self, function: Callable[[], object]) -> float:
        """How long a call takes, until the device has done it.

        TVM's evaluator adds up the times of the kernels where the device is a GPU, without the gaps between them.
        """
        start = time.perf_counter()
        function()
        self._device.sync()
        return time.perf_counter() - start

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Around every call of the executors: whichever thread calls, it has the session's threads and cores."""
        use_threads(self._threads, self.manifest.cores)
        with pinned(self.manifest.cores), device_failures(self.manifest.device):
            yield


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


def filled(
    function: GraphModule, names: Sequence[str], arrays: Sequence[npt.NDArray[np.generic]]
) -> list[npt.NDArray[np.generic]]:
    """A task's parameters, with zeros behind the soft values of a task that has fewer than others."""
    return [
        np.pad(array, (0, function.get_input(name).shape[0] - len(array))) if name.endswith("/scale") else array
        for name, array in zip(names, arrays, strict=True)
    ]


def _bytes(tensors: Any) -> int:
    return sum(int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize for tensor in tensors)
