"""Tuning: on this machine, over the real tracker and server, on the emulated arm64 board; and what can go wrong."""

import dataclasses
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import board_processes
import numpy as np
import pytest
import tvm
from board_processes import needs_emulated_board
from tvm import relax, te
from tvm.s_tir import dlight
from tvm.s_tir.meta_schedule.database import TuningRecord
from tvm.target.codegen import llvm_get_system_cpu
from verifications import assert_all_passed

from ksm_hw.boards.address import BoardAddress
from ksm_hw.compiler.build import build_executable
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.tuning.progress import TuneProgress, TuneResult
from ksm_hw.compiler.tuning.records_folder import read_header, tuned_folder, whole_records
from ksm_hw.compiler.tuning.tune import MEASUREMENTS, tune
from ksm_hw.compiler.tuning.tuning_records import create_records, open_records
from ksm_hw.errors import UserError
from ksm_hw.files.locks import FOLDER_LOCK
from ksm_hw.masks.bundle import Bundle
from ksm_hw.report.verify import verify
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.kernels.packed_convolution import packed_convolution
from tvm_passes.relax.pipeline import fuse_kernels
from tvm_passes.relax.schedules import cpu_rules
from tvm_passes.relax.schedules.base.design_space import DesignSpaceRule
from tvm_passes.relax.schedules.base.tuned import TunedSchedule
from tvm_passes.relax.schedules.cpu.convolution import Convolution
from tvm_passes.relax.schedules.cpu.dense import Dense
from tvm_passes.relax.schedules.cpu.depthwise import DepthwiseConvolution
from tvm_passes.relax.schedules.cpu.tile_model import Shape, tilings
from tvm_passes.relax.schedules.cpu.vector_unit import vector_unit

HOST = tvm.target.Target({"kind": "llvm", "mcpu": llvm_get_system_cpu(), "num-cores": 2})
RECORDS = "database_tuning_record.json"


@dataclasses.dataclass(frozen=True)
class Tuned:
    folder: Path
    result: TuneResult
    progress: list[TuneProgress]


def only(bundle: Bundle, task: str) -> Bundle:
    return dataclasses.replace(bundle, packs={task: bundle.packs[task]})


def trials_in(folder: Path) -> int:
    return len((folder / RECORDS).read_text().splitlines())


