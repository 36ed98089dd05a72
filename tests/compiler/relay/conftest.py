"""Relay's environment, installed by its command in a folder of the tests' own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from once_for_all_workers import folder_of_the_run
from random_tasks import save_three_tasks
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.resources import shipped_bundle


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Relay's environment; the first test that asks for it installs it, for those in other processes too."""
    data = folder_of_the_run(tmp_path_factory) / "data-with-relay"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(data))
        result = CliRunner().invoke(app, ["relay", "install", "--json"])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["environment"].startswith(str(data))
        yield


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Three random tasks over ResNet-18, which has few kernels: of Relay each takes a second. Read only."""
    folder = tmp_path_factory.mktemp("resnet")
    save_three_tasks("resnet18", photographs, folder)
    return folder


@pytest.fixture(scope="session")
def resnet(resnet_folder: Path) -> Bundle:
    """The bundle of `resnet_folder`, loaded."""
    return load_bundle(resnet_folder)


@pytest.fixture
def no_relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's folder of data where nothing is."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return load_bundle(shipped_bundle())
