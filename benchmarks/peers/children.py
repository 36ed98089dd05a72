"""Child processes: each leads a group, so that what it starts in its turn ends with it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from peers.failures import EngineError
from peers.places import BENCHMARKS, PEERS, REPOSITORY


def start_child(command: Sequence[str], variables: Mapping[str, str], **options: Any) -> "subprocess.Popen[Any]":
    """Starts a program that finds this package, with its caches under build/.

    It is out of Ctrl-C's reach: that is for this program, which keeps what was measured and then ends its children.
    """
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    # One thread was for this process alone (peers.py).
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        found.pop(name, None)
    # The ksm-hw that is measured is that of this checkout, whichever is installed.
    path = [*filter(None, [variables.get("PYTHONPATH")]), str(BENCHMARKS), str(REPOSITORY)]
    found |= {"TORCHINDUCTOR_CACHE_DIR": str(PEERS / "inductor")}
    environment = {**found, **variables, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(command, cwd=BENCHMARKS, env=environment, start_new_session=True, **options)


def end_child(process: "subprocess.Popen[Any]") -> None:
    """Ends a child and what it started, if it has not ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run_child(
    command: Sequence[str], path: Path, timeout: float, variables: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, str]:
    """Runs a program with a folder of programs in front of the others, and gives its status and all that it wrote.

    `variables` are those of its environment that differ from this process's.

    Raises:
        EngineError: it takes longer.
    """
    variables = {**variables, "PATH": f"{path}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = start_child(
        command,
        variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"it took more than {timeout:.0f} s") from error
    finally:
        end_child(process)
    return process.returncode, output