@pytest.fixture(scope="module")
def tuned(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A tune of one of the tasks on this machine; read only."""
    folder = tmp_path_factory.mktemp("tuned")
    progress: list[TuneProgress] = []
    result = tune(only(bundle, "kernel-task"), load_target("host"), folder, trials=20, on_progress=progress.append)
    return Tuned(folder, result, progress)


def test_all_trials_are_measured_and_the_progress_tells_of_each(tuned: Tuned) -> None:
    assert (tuned.result.trials, tuned.result.measured, tuned.result.failed) == (20, 20, 0)
    trials = [step for step in tuned.progress if not step.again]
    assert [step.done for step in trials] == list(range(1, 21))
    assert (trials[-1].total, trials[-1].failed, trials[-1].seconds_left, trials[-1].error) == (20, 0, 0, "")
    latencies = [step.latency for step in trials if step.latency is not None]
    assert latencies == sorted(latencies, reverse=True)
    # The defaults come first, so that the first latency is theirs.
    assert len(latencies) == 20 - tuned.result.operators + 1


def test_the_fastest_is_measured_as_often_as_the_default(tuned: Tuned) -> None:
    again = [step.again for step in tuned.progress if step.again]
    assert again == list(range(1, tuned.result.again + 1))
    records = open_records(tuned.folder, load_target("host")).database.get_all_tuning_records()
    runs: dict[tuple[str, str], list[float]] = {}
    for record in records:
        runs.setdefault((str(record.workload.mod), str(record.trace)), []).append(float(record.run_secs[0]))
    rivals: dict[str, list[list[float]]] = {}
    for (workload, _), seconds in runs.items():
        rivals.setdefault(workload, []).append(seconds)
    several = [candidates for candidates in rivals.values() if len(candidates) > 1]
    assert several and all(len(min(candidates, key=statistics.median)) == MEASUREMENTS for candidates in several)
    # The default, which was measured first, was measured as often, be it the fastest or not.
    assert all(len(default) == MEASUREMENTS for default, *_ in several)
    assert tuned.progress[-1].latency == tuned.result.latency <= tuned.result.default_latency


def test_fewer_trials_than_operators(bundle: Bundle, tmp_path: Path) -> None:
    result = tune(only(bundle, "kernel-task"), load_target("host"), tmp_path / "tuned", trials=3)
    assert (result.trials, result.measured, result.again, result.latency) == (3, 3, 0, None)


def test_the_header_says_what_was_tuned(tuned: Tuned) -> None:
    header = read_header(tuned.folder)
    assert (header["target"], header["tvm_target"]) == ("host", load_target("host").tvm)
    assert header["tvm_version"] == tvm.__version__
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(header["date"])
    assert datetime.timedelta(0) <= age < datetime.timedelta(hours=1)
    assert trials_in(tuned.folder) == 20 + tuned.result.again


def test_the_same_command_measures_nothing_again(bundle: Bundle, tuned: Tuned) -> None:
    before = (tuned.folder / RECORDS).read_text()
    # Another task of the backbone has the same operators.
    result = tune(only(bundle, "other-task"), load_target("host"), tuned.folder, trials=20)
    assert (result.trials, result.measured, result.again, result.latency) == (20, 0, 0, tuned.result.latency)
    assert (tuned.folder / RECORDS).read_text() == before


def test_records_of_one_task_serve_every_task(bundle: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    steps: list[str] = []
    (artifact,) = compile_bundle(
        bundle, load_target("host"), tmp_path / "artifact", tuned=tuned.folder, on_step=steps.append
    )
    (applied,) = (int(found[1]) for step in steps if (found := re.match(r"(\d+) operators with tuned", step)))
    # The head has the outputs of the task with most classes; all the rest is the same.
    assert applied >= tuned.result.operators - 1
    results = verify(artifact)
    assert {result.task for result in results} == {"kernel-task", "element-task", "other-task"}
    assert all(result.passed for result in results), results


def test_the_fastest_record_is_taken_and_a_failed_one_is_none(bundle: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned.folder, tmp_path / "tuned")
    lines = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]

    def written(seconds: list[float]) -> list[TuningRecord]:
        for line, one in zip(lines, seconds, strict=True):
            line[1][1] = [one]
        (folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return list(open_records(folder, load_target("host")).database.get_all_tuning_records())

    for sign in (1, -1):
        records = written([1 + sign * index / 100 for index in range(len(lines))])
        rule = TunedSchedule(open_records(folder, load_target("host")).database)
        for record in records:
            rivals = [other for other in records if other.workload.mod.same_as(record.workload.mod)]
            traces = {str(rival.trace) for rival in rivals}
            seconds = {trace: [float(one.run_secs[0]) for one in rivals if str(one.trace) == trace] for trace in traces}
            schedule = rule.apply(record.workload.mod["main"], HOST, False)
            assert str(schedule.trace) == min(traces, key=lambda trace: statistics.median(seconds[trace]))
        assert len(lines) > tuned.result.operators  # Some have rivals.
    written([1e10] * len(lines))
    with pytest.raises(UserError, match="records hold none of any operator"):
        compile_bundle(bundle, load_target("host"), tmp_path / "artifact", tuned=folder)
    assert not (tmp_path / "artifact").exists()


def test_records_that_do_not_fit_are_refused(bundle: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    def refused(folder: Path, target: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            compile_bundle(bundle, load_target(target), tmp_path / "artifact", tuned=folder)
        assert not (tmp_path / "artifact").exists()

    refused(tuned.folder, "rpi4", "was tuned for target 'host'.*'rpi4' is")
    refused(tmp_path / "nothing", "host", "No tuning records at")
    with pytest.raises(UserError, match="was tuned for target 'host'"):
        tune(bundle, load_target("rpi4"), tuned.folder, trials=1)
    folder = shutil.copytree(tuned.folder, tmp_path / "tuned")
    header = read_header(folder)
    (folder / "records.json").write_text(json.dumps({**header, "tvm_version": "0.1"}))
    refused(folder, "host", "was tuned with TVM 0.1")
    (folder / "records.json").write_text("{}")
    refused(folder, "host", "is damaged")
    (folder / "records.json").write_text(json.dumps(header))
    text = (folder / RECORDS).read_text()
    (folder / RECORDS).write_text(text[: len(text) // 2])
    refused(folder, "host", "are damaged")


def test_records_are_read_while_a_tune_writes_and_go_on_where_one_was_killed(tuned: Tuned, tmp_path: Path) -> None:
    """In the middle of a line."""
    folder, target = shutil.copytree(tuned.folder, tmp_path / "tuned"), load_target("host")
    whole_lines = (folder / RECORDS).read_text()
    (folder / RECORDS).write_text(whole_lines + whole_lines[:1000])
    with pytest.raises(UserError, match="are damaged"):
        open_records(folder, target)
    (folder / FOLDER_LOCK).write_text("1 ksm-hw tune")
    count = len(open_records(tuned.folder, target).database)
    with whole_records(folder) as copy:
        assert len(open_records(copy, target).database) == count
    with tuned_folder(folder):
        assert len(create_records(folder, target).database) == count
    assert (folder / RECORDS).read_text() == whole_lines


def test_a_tune_holds_its_folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(folder: Path, _target: object) -> None:
        assert (folder / FOLDER_LOCK).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("ksm_hw.compiler.tuning.tune.create_records", create)
    with pytest.raises(KeyboardInterrupt):
        tune(bundle, load_target("host"), tmp_path / "tuned", trials=1)
    assert not (tmp_path / "tuned").exists()


def test_a_folder_of_something_else_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(UserError, match="holds no tuning records"):
        tune(bundle, load_target("host"), tmp_path, trials=1)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_all_failed_is_an_error_that_quotes_the_message(bundle: Bundle, tmp_path: Path) -> None:
    """What is built for arm64 does not load here."""
    progress: list[TuneProgress] = []
    with pytest.raises(UserError, match=r"All 3 trials failed.*candidate\d+\.so: cannot open shared object"):
        tune(bundle, load_target("arm64"), tmp_path / "tuned", trials=3, on_progress=progress.append)
    assert [(step.done, step.failed) for step in progress] == [(1, 1), (2, 2), (3, 3)]
    # Nothing was learned of the schedules, so the next try measures them again.
    assert trials_in(tmp_path / "tuned") == 0


def test_a_board_that_goes_costs_nothing_measured(bundle: Bundle, tmp_path: Path) -> None:
    """Over the real tracker, with this machine as the board."""
    folder = tmp_path / "tuned"
    small = only(bundle, "kernel-task")
    with board_processes.tracker(tmp_path) as tracker:
        address = BoardAddress(tracker=tracker, key="here")
        with pytest.raises(UserError, match=r"No board 'here' at tracker .* is there"):
            tune(small, load_target("host"), folder, trials=6, board=address, wait=2)
        with board_processes.board(tracker, "here", tmp_path, emulated=False) as process:

            def kill(progress: TuneProgress) -> None:
                if progress.done == 3:
                    board_processes.end_group(process)

            with pytest.raises(UserError, match=r"No board 'here' at tracker .* is there.*goes on"):
                tune(small, load_target("host"), folder, trials=6, board=address, wait=2, on_progress=kill)
        measured = trials_in(folder)
        assert 3 <= measured < 6
        with board_processes.board(tracker, "here", tmp_path, emulated=False):
            result = tune(small, load_target("host"), folder, trials=6, board=address)
        assert (result.trials, result.measured, result.failed) == (6, 6 - measured, 0)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_keeps_what_was_measured(bundle_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tuned"
    tune_of_all = ["tune", "--bundle", bundle_folder, "--target", "host", "--trials", "1000", "-o", folder]
    command = [Path(sys.executable).with_name("ksm-hw"), *tune_of_all]
    # A process group of its own, as a terminal's Ctrl-C goes to all of a group.
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not (folder / RECORDS).is_file() or trials_in(folder) == 0:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and "give the same command to go on" in messages
    assert trials_in(folder) >= 1
    open_records(folder, load_target("host"))


@needs_emulated_board
def test_tune_on_the_emulated_board(bundle: Bundle, tmp_path: Path) -> None:
    target = load_target("rpi4")
    with (
        board_processes.tracker(tmp_path) as tracker,
        board_processes.board(tracker, "rpi4", tmp_path, environment={"QEMU_CPU": "cortex-a72"}),
    ):
        board = BoardAddress(tracker=tracker, key="rpi4")
        one = only(bundle, "kernel-task")
        result = tune(one, target, tmp_path / "tuned", trials=3, board=board)
        assert (result.trials, result.measured, result.failed) == (3, 3, 0)
        (artifact,) = compile_bundle(one, target, tmp_path / "artifact", tuned=tmp_path / "tuned")
        assert_all_passed(verify(artifact, board=board), ["kernel-task"], 3)


def _kernel(compute, *shapes: tuple[int, ...]) -> tvm.tirx.PrimFunc:
    """The only function that an expression of float32 tensors becomes."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{index}", relax.TensorType(shape, "float32")) for index, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(compute(*inputs)))
        builder.emit_func_output(result)
    functions = fuse_kernels(builder.get(), HOST).functions.values()
    (kernel,) = (function for function in functions if isinstance(function, tvm.tirx.PrimFunc))
    return kernel


