"""An artifact of Relay, loaded: what `ksm_hw.runtime.session.Session` is for Relax. Runs in Relay's environment."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm.contrib.graph_executor import GraphModule

from ksm_hw.masks.bundle import Bundle, load_bundle, task_of
from ksm_hw.runtime.artifact import Manifest, read_manifest
from ksm_hw.runtime.machine import check_cpu_features
from ksm_hw.runtime.task_parameters import is_shared, task_parameters
from ksm_hw.runtime.threads import pinned, usable_cores, use_threads
from tvm_passes.relay.names import INPUT, weight_name


class RelaySession:
    """An artifact on this machine's CPU, for one thread.

    Attributes:
        manifest: what the artifact is.
        packs: its tasks, by name.
        task: the current one.
    """

    def __init__(self, manifest: Manifest, bundle: Bundle, executors: dict[str, GraphModule], threads: int) -> None:
        self.manifest, self.packs, self._threads = manifest, bundle.packs, threads
        self.task = ""
        self._executors = executors
        self._parameters = self._upload(bundle)

    @classmethod
    def load(cls, folder: Path, threads: int | None = None) -> "RelaySession":
        """Loads an artifact and switches to its first task.

        Raises:
            UserError: as `Session.load`.
        """
        manifest = read_manifest(folder)
        check_cpu_features(manifest.cpu_features, manifest.cpu.get("mcpu", manifest.target))
        threads = threads or min(manifest.cpu.get("num-cores", 1), len(usable_cores(manifest.cores)))
        use_threads(threads, manifest.cores)
        executors = {}
        for name in manifest.libraries:
            library = tvm.runtime.load_module(str((folder / name).absolute()))
            executors[Path(name).stem] = GraphModule(library["default"](tvm.cpu()))
        session = cls(manifest, load_bundle(folder), executors, threads)
        session.switch(next(iter(session.packs)))
        return session

    def _upload(self, bundle: Bundle) -> dict[str, list[Any]]:
        """Each task's parameters as tensors; what tasks share is there once."""
        shared: dict[str, Any] = {}
        uploaded: dict[str, list[Any]] = {}
        for task, entry in self.manifest.tasks.items():
            pack, function = bundle.packs[task], self._executors[entry.rewrite or entry.main]
            arrays = task_parameters(entry.parameters, pack, bundle.tensors, self.manifest.output_shape[1])
            uploaded[task] = []
            for name, array in zip(entry.parameters, filled(function, entry.parameters, arrays), strict=True):
                tensor = shared[name] if name in shared and is_shared(name, pack) else tvm.nd.array(array)
                if is_shared(name, pack):
                    shared[name] = tensor
                uploaded[task].append(tensor)
        return uploaded

    @property
    def weights_bytes(self) -> int:
        """Bytes of the current task's live weights; those of `bake` are inside the library."""
        rewrite = self.manifest.tasks[self.task].rewrite
        return 0 if rewrite is None else _bytes(weights_of(self._executors[rewrite]).values())

    @property
    def parameters_bytes(self) -> int:
        """Bytes of backbone and task packs in memory, each tensor counted once."""
        return _bytes({id(tensor): tensor for tensors in self._parameters.values() for tensor in tensors}.values())

    def switch(self, task: str) -> float:
        """Makes a task the current one and returns the seconds that it took.

        Raises:
            UserError: there is no such task.
        """
        task_of(self.packs, task)
        start = time.perf_counter()
        if task == self.task:
            return 0.0
        entry = self.manifest.tasks[task]
        main = self._executors[entry.main]
        function = main if entry.rewrite is None else self._executors[entry.rewrite]
        for name, tensor in zip(entry.parameters, self._parameters[task], strict=True):
            function.set_input_zero_copy(name, tensor)
        if entry.rewrite is not None:
            self._run(function)
            for name, weight in weights_of(function).items():
                main.set_input_zero_copy(name, weight)
        self.task = task
        return time.perf_counter() - start

    def run(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits of a batch, float32 [N, classes of the task]; the images are of the manifest's `input_shape`."""
        main = self._executors[self.manifest.tasks[self.task].main]
        main.set_input(INPUT, tvm.nd.array(images))
        self._run(main)
        logits: npt.NDArray[np.float32] = main.get_output(0).numpy()
        return logits[:, : len(self.packs[self.task].classes)]

    def measure_run(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` inferences of the current task, on images that stay where they are."""
        main = self._executors[self.manifest.tasks[self.task].main]
        use_threads(self._threads, self.manifest.cores)
        with pinned(self.manifest.cores):
            evaluator = main.module.time_evaluator("run", tvm.cpu(), number=1, repeat=repeats)
            return [float(seconds) for seconds in evaluator().results]

    def measure_copies(self, repeats: int) -> list[float]:
        """Seconds of each of `repeats` copies of as many bytes as the live weights."""
        if not self.weights_bytes:
            return []
        source = np.ones(self.weights_bytes, np.uint8)
        destination = np.zeros_like(source)
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            np.copyto(destination, source)
            seconds.append(time.perf_counter() - start)
        return seconds[1:]  # In the first the system finds pages for the destination.

    def _run(self, function: GraphModule) -> None:
        use_threads(self._threads, self.manifest.cores)
        with pinned(self.manifest.cores):
            function.run()


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
