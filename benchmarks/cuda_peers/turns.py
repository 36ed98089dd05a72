"""Every engine in a process of its own on one GPU: all load at once, then they take turns."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from peers.children import end_child
from peers.engine_process import EngineProcess
from peers.failures import EngineError

from ksm_hw.report.timing import timing_of

# By their titles, what `engine.py` calls them. States of ksm-hw come to these.
PEERS: Mapping[str, str] = {
    "PyTorch eager": "torch eager",
    "PyTorch eager, TF32": "torch eager tf32",
    "torch.compile, reduce-overhead": "torch reduce-overhead",
    "torch.compile, reduce-overhead, TF32": "torch reduce-overhead tf32",
    "torch.compile, max-autotune": "torch max-autotune",
    "ONNX Runtime, CUDA": "onnxruntime",
}
SECONDS_A_TURN = 0.1


@dataclass
class Engine:
    """An engine that measures one network.

    Attributes:
        title: for tables; `name` what `engine.py` calls it.
        network: name and batch, such as `resnet50-1`.
        error_of_logits: the largest difference from PyTorch's on the CPU, by the largest logit; None until it is known.
        rounds: seconds of each inference of each turn.
        failure: why it was not measured.
    """

    title: str
    name: str
    network: str
    error_of_logits: float | None = None
    rounds: list[list[float]] = field(default_factory=list)
    failure: str | None = None

    def summary(self) -> dict[str, Any]:
        """As plain data."""
        timing = timing_of(self.rounds) if self.rounds else None
        return {
            "engine": self.title,
            "network": self.network,
            "error_of_logits": self.error_of_logits,
            "failure": self.failure,
            "median_ms": timing and round(timing.median_seconds * 1e3, 4),
            "round_medians_ms": timing and [round(seconds * 1e3, 4) for seconds in timing.round_medians_seconds],
            "noisy": timing and timing.noisy,
        }


def measure(
    folder: Path,
    networks: Sequence[str],
    names: Mapping[str, str],
    rounds: int,
    seconds: float,
    environment: Mapping[str, str],
) -> list[Engine]:
    """Measures engines on networks.

    Args:
        folder: FOLDER/NETWORK is as `cuda_peers.networks` completes it.
        networks: such as `resnet50-1`.
        names: of engines for `engine.py`, by their titles.
        rounds: turns of each engine.
        seconds: in which all must have loaded; who has not by then, has failed.
        environment: of the processes.
    """
    engines = [Engine(title, name, network) for network in networks for title, name in names.items()]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(_child(engine, folder, environment)) for engine in engines]
        deadline = time.monotonic() + seconds
        loaded = []
        for engine, (process, errors) in zip(engines, children, strict=True):
            with _failing(engine):
                loading = EngineProcess(process, errors, max(0.1, deadline - time.monotonic()))
                engine.error_of_logits = loading.facts["error_of_logits"]
                loaded.append((engine, loading))
        for _ in range(rounds):
            for engine, loading in loaded:
                if engine.failure is None:
                    with _failing(engine):
                        engine.rounds.append(loading.ask(seconds=SECONDS_A_TURN)["seconds"])
    return engines


@contextlib.contextmanager
def _failing(engine: Engine) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        engine.failure = str(error)


@contextlib.contextmanager
def _child(
    engine: Engine, folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple["subprocess.Popen[bytes]", IO[str]]]:
    command = [sys.executable, "-m", "cuda_peers.engine", engine.name, str(folder / engine.network)]
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
        try:
            yield process, errors
        finally:
            end_child(process)
