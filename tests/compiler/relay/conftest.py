"""Relay's environment, installed in a folder of the tests' own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.relay import environment


@pytest.fixture(scope="module")
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's folder of data, where nothing is at first."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture
def relay(data_home: Path) -> None:
    """Relay's environment, installed."""
    if not environment.is_installed():
        result = CliRunner().invoke(app, ["relay", "install", "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["environment"].startswith(str(data_home))


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(shipped_bundle())
