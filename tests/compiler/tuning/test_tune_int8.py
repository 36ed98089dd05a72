"""Tuning of int8: ways of kernels are measured, recorded, and compiled, and computed is what the integer model does."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import board_processes
import numpy as np
import pytest
from board_processes import needs_emulated_board
from every_operator import with_ranges
from random_tasks import random_bundle
from tiny_network import TINY, make_known
from typer.testing import CliRunner

from ksm_hw.artifact.manifest import LIBRARY, read_manifest
from ksm_hw.boards.address import BoardAddress
from ksm_hw.boards.open_session import open_session
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.tuning.progress import TuneResult
from ksm_hw.compiler.tuning.tune import tune
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, save_bundle
from ksm_hw.models import backbones
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of
from ksm_hw.toolchains.targets import load_target

RECORDS = "database_tuning_record.json"
TRIALS = 12
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)


@dataclasses.dataclass(frozen=True)
class Tuned:
    folder: Path
    result: TuneResult


@pytest.fixture(scope="module")
def tiny() -> Iterator[Bundle]:
    """Two tasks with ranges of a network of a 3×3, a depthwise and a 1×1 convolution, and a head."""
    with pytest.MonkeyPatch.context() as patch:
        make_known(patch)
        patch.setattr("random_tasks.build_backbone", backbones.build_backbone)
        preprocessing = backbones.default_preprocessing("efficientnet-lite0", 32)
        patch.setattr("random_tasks.default_preprocessing", lambda *_: preprocessing)
        yield with_ranges(random_bundle(TINY, 32, ("kernel", "element")))


@pytest.fixture(scope="module")
def tuned(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A tune of one of the tasks on this machine; read only."""
    folder = tmp_path_factory.mktemp("tuned")
    return Tuned(folder, tune(only(tiny, "element-task"), load_target("host"), folder, trials=TRIALS, precision="int8"))


def only(bundle: Bundle, task: str) -> Bundle:
    return dataclasses.replace(bundle, packs={task: bundle.packs[task]})


def assert_is_the_integer_model(artifact: Path, bundle: Bundle, board: BoardAddress | None = None) -> None:
    with open_session(artifact, board=board) as session:
        for task, pack in bundle.packs.items():
            session.switch(task)
            logits = integer_model(network_of(bundle, pack), bundle, pack).logits(IMAGES)
            assert np.array_equal(session.run_all(IMAGES), logits), task


def test_every_kernel_is_measured_as_it_is_without_tuning_and_otherwise(tuned: Tuned) -> None:
    result = tuned.result
    assert (result.operators, result.trials, result.measured, result.failed) == (4, TRIALS, TRIALS, 0)
    assert result.latency is not None and result.default_latency is not None
    assert 0 < result.latency <= result.default_latency


def test_the_same_command_goes_on(tiny: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned.folder, tmp_path / "tuned")
    # Of another task too; the head is that of the task with most classes.
    result = tune(tiny, load_target("host"), folder, trials=TRIALS + 2, precision="int8")
    assert (result.trials, result.measured, result.failed) == (TRIALS + 2, 2, 0)
    assert (folder / RECORDS).read_text().startswith((tuned.folder / RECORDS).read_text())


