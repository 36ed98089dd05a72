"""Curves of learning: a line an epoch, which goes on where learning does."""

import sys
from pathlib import Path

import pytest

from ksm_hw.errors import UserError
from ksm_hw.learning.curves import curve, read_curve
from ksm_hw.learning.learn import Epoch


def test_csv_has_a_line_an_epoch_and_begins_anew_with_the_first(tmp_path: Path) -> None:
    for restart in range(2):
        for number in (1, 2):  # Each in a process of its own, as of a run that was stopped.
            curve("csv", tmp_path / "runs", "pets")(Epoch(number, 1.5 + restart, 0.25, 3.0, 0.5))
    assert (tmp_path / "runs" / "pets.csv").read_text().splitlines() == [
        "number,loss,accuracy,validation,seconds,width",
        "1,2.5,0.25,0.5,3.0,1.0",
        "2,2.5,0.25,0.5,3.0,1.0",
    ]


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "pets.csv") == []
    for number in (1, 2):
        curve("csv", tmp_path, "pets")(Epoch(number, 1.5, 0.25 * number, 3.0 * number))
    assert read_curve(tmp_path / "pets.csv") == [(3.0, 0.25), (6.0, 0.5)]
    for damaged in ("number,loss\n1,2\n", "seconds,accuracy\n1,much\n", "seconds,accuracy\n1\n"):
        (tmp_path / "pets.csv").write_text(damaged)
        with pytest.raises(UserError, match=r"pets\.csv is damaged"):
            read_curve(tmp_path / "pets.csv")


def test_a_folder_that_cannot_be_written_and_a_missing_package_are_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        curve("csv", tmp_path / "file", "pets")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"ksm-hw\[tensorboard\]"):
        curve("tensorboard", tmp_path / "runs", "pets")
    curve(None, tmp_path / "file", "pets")(Epoch(1, 0.0, 0.0, 0.0))
