"""The process of an engine: loads a network on the GPU once, then measures it each time that it reads a line.

    python -m cuda_peers.engine ENGINE FOLDER

FOLDER is as `cuda_peers.networks` completes it. It answers with a line of JSON when it has loaded, and with the seconds
of each inference for each line. Images and logits stay on the GPU: what is measured lies between two events of its
stream (of ONNX Runtime, whose stream is its own, between two calls), so it includes the time in which the GPU waits.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.serve import answering, relative_error

from cuda_peers.networks import BUNDLE, IMAGES, LOGITS

Images = npt.NDArray[np.float32]
Measure = Callable[[int], list[float]]
"""Seconds of each of so many inferences."""

WARM_UP_RUNS = 10
FEWEST_RUNS, MOST_RUNS = 10, 300


def load_ksm_hw(folder: Path, images: Images, state: str) -> tuple[Images, Measure]:
    """The logits of a state of ksm-hw, and how its inferences are measured."""
    from ksm_hw.runtime.session import Session

    session = Session.load(folder / state)
    return session.run(images), session.measure_run


def load_torch(folder: Path, images: Images, mode: str) -> tuple[Images, Measure]:
    """As `load_ksm_hw`, of PyTorch: `eager`, or the mode of torch.compile; with ` tf32` behind it where that may be."""
    import torch

    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.models.task_module import task_module

    mode, _, tf32 = mode.partition(" ")
    # PyTorch's own default is TF32 in convolutions, whose products have 10 bits of the mantissa, and not elsewhere.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = bool(tf32)
    bundle = load_bundle(folder / BUNDLE)
    (pack,) = bundle.packs.values()
    module: Callable[[Any], Any] = task_module(bundle, pack).cuda()
    if mode != "eager":
        torch.backends.cudnn.benchmark = True
        module = torch.compile(module, mode=None if mode == "default" else mode)
    data = torch.from_numpy(images).cuda()

    @torch.no_grad()
    def measure(runs: int) -> list[float]:
        # It tries algorithms at the first run of each shape: not while other engines load beside it.
        torch.backends.cudnn.benchmark = True
        seconds = []
        for _ in range(runs):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            module(data)
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1000)
        return seconds

    with torch.no_grad():
        logits: Images = module(data).cpu().numpy()
    return logits, measure


def load_onnxruntime(folder: Path, images: Images, _mode: str) -> tuple[Images, Measure]:
    """As `load_ksm_hw`, of ONNX Runtime with its wheel for CUDA."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this machine has ONNX Runtime's wheel for CPUs; onnxruntime-gpu is not installed")
    import torch

    from ksm_hw.masks.bundle import load_bundle
    from ksm_hw.models.task_module import task_module

    bundle = load_bundle(folder / BUNDLE)
    (pack,) = bundle.packs.values()
    file = folder / "network.onnx"
    torch.onnx.export(task_module(bundle, pack), (torch.from_numpy(images),), file, input_names=["images"])
    # Its own default is TF32.
    session = onnxruntime.InferenceSession(file, providers=[("CUDAExecutionProvider", {"use_tf32": 0})])
    binding = session.io_binding()
    binding.bind_ortvalue_input("images", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda")

    def measure(runs: int) -> list[float]:
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            seconds.append(time.perf_counter() - start)
        return seconds

    measure(1)
    return binding.copy_outputs_to_cpu()[0], measure


LOADERS: dict[str, Callable[[Path, Images, str], tuple[Images, Measure]]] = {
    "ksm-hw": load_ksm_hw,
    "torch": load_torch,
    "onnxruntime": load_onnxruntime,
}


def serve(answer: Callable[..., None]) -> None:
    """Loads the engine of the command line, and measures a turn for each line that comes."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    loader, _, mode = name.partition(" ")
    images, expected = np.load(folder / IMAGES), np.load(folder / LOGITS)
    logits, measure = LOADERS[loader](folder, images, mode)
    answer(error_of_logits=relative_error(logits, expected))
    for line in sys.stdin:
        seconds = json.loads(line)["seconds"]
        first = sorted(measure(WARM_UP_RUNS))[WARM_UP_RUNS // 2]
        answer(seconds=measure(min(max(int(seconds / first), FEWEST_RUNS), MOST_RUNS)))


if __name__ == "__main__":
    answering(serve)
