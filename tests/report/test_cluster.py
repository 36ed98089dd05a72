"""Trials on a Ray cluster of this machine: a worker that dies, who stops it, and what is wrong with an address."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from learned_noise import save_pets, saved_weights
from random_tasks import SMALL_NETWORK
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.report.cluster import connected_cluster
from ksm_hw.report.learning_trials import LearningTrial, learn_trials


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster that ends with the test."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--port", str(port), "--num-cpus", "2", "--num-gpus", "0", "--include-dashboard", "false"]
    command += ["--disable-usage-stats", "--temp-dir", str(tmp_path_factory.mktemp("r"))]
    log = tmp_path_factory.mktemp("log") / "ray"
    with log.open("wb") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        try:
            end = time.monotonic() + 60
            while b"Ray runtime started" not in log.read_bytes():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def place(tmp_path: Path, bundle: Bundle) -> Path:
    saved_weights(bundle, tmp_path / "w.pt")
    save_pets(tmp_path / "pets")
    return tmp_path


def arguments(place: Path, epochs: int = 1) -> list[str]:
    return [
        "--backbone", SMALL_NETWORK, "--weights", str(place / "w.pt"), "--image-size", "32", "--epochs", str(epochs),
    ]  # fmt: skip


def trials_of(place: Path, *tasks: str) -> list[LearningTrial]:
    return [LearningTrial("head", task, str(place / "pets"), 0) for task in tasks]


def worker_of(trial: LearningTrial) -> psutil.Process:
    """The process of the cluster that runs a trial."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if line.startswith(f"ray::{trial.name}") and process.children():
                return process
        time.sleep(0.05)
    raise AssertionError(f"nothing runs {trial.name}")


@pytest.mark.slow  # A cluster takes seconds to start, and each trial imports torch.
def test_the_command_learns_on_a_cluster_what_it_learns_here(address: str, place: Path) -> None:
    command = ["compare", "--methods", "head,packnet", "--tasks", str(place / "pets"), "--seeds", "1"]
    for number, more in enumerate((["--cluster", address], [])):
        options = [*arguments(place, 2), "-o", str(place / f"compared{number}"), "--json", *more]
        done = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    there, here = (
        {path.name: re.findall(r'"(?:accuracy|pack_bytes)": .*', path.read_text()) for path in folder.iterdir()}
        for folder in (place / "compared0" / "trials", place / "compared1" / "trials")
    )
    there = {name: found for name, found in there.items() if name.endswith(".json")}
    assert there == here and len(here) == 2


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_trial_alone(address: str, place: Path) -> None:
    trials = trials_of(place, "first", "dies", "last")
    seen: list[str] = []

    def kill() -> None:
        worker_of(trials[1]).kill()

    with connected_cluster(address) as cluster:
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(UserError, match=r"Task 'dies' was not learned by head .* ended .*The others stay") as error:
            learn_trials(
                trials, place / "compared", lambda _: arguments(place), 2, lambda t, _: seen.append(t.task), cluster
            )
        killer.join()
        assert sorted(seen) == ["first", "last"] and "first" not in str(error.value)
        found = learn_trials(trials, place / "compared", lambda _: arguments(place), 2, runner=cluster)
    assert len(found) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_who_stops_it_ends_what_runs_there_and_keeps_what_is_done(address: str, place: Path) -> None:
    trials = trials_of(place, "done", "stopped")

    def of(_method: str) -> list[str]:
        return arguments(place)

    runs: list[psutil.Process] = []

    def interrupt() -> None:
        runs.extend([worker := worker_of(trials[1]), *worker.children()])
        os.kill(os.getpid(), signal.SIGINT)

    with connected_cluster(address) as cluster:
        first = learn_trials(trials[:1], place / "compared", of, runner=cluster)
        stopper = threading.Thread(target=interrupt)
        stopper.start()
        with pytest.raises(KeyboardInterrupt):
            learn_trials(trials, place / "compared", of, runner=cluster)
        stopper.join()
        _, alive = psutil.wait_procs(runs, 30)
        assert len(runs) == 2 and not alive
        assert learn_trials(trials[:1], place / "compared", of, runner=cluster) == first


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:no", "127.0.0.1:99999", ":1"])
def test_what_is_no_address_is_told(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"is no address. Give HOST:PORT"), connected_cluster(address):
        pass


def test_no_cluster_at_an_address_and_none_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"no Ray cluster at 127\.0\.0\.1:1 "), connected_cluster("127.0.0.1:1"):
        pass
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(UserError, match="no Ray cluster at auto"), connected_cluster("auto"):
        pass


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    save_pets(tmp_path / "pets")
    command = ["compare", "--methods", "head", "--tasks", str(tmp_path / "pets"), "-o", str(tmp_path / "compared")]
    result = CliRunner().invoke(app, [*command, "--cluster", "auto"])
    assert isinstance(result.exception, UserError) and "'ksm-hw[cluster]'" in str(result.exception)
    result = CliRunner().invoke(app, [*command, "--cluster", "auto", "--jobs", "2"])
    assert isinstance(result.exception, UserError) and "Leave out --jobs" in str(result.exception)
    assert not (tmp_path / "compared").exists()
