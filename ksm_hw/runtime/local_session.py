"""Opening an artifact's session on this machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ksm_hw.artifact.manifest import read_manifest
from ksm_hw.runtime.remote_session import RemoteSession

if TYPE_CHECKING:
    from ksm_hw.runtime.session import Session


@contextlib.contextmanager
def local_session(artifact: Path, threads: int | None = None) -> "Iterator[Session | RemoteSession]":
    """An artifact's session on this machine; one of Relay's runs in a process of its own.

    Raises:
        UserError: as `Session.load`, or Relay is not installed.
    """
    manifest = read_manifest(artifact)
    if manifest.ir == "relay":
        from ksm_hw.runtime.relay.process import relay_process

        with relay_process(only_runs=True) as process:
            task = process.call("load", str(artifact.absolute()), threads)
            yield RemoteSession(process, artifact, manifest, task)
        return
    from ksm_hw.runtime.session import Session

    yield Session.load(artifact, threads=threads)
