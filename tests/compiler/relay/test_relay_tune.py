"""Tuning through Relay: both searches, on this machine and on the emulated arm64 board; and what can go wrong."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import board_processes
import pytest
from board_processes import needs_emulated_board
from pytest_of_relay import assert_passes_in_relay
from typer.testing import CliRunner

from ksm_hw.boards.address import BoardAddress
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.relay.tune import tune_through_relay
from ksm_hw.compiler.tuning.progress import TuneProgress, TuneResult, TunerName
from ksm_hw.compiler.tuning.records_folder import read_header
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.measuring.relay_library import LibraryTimer
from ksm_hw.report.verify import verify
from ksm_hw.toolchains.targets import load_target

pytestmark = pytest.mark.usefixtures("relay")

RECORDS: dict[TunerName, str] = {"autotvm": "autotvm.log", "metaschedule": "database_tuning_record.json"}


@dataclasses.dataclass(frozen=True)
class Tuned:
    folder: Path
    result: TuneResult
    progress: list[TuneProgress]


def only(bundle: Bundle, task: str) -> Bundle:
    return dataclasses.replace(bundle, packs={task: bundle.packs[task]})


def lines_of(folder: Path, tuner: TunerName) -> list[str]:
    path = folder / RECORDS[tuner]
    return path.read_text().splitlines() if path.exists() else []


def assert_applied_and_right(
    bundle: Bundle, target: str, tuned: Path, artifact: Path, board: BoardAddress | None = None
) -> int:
    """Compiles every task of a bundle with records, checks its logits; how many operators got a schedule."""
    steps: list[str] = []
    (folder,) = compile_bundle(bundle, load_target(target), artifact, ir="relay", tuned=tuned, on_step=steps.append)
    results = verify(folder, board=board)
    assert {result.task for result in results} == set(bundle.packs)
    assert all(result.passed for result in results), results
    (applied,) = (int(found[1]) for step in steps if (found := re.match(r"(\d+) operators with tuned", step)))
    return applied


@pytest.fixture(scope="module")
def tuned(relay: None, resnet: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A tune of one of the tasks on this machine with AutoTVM; read only."""
    folder = tmp_path_factory.mktemp("tuned") / "records"
    progress: list[TuneProgress] = []
    result = tune_through_relay(
        only(resnet, "kernel-task"),
        load_target("host"),
        folder,
        tuner="autotvm",
        trials=20,
        on_progress=progress.append,
    )
    return Tuned(folder, result, progress)


def test_all_trials_are_measured_and_the_progress_tells_of_each(tuned: Tuned) -> None:
    assert (tuned.result.trials, tuned.result.measured, tuned.result.failed) == (20, 20, 0)
    assert [(step.done, step.total, step.failed, step.error) for step in tuned.progress] == [
        (done, 20, 0, "") for done in range(1, 21)
    ]
    latencies = [step.latency for step in tuned.progress if step.latency is not None]
    assert latencies == sorted(latencies, reverse=True) and latencies[-1] == tuned.result.latency
    # Each operator is tried once before one is tried again; two are templates of the same dense layer.
    assert len({line.split('"config"')[0] for line in lines_of(tuned.folder, "autotvm")}) == tuned.result.operators
    header = read_header(tuned.folder)
    assert (header["ir"], header["tuner"], header["tvm_version"]) == ("relay", "autotvm", "0.19.0")


@pytest.mark.slow
def test_the_command_goes_on_and_measures_nothing_again(resnet: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned.folder, tmp_path / "tuned")
    result = tune_through_relay(
        # Another task of the backbone has the same operators.
        only(resnet, "other-task"),
        load_target("host"),
        folder,
        tuner="autotvm",
        trials=22,
    )
    assert (result.trials, result.measured) == (22, 2)
    configurations = [json.loads(line)["config"]["index"] for line in lines_of(folder, "autotvm")]
    inputs = [json.dumps(json.loads(line)["input"]) for line in lines_of(folder, "autotvm")]
    assert len(set(zip(inputs, configurations, strict=True))) == 22


