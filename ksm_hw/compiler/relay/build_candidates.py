"""Building the schedules that a tuner tries, in processes that stay alive. Runs in Relay's environment.

TVM's own builders link for this machine alone; MetaSchedule's starts its processes anew for every batch, and does not
see the settings of `build_settings`, without which some operators do not build.
"""

import concurrent.futures
import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm.contrib.popen_pool import PopenPoolExecutor

from ksm_hw.runtime.operator_timing import Tensors
from ksm_hw.toolchains.linker import link_shared_library
from tvm_passes.relay.pipeline import build_settings

SECONDS = 60.0  # That one may take.
_BUILDERS = 2

# What makes a module of a job, in a builder, and says what its function takes.
BuildFunction = Callable[[Any], tuple[tvm.runtime.Module, Tensors]]


@dataclass(frozen=True)
class Built:
    """A candidate's library, and dtype and shape of the arguments of its function; or why there is none."""

    path: Path
    tensors: Tensors = ()
    error: str = ""


class CandidateBuilder:
    """A context: its processes and libraries end with it."""

    def __init__(self, link: Sequence[str]) -> None:
        self._link = link
        self._folder = tempfile.TemporaryDirectory(prefix="ksm-hw-tune-")
        self._numbers = itertools.count()
        # TVM's code generation keeps some memory of every schedule.
        self._pool = PopenPoolExecutor(_BUILDERS, timeout=SECONDS, maximum_process_uses=500)

    def __enter__(self) -> "CandidateBuilder":
        return self

    def __exit__(self, *_: object) -> None:
        del self._pool  # Ends its processes.
        self._folder.cleanup()

    def build(self, function: BuildFunction, jobs: Sequence[Any]) -> list[Built]:
        """Builds candidates."""
        paths = [Path(self._folder.name) / f"candidate{next(self._numbers)}.so" for _ in jobs]
        futures = [
            self._pool.submit(_build, function, job, str(path), self._link)
            for job, path in zip(jobs, paths, strict=True)
        ]
        return [_outcome(path, future) for path, future in zip(paths, futures, strict=True)]


def _outcome(path: Path, future: "concurrent.futures.Future[Tensors]") -> Built:
    try:
        return Built(path, future.result())
    except TimeoutError:
        return Built(path, error=f"to build it took longer than {SECONDS:.0f} s")
    except ChildProcessError:
        return Built(path, error="its builder crashed")
    except Exception as error:
        return Built(path, error=(str(error).strip().splitlines() or [repr(error)])[-1])


def _build(function: BuildFunction, job: Any, path: str, link: Sequence[str]) -> Tensors:
    """Runs in a builder."""

    def link_library(output: str, objects: list[str], **_options: object) -> None:
        link_shared_library(link, output, objects)

    with build_settings("both"):
        module, tensors = function(job)
    module.export_library(path, fcompile=link_library)
    return tensors
