"""A session of an artifact that another process replaces while it is loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ksm_hw.artifact.manifest import MANIFEST, Manifest
from ksm_hw.runtime.local_session import local_session
from ksm_hw.runtime.session import Session


@pytest.mark.parametrize("through", ["local_session", "Session.load"])
def test_it_is_loaded_anew(copied_artifact: Path, monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    opened: list[Manifest] = []
    open_session = Session.open

    def replaced_at_first(folder: Path, manifest: Manifest, **options: Any) -> Session:
        opened.append(manifest)
        if len(opened) == 1:
            newer = Path(shutil.copy(folder / MANIFEST, folder / "newer"))
            newer.replace(folder / MANIFEST)
        return open_session(folder, manifest, **options)

    monkeypatch.setattr(Session, "open", replaced_at_first)
    if through == "Session.load":
        Session.load(copied_artifact)
    else:
        with local_session(copied_artifact):
            pass
    assert len(opened) == 2
