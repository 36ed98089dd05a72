"""The set that compiled tasks are tested on: a few of its images, or all."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.learning.datasets import SetMissing
from ksm_hw.report.accuracy import find_test_set
from ksm_hw.resources import shipped_bundle


def test_all_test_images_of_a_set_are_found_where_they_are_asked_for() -> None:
    try:
        few = find_test_set("fashion-mnist", [shipped_bundle()])
    except SetMissing as error:
        pytest.skip(str(error))
    every = find_test_set("fashion-mnist", [shipped_bundle()], whole=True)
    assert (len(few.test), len(every.test)) == (600, 10_000)
    assert every.classes == few.classes


@pytest.mark.parametrize("command", ["verify", "report"])
def test_all_images_without_a_set_is_refused_before_the_work(command: str, artifact: Path) -> None:
    with pytest.raises(UserError, match="--data"):
        CliRunner().invoke(app, [command, str(artifact), "--all-images"], catch_exceptions=False)