def _convolution(x, weight, groups: int):
    return relax.op.nn.relu(relax.op.nn.conv2d(x, weight, 1, 1, 1, groups, "NHWC", "HWIO", out_dtype="float32"))


SPACES = {
    "convolution": (Convolution(), lambda x, w: _convolution(x, w, 1), [(1, 7, 7, 12), (3, 3, 12, 24)], (1, 7, 7, 24)),
    "groups": (Convolution(), lambda x, w: _convolution(x, w, 2), [(1, 5, 6, 8), (3, 3, 4, 20)], (1, 5, 6, 20)),
    "depthwise": (
        DepthwiseConvolution(),
        lambda x, w: _convolution(x, w, 24),
        [(1, 8, 8, 24), (3, 3, 1, 24)],
        (1, 8, 8, 24),
    ),
    "dense": (Dense(), relax.op.matmul, [(3, 48), (48, 512)], (3, 512)),
}


# All of a space take LLVM a minute.
SHARES = [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(5, id="a fifth")]


@pytest.mark.parametrize("every", SHARES)
@pytest.mark.parametrize("name", SPACES)
def test_schedules_of_a_design_space_compute_the_same(name: str, every: int) -> None:
    rule, compute, shapes, output_shape = SPACES[name]
    _check_design_space(rule, _kernel(compute, *shapes), shapes, output_shape, every)


