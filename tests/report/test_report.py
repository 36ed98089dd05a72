"""The report: what it holds, what it says of noise, and its three forms. No time is asserted: machines differ."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from random_tasks import random_bundle

from ksm_hw.cli.console import PlainConsole
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.report.measure import ROUNDS, ArtifactReport, measure_artifact, reports_as_json
from ksm_hw.report.page import precision_figures, write_page
from ksm_hw.report.terminal import milliseconds, precision_tables, print_reports
from ksm_hw.report.timing import NOISE_LIMIT, TOO_NOISY, Timing, compare_timings, timing_of
from ksm_hw.toolchains.targets import load_target

RUNS = 12
TASKS = ("channel-task", "kernel-task")
HOSTILE_NAME = "<script>alert('$x$')</script>[bold]&"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = random_bundle("resnet18", 32, ("kernel", "channel"))
    (folder,) = compile_bundle(bundle, load_target("host"), tmp_path_factory.mktemp("report") / "artifact")
    return folder


@pytest.fixture(scope="module")
def report(artifact: Path) -> ArtifactReport:
    steps: list[str] = []
    measured = measure_artifact(artifact, RUNS, steps.append)
    assert "load" in steps and any(step.startswith("without masks") for step in steps)
    return measured


def timings_of(report: ArtifactReport) -> list[Timing]:
    by_task = [[task.latency, task.unmasked_latency, task.switch] for task in report.tasks]
    found = [timing for timings in by_task for timing in timings] + [report.copy]
    return [timing for timing in found if timing is not None]


def test_every_task_is_measured(report: ArtifactReport) -> None:
    assert sorted(task.task for task in report.tasks) == list(TASKS)
    assert (report.backbone, report.fold, report.input_shape) == ("resnet18", "switch", (1, 3, 32, 32))
    for task in report.tasks:
        assert task.latency.count >= RUNS
        assert task.unmasked_latency is not None and task.unmasked_latency.count == task.latency.count
        assert task.switch is not None and task.switch.count >= 10
        assert task.mask_overhead is not None and task.switch_against_copy is not None
        assert task.mask_overhead.lowest <= task.mask_overhead.ratio <= task.mask_overhead.highest
    assert report.machine.cpu and report.machine.cores >= report.threads >= 1


def test_percentiles_are_in_order(report: ArtifactReport) -> None:
    timings = timings_of(report)
    assert len(timings) == 3 * len(TASKS) + 1
    for timing in timings:
        assert 0 < timing.minimum_seconds <= timing.median_seconds <= timing.p90_seconds <= timing.p99_seconds
        assert len(timing.round_medians_seconds) == ROUNDS
    # With `switch` every one of them is compared with another.
    assert report.noisy == any(timing.noisy for timing in timings)


def test_bytes_are_those_of_the_files(report: ArtifactReport, artifact: Path) -> None:
    backbone = (artifact / "backbone.safetensors").stat().st_size
    packs = {path.stem: path.stat().st_size for path in (artifact / "tasks").iterdir()}
    assert {task.task: task.pack_bytes for task in report.tasks} == packs
    assert {task.task: task.pack_share for task in report.tasks} == {name: packs[name] / backbone for name in packs}
    assert report.storage.backbone_bytes == backbone
    assert report.storage.bundle_bytes == backbone + sum(packs.values())
    # resnet18's head takes 512 features; its float32 weight and bias are each task's own.
    heads = sum(4 * (512 + 1) * task.classes for task in report.tasks)
    assert report.storage.copies_bytes == 2 * backbone + heads


def test_memory_is_of_the_runtime_alone(report: ArtifactReport) -> None:
    memory = report.memory
    assert memory.parameters_bytes == memory.shared_bytes + sum(task.resident_bytes for task in report.tasks)
    # The masked layers' weights, float32: nearly all of the backbone.
    assert 0.9 < memory.weights_bytes / report.storage.backbone_bytes < 1.1
    assert memory.process_peak_bytes > memory.process_start_bytes + memory.weights_bytes + memory.parameters_bytes
    # This process has torch and a compiler loaded; the measured one had not.
    own = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    assert memory.process_start_bytes < own


def test_json_survives_a_round_trip(report: ArtifactReport) -> None:
    content = reports_as_json([report])
    assert json.loads(json.dumps(content)) == content
    (entry,) = content["artifacts"]
    assert entry["tasks"][0]["latency"]["median_seconds"] == report.tasks[0].latency.median_seconds
    assert content["noisy"] is entry["noisy"] is report.noisy


class PageReader(HTMLParser):
    """Collects what a page loads, its tags and its text; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_else(report: ArtifactReport, tmp_path: Path) -> None:
    named = dataclasses.replace(report.tasks[0], task=HOSTILE_NAME)
    hostile = dataclasses.replace(report, artifact=HOSTILE_NAME, tasks=(named, *report.tasks[1:]))
    write_page([report, hostile], tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text()
    page = PageReader()
    page.feed(content)
    assert not page.open
    assert all(address.startswith("#") for address in page.loads)
    assert {address[1:] for address in page.loads} <= set(page.ids)
    assert "script" not in page.tags and "<script" not in content
    assert HOSTILE_NAME in page.text
    assert content.count("<svg") == 2 * 3


@pytest.mark.parametrize("width", [100, 80])
def test_terminal_shows_every_name_whole(report: ArtifactReport, width: int) -> None:
    named = dataclasses.replace(report.tasks[0], task="[bold]cars")
    console = PlainConsole(width=width, file=io.StringIO())
    print_reports(console, [dataclasses.replace(report, tasks=(named, *report.tasks[1:]))])
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]cars" in printed and report.machine.cpu in printed
    if width >= 100:
        assert "…" not in printed.replace(" … ", "")


