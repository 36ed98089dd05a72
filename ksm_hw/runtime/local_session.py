"""Opening an artifact's session on this machine."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ksm_hw.artifact.manifest import MANIFEST, Manifest, read_manifest
from ksm_hw.files.staging import read_whole
from ksm_hw.runtime.any_session import AnySession

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def local_session(artifact: Path, threads: int | None = None) -> Iterator[AnySession]:
    """An artifact's session on this machine; one of Relay's runs in a process of its own.

    Raises:
        UserError: as `Session.load`, or Relay is not installed.
    """
    manifest, session = read_whole(artifact, MANIFEST, lambda: _opened(artifact, threads))
    if session is not None:
        yield session
        return
    with _relay_session(artifact, manifest, threads) as session:
        yield session


def _opened(artifact: Path, threads: int | None) -> tuple[Manifest, AnySession | None]:
    """The manifest and the session; no session where that is one of Relay's."""
    manifest = read_manifest(artifact)
    _log.info("%s: %s by %s of TVM %s", artifact, manifest.target, manifest.ir, manifest.tvm_version)
    if manifest.ir == "relay":
        return manifest, None
    from ksm_hw.runtime.session import Session

    return manifest, Session.open(artifact, manifest, threads=threads)


@contextlib.contextmanager
def _relay_session(artifact: Path, manifest: Manifest, threads: int | None) -> Iterator[AnySession]:
    from ksm_hw.masks.bundle import describe_tasks
    from ksm_hw.runtime.relay.process import relay_process
    from ksm_hw.runtime.remote_session import RemoteSession

    with relay_process() as process:
        task = process.call("load", str(artifact.absolute()), threads)
        yield RemoteSession(process, manifest, describe_tasks(artifact), task)