@pytest.mark.parametrize("every", SHARES)
def test_schedules_of_a_convolution_with_packed_weights_compute_the_same(every: int) -> None:
    shapes = [(1, 8, 8, 12), (3, 3, 3, 12, 8)]
    data, weight = (te.placeholder(shape, "float32") for shape in shapes)
    result = packed_convolution(data, weight, (1, 1), (1, 1, 1, 1), (1, 1), groups=1)
    kernel = te.create_prim_func([data, weight, result], index_dtype_override="int64")
    assert any(
        tiling.pixels_first for tiling in tilings(Shape(64, 24, 108, 48, 48, "float32"), 1, vector_unit(HOST), 8)
    )
    _check_design_space(Convolution(), kernel, shapes, (1, 8, 8, 24), every)


def _check_design_space(
    rule: DesignSpaceRule,
    kernel: tvm.tirx.PrimFunc,
    shapes: list[tuple[int, ...]],
    output_shape: tuple[int, ...],
    every: int,
) -> None:
    """Of all schedules of an operator every so manieth is run."""
    schedules = rule.design_space(kernel, HOST)
    assert len(schedules) > 5 and len({str(schedule.trace) for schedule in schedules}) == len(schedules)
    # What is compiled without tuning is the first.
    with HOST:
        scheduled = dlight.ApplyDefaultSchedule(*cpu_rules())(tvm.IRModule({"main": kernel}))
    default = scheduled["main"].without_attr("tirx.is_scheduled")
    tvm.ir.assert_structural_equal(default, schedules[0].mod["main"])
    generator = np.random.default_rng(0)
    inputs = [tvm.runtime.tensor(generator.standard_normal(shape).astype("float32")) for shape in shapes]
    kernels = {f"kernel_{index}": schedule.mod["main"] for index, schedule in enumerate(schedules[::every])}
    named = {name: function.with_attr("global_symbol", name) for name, function in kernels.items()}
    library = build_executable(tvm.IRModule(named), HOST)
    results = []
    for name in named:
        output = tvm.runtime.tensor(np.full(output_shape, np.nan, "float32"))
        library[name](*inputs, output)
        results.append(output.numpy())
    # The default is compared with PyTorch in test_schedules.
    np.testing.assert_allclose(results, np.broadcast_to(results[0], np.shape(results)), rtol=1e-5, atol=1e-5)
    assert np.abs(results[0]).max() > 1