def test_precisions_stand_side_by_side(report: ArtifactReport, tmp_path: Path) -> None:
    tasks = tuple(dataclasses.replace(task, accuracy=0.875) for task in report.tasks)
    int8 = dataclasses.replace(report, precision="int8", tasks=tasks)
    assert precision_tables([report, report]) == []
    (table,) = precision_tables([report, int8])
    name = report.tasks[0].task
    assert [row[:2] for row in table.rows[:2]] == [(name, "float32, switch"), (name, "int8, switch")]
    assert [row[-1] for row in table.rows[:2]] == ["", "87.50%"]
    write_page([report, int8], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "by precision: milliseconds and MB" in page and "by precision: accuracy against latency" in page


def test_accuracy_is_drawn_against_latency_for_each_precision(report: ArtifactReport) -> None:
    tasks = tuple(dataclasses.replace(task, accuracy=0.875) for task in report.tasks)
    float32 = dataclasses.replace(report, tasks=tasks)
    assert precision_figures([report, dataclasses.replace(report, precision="int8")]) == []  # None was measured.
    ((_, figure),) = precision_figures([float32, dataclasses.replace(float32, precision="int8")])
    assert [axes.get_title() for axes in figure.axes] == [task.task for task in tasks]
    for axes, task in zip(figure.axes, tasks, strict=True):
        assert [text.get_text() for text in axes.texts] == ["float32", "int8"]
        points = [tuple(np.ravel(line.get_xydata())) for line in axes.lines]
        assert points == [(pytest.approx(task.latency.median_seconds * 1e3), 87.5)] * 2


def test_noise_is_told_by_the_rounds() -> None:
    # One slow run in a round is no noise: the round's median stays.
    quiet = timing_of([[1.0, 1.0, 5.0], [1.05, 1.05, 1.05], [1.0, 1.0, 1.0]])
    assert (quiet.median_seconds, quiet.minimum_seconds, quiet.count) == (1.0, 1.0, 9)
    assert quiet.spread == pytest.approx(0.05) and not quiet.noisy
    loud = timing_of([[1.0, 1.0], [1.0 + 1.1 * NOISE_LIMIT] * 2, [1.0, 1.0]])
    assert loud.noisy
    # Rounds that agree with each other may still differ from another program's.
    comparison = compare_timings(timing_of([[1.2], [1.2], [1.26]]), quiet)
    assert comparison.ratio == pytest.approx(1.2) and not comparison.noisy
    assert comparison.lowest == pytest.approx(1.2 / 1.05) and comparison.highest == pytest.approx(1.26)
    assert compare_timings(quiet, loud).noisy and compare_timings(loud, quiet).noisy


def test_percentiles_of_known_samples() -> None:
    timing = timing_of([[float(value) for value in range(0, 101, 2)], [float(value) for value in range(1, 101, 2)]])
    assert (timing.median_seconds, timing.p90_seconds, timing.p99_seconds) == (50, 90, 99)


def test_noise_is_said_in_every_form(report: ArtifactReport, tmp_path: Path) -> None:
    steady = timing_of([[0.01]] * ROUNDS)
    shaken = timing_of([[0.01 * (1 + number)] for number in range(ROUNDS)])
    for timing in (steady, shaken):
        comparison = compare_timings(timing, steady)
        tasks = tuple(
            dataclasses.replace(
                task,
                latency=timing,
                unmasked_latency=steady,
                mask_overhead=comparison,
                switch=steady,
                switch_against_copy=compare_timings(steady, steady),
            )
            for task in report.tasks
        )
        changed = dataclasses.replace(report, tasks=tasks, noisy=timing.noisy)
        console = PlainConsole(width=100, file=io.StringIO())
        print_reports(console, [changed])
        write_page([changed], tmp_path / "report.html")
        noisy = timing is shaken
        assert (TOO_NOISY in console.file.getvalue()) is noisy  # type: ignore[attr-defined]
        assert (TOO_NOISY in (tmp_path / "report.html").read_text()) is noisy
        entry = reports_as_json([changed])["artifacts"][0]
        assert entry["noisy"] is entry["tasks"][0]["mask_overhead"]["noisy"] is noisy


def test_times_from_nanoseconds_to_seconds_are_readable() -> None:
    assert [milliseconds(seconds) for seconds in (1.2345, 0.012345, 0.0012345, 1.5e-6, 2e-7)] == [
        "1234", "12.3", "1.23", "0.00150", "< 0.001",
    ]  # fmt: skip


def test_bad_input_is_told(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(UserError, match="No artifact"):
        measure_artifact(tmp_path)
    with pytest.raises(UserError, match="too few"):
        measure_artifact(artifact, runs=1)


def test_a_process_that_dies_is_told(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(UserError, match="ended with status 1"):
        measure_artifact(artifact, RUNS, compare_unmasked=False)
