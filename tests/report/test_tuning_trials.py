"""A sweep of tunes: what each command is, what is kept, and what is wrong before any begins."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.report.tuning_trials import TuningTrial, tune_all, tuning_table

# What stands for Python with `ksm-hw tune`: notes what it is given, and fails for a target.
TUNER = """#!/bin/sh
echo "$@" >> {folder}/began
case "$*" in *rpi4*) echo "no board" >&2; exit 2;; esac
echo '{"operators": 3, "trials": 40, "failed": 1, "latency": 0.002, "default_latency": 0.0025}'
"""


@pytest.fixture
def began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "tuner"
    script.write_text(TUNER.replace("{folder}", str(tmp_path)))
    script.chmod(0o755)
    monkeypatch.setattr("ksm_hw.report.trials.sys.executable", str(script))
    return tmp_path / "began"


def test_what_a_target_gave_is_kept_and_one_that_fails_costs_itself(tmp_path: Path, began: Path) -> None:
    trials = [TuningTrial("all", "host"), TuningTrial("all", "rpi4"), TuningTrial("all", "rk3588")]
    with pytest.raises(UserError, match=r"all was not tuned for rpi4; the reason is in .*rpi4\+all\.log"):
        tune_all(trials, tmp_path, lambda trial: ["--key", trial.target], 2)
    (one,) = (line for line in began.read_text().splitlines() if "host" in line)
    records = tmp_path / "records" / "host+all"
    assert one == f"-m ksm_hw.cli tune --target host --task all -o {records} --json --key host"
    before = began.read_text()
    found = tune_all([trials[0], trials[2]], tmp_path, lambda trial: ["--key", trial.target])
    assert began.read_text() == before and [each.target for each in found] == ["host", "rk3588"]
    table = tuning_table(found)
    assert table.rows[0][:6] == ("host, all", "3", "40", "1", "2.50", "2.00")
    with pytest.raises(UserError, match="was made with --key host, not --key other"):
        tune_all(trials[:1], tmp_path, lambda trial: ["--key", "other"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sweep", "--targets", "host,nowhere"], "`tune` and `targets show` take one of your own by --target-file"),
        (["sweep", "--targets", "host", "--tasks", "glyphs,glyfs"], "No task named 'glyfs'. Did you mean 'glyphs'?"),
        (["sweep", "--targets", "host,rpi4", "--tracker", "desk"], "'desk' is no address. Give HOST:PORT"),
        (["tune", "--target", "host", "--task", "glyfs"], "No task named 'glyfs'. Did you mean 'glyphs'?"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_tuned(
    options: list[str], message: str, tmp_path: Path, began: Path
) -> None:
    result = CliRunner().invoke(app, [*options, "-o", str(tmp_path / "swept")])
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not began.exists() and not (tmp_path / "swept").exists()


def test_records_are_told_where_the_folder_is_now(tmp_path: Path, began: Path) -> None:
    trials = [TuningTrial("all", "host")]
    tune_all(trials, tmp_path / "swept", lambda trial: [])
    (tmp_path / "swept").rename(tmp_path / "moved")
    (found,) = tune_all(trials, tmp_path / "moved", lambda trial: [])
    assert found.records == str(tmp_path / "moved" / "records" / "host+all")


@pytest.mark.slow  # Processes that import TVM, and compile candidates.
def test_records_of_a_sweep_are_used(bundle_folder: Path, tmp_path: Path) -> None:
    options = ["--targets", "host", "--tasks", "kernel-task", "--bundle", str(bundle_folder), "--trials", "8"]
    done = CliRunner().invoke(app, ["sweep", *options, "-o", str(tmp_path), "--json"], catch_exceptions=False)
    (found,) = json.loads(done.stdout)
    assert found["trials"] == 8 and found["failed"] == 0
    used = ["--target", "host", "--task", "kernel-task", "--bundle", str(bundle_folder), "--tuned", found["records"]]
    compiled = CliRunner().invoke(app, ["compile", *used, "-o", str(tmp_path / "artifact")], catch_exceptions=False)
    assert compiled.exit_code == 0, compiled.output
