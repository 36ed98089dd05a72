"""Trials on the machines of a Ray cluster, where ksm-hw is installed and which all see the folder of the comparison.

Ray says where a trial runs, one a core or, where there are GPUs, one a GPU; there it is a process as on one machine.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.report.trials import Processes, Ran, Trial

_SECONDS = 5.0  # That a cluster may take to answer.


class Cluster:
    """As `trials.Runner`, of a cluster that this process is connected to.

    Attributes:
        cores: how many there are.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        gpus = ray.cluster_resources().get("GPU", 0)
        # A trial that Ray began again would find the bundle that it had begun to change.
        self._run = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_retries=0)(_run_there)
        self._running: set[Any] = set()

    def run(self, command: Sequence[str], log: Path, trial: Trial) -> Ran:
        """As `trials.Runner`."""
        errors = self._ray.exceptions
        reference = self._run.options(name=trial.name).remote(list(command), log, trial)
        self._running.add(reference)
        try:
            ran: Ran = self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise trial.failure(f"on the cluster: {error.cause}") from error
        except errors.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            raise trial.failure(f"what ran it on the cluster ended ({reason})") from error
        finally:
            self._running.discard(reference)
        return ran

    def stop(self) -> None:
        """Ends what runs there: whole epochs are kept."""
        for reference in list(self._running):
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(reference, force=True)


def _run_there(command: Sequence[str], log: Path, trial: Trial) -> Ran:
    """Runs on a machine of the cluster."""
    if not log.parent.is_dir():
        raise UserError(
            f"{socket.gethostname()}, a machine of the cluster, has no folder {log.parent}. All of its machines must "
            "see the comparison's: give an -o FOLDER on a file system that they share."
        )
    return Processes(1).run(command, log, trial)


@contextlib.contextmanager
def connected_cluster(address: str) -> Iterator[Cluster]:
    """Connects this process to a cluster.

    Args:
        address: HOST:PORT of its head, or `auto` for the one that this machine is part of.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or it is of another version.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--cluster needs Ray, which is not installed. Install it: pip install 'ksm-hw[cluster]'."
        ) from error
    _check_address(address)
    try:
        # What the trials say goes into their files.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise _nothing_there(address, reason) from error
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself would try for a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--cluster {address} is no address. Give HOST:PORT of the cluster's head, or auto.")
    try:
        socket.create_connection((host, int(port)), _SECONDS).close()
    except OSError as error:
        raise _nothing_there(address, os.strerror(error.errno) if error.errno else str(error)) from error


def _nothing_there(address: str, reason: str) -> UserError:
    return UserError(
        f"There is no Ray cluster at {address} ({reason}). `ray start --head` starts one, and says its address; or "
        "leave out --cluster."
    )
