"""The process in Relay's environment: answers the commands of `process.py`, one after the other."""

import os
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from ksm_hw.compiler.compiled import FoldMode
from ksm_hw.compiler.tuning.progress import TunerName
from ksm_hw.errors import UserError
from ksm_hw.runtime.relay.process import read_message, write_message


class _Served:
    """The commands, and the session that they made."""

    def __init__(self, answers: IO[bytes]) -> None:
        self.answers = answers
        self.session: Any = None

    def version(self) -> str:
        import tvm

        return str(tvm.__version__)

    def compile(
        self,
        bundle: str,
        output: str,
        target: dict[str, Any],
        link: list[str],
        fold: FoldMode,
        batch: int,
        tuned: tuple[TunerName, str] | None,
    ) -> list[dict[str, Any]]:
        from ksm_hw.compiler.relay.compile_tasks import compile_tasks
        from ksm_hw.masks.bundle import load_bundle

        return compile_tasks(load_bundle(Path(bundle)), Path(output), target, link, fold, batch, tuned, self._step)

    def tune(
        self,
        bundle: str,
        records: str,
        tuner: TunerName,
        target: dict[str, Any],
        link: list[str],
        batch: int,
        trials: int,
    ) -> dict[str, Any]:
        from ksm_hw.compiler.relay.tune_operators import tune_operators
        from ksm_hw.masks.bundle import load_bundle

        loaded, folder = load_bundle(Path(bundle)), Path(records)
        return tune_operators(loaded, folder, tuner, target, link, batch, trials, self._measure, self._progress)

    def time(
        self, library: str, tensors: list[tuple[str, list[int]]], limit: float, threads: int, cores: list[int]
    ) -> dict[str, Any]:
        from ksm_hw.runtime.without_torch import hide_torch

        hide_torch()
        from ksm_hw.runtime.relay.time_library import time_library

        return time_library(library, tensors, limit, threads, cores)

    def load(self, artifact: str, threads: int | None) -> str:
        from ksm_hw.runtime.without_torch import hide_torch

        hide_torch()
        from ksm_hw.runtime.relay.session import RelaySession

        self.session = RelaySession.load(Path(artifact), threads=threads)
        return str(self.session.task)

    def switch(self, task: str) -> float:
        return float(self.session.switch(task))

    def run(self, images: bytes, shape: list[int]) -> np.ndarray:
        logits: np.ndarray = self.session.run(np.frombuffer(images, np.float32).reshape(shape))
        return logits

    def _step(self, step: str) -> None:
        write_message(self.answers, {"step": step})

    def _progress(self, progress: dict[str, Any]) -> None:
        write_message(self.answers, {"progress": progress})

    def _measure(self, library: dict[str, Any]) -> dict[str, Any]:
        write_message(self.answers, {"measure": library})
        message = read_message(sys.stdin.buffer)
        if message is None:
            raise SystemExit  # Who asked for the tune is gone.
        reply: dict[str, Any] = message[0]["reply"]
        return reply

    def answer(self, command: str, arguments: list[Any], behind: bytes) -> None:
        """Does what a request says and writes what came of it."""
        try:
            if command == "run":
                logits = self.run(behind, *arguments)
                write_message(self.answers, {"result": logits.shape}, logits)
            else:
                write_message(self.answers, {"result": getattr(self, command)(*arguments)})
        except UserError as error:
            write_message(self.answers, {"error": str(error)})


def _serve() -> None:
    sys.setrecursionlimit(100_000)  # Relay's mutators go down a network by recursion.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What libraries print goes to the errors and not between the answers.
    served = _Served(answers)
    while (message := read_message(sys.stdin.buffer)) is not None:
        content, behind = message
        served.answer(content["command"], content["arguments"], behind)


if __name__ == "__main__":
    _serve()