def test_the_fastest_way_is_compiled_for_every_task(tiny: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned.folder, tmp_path / "records")
    # Of each kernel the way that was measured last is made the fastest; the default was measured first.
    lines = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    first = {(line[0], str(line[1][0])): place for place, line in reversed(list(enumerate(lines)))}
    for line in lines:
        line[1][1] = [1 / (1 + first[line[0], str(line[1][0])])]
    (folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = {}
    steps: list[str] = []
    for name, records in (("untuned", None), ("tuned", folder)):
        (artifact,) = compile_bundle(
            tiny, load_target("host"), tmp_path / name, precision="int8", tuned=records, on_step=steps.append
        )
        assert_is_the_integer_model(artifact, tiny)
        chosen[name] = {symbol: entry.schedule for symbol, entry in read_manifest(artifact).operators.items()}
    assert "4 operators with tuned schedules" in steps
    assert (tmp_path / "tuned" / LIBRARY).read_bytes() != (tmp_path / "untuned" / LIBRARY).read_bytes()
    default, other = (
        [schedules[symbol] for symbol in chosen["untuned"] if "conv2d" in symbol] for schedules in chosen.values()
    )
    assert all(re.match(r"IntegerKernel: (Tiling|Strip)\(", schedule) for schedule in default)
    assert all(re.match("TunedSchedule: Measured", schedule) for schedule in other)


def test_records_of_one_precision_are_none_of_the_other(tiny: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    target, of_float32 = load_target("host"), tmp_path / "tuned"
    tune(tiny, target, of_float32, trials=1)

    def refused(message: str, records: Path, **options: str) -> None:
        with pytest.raises(UserError, match=message):
            compile_bundle(tiny, load_target("host"), tmp_path / "artifact", tuned=records, **options)  # type: ignore[arg-type]
        assert not (tmp_path / "artifact").exists()

    refused(r"hold none .* in float32 .* --precision float32", tuned.folder)
    refused(r"hold none .* in int8 .* --precision int8", of_float32, precision="int8")
    with pytest.raises(UserError, match=r"was tuned for target 'host'.*'rpi4' is"):
        compile_bundle(tiny, load_target("rpi4"), tmp_path / "artifact", tuned=tuned.folder, precision="int8")


def with_ways(tuned: Tuned, folder: Path, change: Callable[[list[int]], list[int]]) -> Path:
    """A copy of the records, of which all but the first of each kernel say another way, and that it is the fastest."""
    shutil.copytree(tuned.folder, folder)
    lines = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
    first = {line[0]: str(line[1][0]) for line in reversed(lines)}
    for line in lines:
        if str(line[1][0]) != first[line[0]]:
            (note,) = (inner for inner in line[1][0][0] if inner[0] == "Annotate")
            note[1][1], line[1][1] = change(note[1][1]), [1e-9]
    (folder / RECORDS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    "change",
    [lambda way: [*way, 1], lambda way: way[:-1], lambda way: [0] * len(way), lambda way: [10**6] * len(way)],
    ids=["longer", "shorter", "zeros", "too large"],
)
def test_records_of_ways_that_a_kernel_has_not(
    change: Callable[[list[int]], list[int]], tiny: Bundle, tuned: Tuned, tmp_path: Path
) -> None:
    folder = with_ways(tuned, tmp_path / "records", change)
    with pytest.raises(UserError, match=r"are damaged, or of another version of ksm-hw .* is no way to compute"):
        compile_bundle(tiny, load_target("host"), tmp_path / "artifact", tuned=folder, precision="int8")
    assert not (tmp_path / "artifact").exists()


def test_a_tune_goes_on_from_ways_that_are_no_candidates(tiny: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    folder = with_ways(tuned, tmp_path / "records", lambda way: [*way[:-1], way[-1] + 7])
    result = tune(only(tiny, "element-task"), load_target("host"), folder, trials=TRIALS + 4, precision="int8")
    assert (result.trials, result.measured, result.failed) == (TRIALS + 4, 4, 0)


def test_what_int8_cannot_do_is_told_before_anything_is_tuned(bundle: Bundle, tiny: Bundle, tmp_path: Path) -> None:
    for refused, target, message in ((bundle, "host", "no ranges"), (tiny, "mali", "computes on a GPU")):
        with pytest.raises(UserError, match=message):
            tune(refused, load_target(target), tmp_path / "tuned", trials=1, precision="int8")
    assert not (tmp_path / "tuned").exists()


def test_the_next_command_compiles_in_int8(tiny: Bundle, tuned: Tuned, tmp_path: Path) -> None:
    save_bundle(tiny, tmp_path / "bundle")
    options = ["tune", "--bundle", tmp_path / "bundle", "--target", "host", "--precision", "int8", "-o", tuned.folder]
    done = CliRunner().invoke(app, [*map(str, options), "--trials", str(TRIALS)], catch_exceptions=False)
    assert f"4 operators, {TRIALS} trials (0 failed)" in done.output and " --precision int8 --tuned " in done.output


@pytest.mark.slow  # An emulated board takes a minute; tests of float32 beside this one are of tuning on a board.
@needs_emulated_board
def test_tune_on_the_emulated_board(tiny: Bundle, tmp_path: Path) -> None:
    target, one = load_target("rpi5"), only(tiny, "kernel-task")
    with (
        board_processes.tracker(tmp_path) as tracker,
        board_processes.board(tracker, "rpi5", tmp_path, environment={"QEMU_CPU": "cortex-a76"}),
    ):
        board = BoardAddress(tracker=tracker, key="rpi5")
        result = tune(one, target, tmp_path / "tuned", trials=5, board=board, precision="int8")
        assert (result.operators, result.trials, result.measured, result.failed) == (4, 5, 5, 0)
        (artifact,) = compile_bundle(one, target, tmp_path / "artifact", tuned=tmp_path / "tuned", precision="int8")
        assert_is_the_integer_model(artifact, one, board)