@pytest.mark.slow
def test_records_of_one_task_serve_another(resnet: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    another = only(resnet, "element-task")
    # The head has another number of outputs; all the rest is the same.
    assert assert_applied_and_right(another, "host", tuned.folder, tmp_path / "artifact") >= tuned.result.operators - 2


def test_records_that_do_not_fit_are_refused(resnet: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    one = only(resnet, "kernel-task")

    def refused(folder: Path, message: str, target: str = "host", ir: str = "relay") -> None:
        with pytest.raises(UserError, match=message):
            compile_bundle(one, load_target(target), tmp_path / "artifact", ir=ir, tuned=folder)
        assert not (tmp_path / "artifact").exists()

    refused(tmp_path / "nothing", "No tuning records at")
    refused(tuned.folder, "was tuned for target 'host'.*'rpi4' is", target="rpi4")
    refused(tuned.folder, "was tuned with --ir relay", ir="relax")
    with pytest.raises(UserError, match="was tuned with --tuner autotvm"):
        tune_through_relay(one, load_target("host"), tuned.folder, tuner="metaschedule", trials=1)
    folder = shutil.copytree(tuned.folder, tmp_path / "tuned")
    header, log = read_header(folder), folder / RECORDS["autotvm"]

    (folder / "records.json").write_text(json.dumps({**header, "ir": "relax"}))
    refused(folder, "was tuned with --ir relax")
    (folder / "records.json").write_text(json.dumps({**header, "tvm_version": "0.1"}))
    refused(folder, "was tuned with TVM 0.1")
    (folder / "records.json").write_text(json.dumps(header))
    lines = lines_of(folder, "autotvm")
    log.write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    refused(folder, "are damaged")
    # A failed measurement is no schedule.
    failed = [{**json.loads(line), "result": [[1e9], 4, 0.0, 0.0]} for line in lines]
    log.write_text("".join(json.dumps(line) + "\n" for line in failed))
    refused(folder, "records hold none of any operator")


@pytest.mark.slow
def test_all_failed_is_an_error_that_quotes_the_message(resnet: Bundle, tmp_path: Path) -> None:
    """What is built for arm64 does not load here."""
    progress: list[TuneProgress] = []
    with pytest.raises(UserError, match=r"All 3 trials failed.*candidate\d+\.so: cannot open shared object"):
        tune_through_relay(
            only(resnet, "kernel-task"),
            load_target("arm64"),
            tmp_path / "tuned",
            tuner="autotvm",
            trials=3,
            on_progress=progress.append,
        )
    assert [(step.done, step.failed) for step in progress] == [(1, 1), (2, 2), (3, 3)]
    # Nothing was learned of the schedules, so the next try measures them again.
    assert not lines_of(tmp_path / "tuned", "autotvm")


def test_a_library_that_crashes_costs_its_process_only(tmp_path: Path) -> None:
    source = tmp_path / "crash.c"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void crash(void) { abort(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "crash.so", source], check=True)
    tensors = [("float32", [1])] * 2
    with LibraryTimer() as timer:
        crashed = timer.time(tmp_path / "crash.so", tensors, 1.0, 1, [])
        assert "SIGABRT" in crashed["error"]
        missing = timer.time(tmp_path / "missing.so", tensors, 1.0, 1, [])
        assert "cannot find file" in missing["error"]


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_keeps_what_was_measured(resnet_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    options = ["--ir", "relay", "--target", "host", "--bundle", resnet_folder, "--trials", "1000", "-o", folder]
    # A process group of its own, as a terminal's Ctrl-C goes to all of a group.
    process = subprocess.Popen(
        [sys.executable, "-m", "ksm_hw.cli", "tune", *options],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not lines_of(folder, "autotvm"):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and "give the same command to go on" in messages
    assert read_header(folder)["tuner"] == "autotvm" and all(map(json.loads, lines_of(folder, "autotvm")))


@pytest.mark.slow
def test_metaschedule_on_this_machine(resnet: Bundle, tmp_path: Path) -> None:
    """A stop in between; then every operator has a schedule."""
    one, folder = only(resnet, "kernel-task"), tmp_path / "tuned"
    for trials in (6, 24):
        result = tune_through_relay(one, load_target("host"), folder, tuner="metaschedule", trials=trials)
        assert (result.trials, result.failed) == (trials, 0)
    assert result.measured == 18
    lines = lines_of(folder, "metaschedule")
    assert len(lines) == 24 == len({json.dumps([json.loads(line)[0], json.loads(line)[1][0]]) for line in lines})
    assert assert_applied_and_right(resnet, "host", folder, tmp_path / "artifact") >= result.operators - 2
    # A failed measurement looks like a success but for its seconds.
    failed = [json.loads(line) for line in lines]
    for line in failed:
        line[1][1] = [1e10]
    (folder / RECORDS["metaschedule"]).write_text("".join(json.dumps(line) + "\n" for line in failed))
    with pytest.raises(UserError, match="records hold none of any operator"):
        compile_bundle(resnet, load_target("host"), tmp_path / "other", ir="relay", tuned=folder)


@needs_emulated_board
@pytest.mark.slow
@pytest.mark.parametrize("tuner", get_args(TunerName))
def test_tune_on_the_emulated_board(tuner: TunerName, resnet: Bundle, tmp_path: Path) -> None:
    with (
        board_processes.tracker(tmp_path) as tracker,
        board_processes.board(tracker, "rpi4", tmp_path, environment={"QEMU_CPU": "cortex-a72"}),
    ):
        board = BoardAddress(tracker=tracker, key="rpi4")
        result = tune_through_relay(
            only(resnet, "kernel-task"), load_target("rpi4"), tmp_path / "tuned", tuner=tuner, trials=20, board=board
        )
        assert (result.trials, result.measured, result.failed) == (20, 20, 0)
        assert assert_applied_and_right(resnet, "rpi4", tmp_path / "tuned", tmp_path / "artifact", board) > 0


@pytest.mark.slow
def test_a_board_that_goes_costs_nothing_measured(resnet: Bundle, tmp_path: Path) -> None:
    """Over the real tracker, with this machine as the board."""
    folder, small = tmp_path / "tuned", only(resnet, "kernel-task")
    with (
        board_processes.tracker(tmp_path) as tracker,
        board_processes.board(tracker, "here", tmp_path, emulated=False) as process,
    ):

        def kill(progress: TuneProgress) -> None:
            if progress.done == 4:
                board_processes.end_group(process)

        address = BoardAddress(tracker=tracker, key="here")
        with pytest.raises(UserError, match=r"Board 'here' at tracker .* is gone"):
            tune_through_relay(
                small, load_target("host"), folder, tuner="autotvm", trials=18, board=address, on_progress=kill
            )
    assert len(lines_of(folder, "autotvm")) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "mali", "--ir", "relay"], "tunes for CPUs, and 'mali' is for opencl"),
        (["--target", "host", "--tuner", "autotvm"], "--tuner names a search of TVM 0.19, for --ir relay"),
    ],
)
def test_what_cannot_be_tuned(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", *options, "-o", str(tmp_path / "tuned")])
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not (tmp_path / "tuned").exists()


@pytest.mark.slow
def test_the_traps(relay: None) -> None:
    assert_passes_in_relay("compiler/relay/relay_tuning.py")
