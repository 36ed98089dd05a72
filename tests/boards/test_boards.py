"""Boards: the real tracker, the real server on an emulated arm64 board, real artifacts, and what goes wrong there."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import board_processes
import numpy as np
import psutil
import pytest
from board_processes import needs_emulated_board
from damage import unsealed
from typer.testing import CliRunner

import ksm_hw.boards.board
from ksm_hw import __version__
from ksm_hw.artifact.modes import FoldMode
from ksm_hw.boards.address import BoardAddress, board_address, parse_address
from ksm_hw.boards.board import connected_board
from ksm_hw.boards.protocol import VERSION
from ksm_hw.boards.reaching import known_boards
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle, select_tasks
from ksm_hw.report.verify import verify
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target, required_cpu_features

pytestmark = needs_emulated_board


@pytest.fixture(scope="module")
def here(tracker: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardAddress]:
    """This machine as a board: for what does not need another CPU, and should not wait for an emulator."""
    folder = tmp_path_factory.mktemp("here")
    with board_processes.board(tracker, "here", folder, emulated=False):
        yield BoardAddress(tracker=tracker, key="here")


def options(address: BoardAddress) -> list[str]:
    assert address.tracker is not None
    return ["--tracker", f"{address.tracker[0]}:{address.tracker[1]}", "--key", address.key]


def assert_free(address: BoardAddress) -> None:
    """Within seconds the tracker offers the board again."""
    assert address.tracker is not None
    end = time.monotonic() + 60
    while not any(board.free for board in known_boards(address.tracker) if board.key == address.key):
        assert time.monotonic() < end
        time.sleep(0.2)


def test_every_shipped_task_on_the_emulated_board(emulated: BoardAddress, shipped_on_arm64: Path) -> None:
    results = verify(shipped_on_arm64, board=emulated)
    assert [result.task for result in results] == list(load_bundle(shipped_bundle()).packs)
    assert all(result.passed and result.agreement == 1 and result.images == 2 for result in results), results
    assert_free(emulated)


@pytest.mark.slow
@pytest.mark.parametrize("fold", ["bake", "fused"])
def test_other_fold_modes_on_the_emulated_board(
    fold: FoldMode, bundle: Bundle, emulated: BoardAddress, tmp_path: Path
) -> None:
    artifacts = compile_bundle(bundle, load_target("rpi4"), tmp_path / "artifact", fold=fold)
    for artifact in artifacts[:2]:
        assert all(result.passed and result.images == 3 for result in verify(artifact, board=emulated))


def test_a_board_gives_what_this_machine_gives(artifact: Path, here: BoardAddress) -> None:
    local = Session.load(artifact)
    images = np.random.default_rng(0).standard_normal(local.manifest.input_shape).astype(np.float32)
    with connected_board(here) as board:
        session = board.load(artifact)
        assert session.tasks == local.tasks
        for task in session.tasks:
            assert session.switch(task) >= 0
            np.testing.assert_array_equal(session.run(images), local.run(images, task))
    assert_free(here)


def test_an_artifact_is_sent_once(artifact: Path, here: BoardAddress) -> None:
    files = json.loads((artifact / "manifest.json").read_text())["files"]
    names = json.dumps([entry["sha256"] + Path(name).suffix for name, entry in files.items()])
    for _ in range(2):
        with connected_board(here) as board:
            board.load(artifact)
            assert board.call("missing", names) == []
            assert board.call("missing", json.dumps(["0" * 64])) == ["0" * 64]


def test_run_and_report_on_a_board(artifact: Path, photographs: Path, here: BoardAddress) -> None:
    command = ["run", str(artifact), "--task", "kernel-task", str(photographs / "cat.png"), "--json"]
    locally, remotely = (CliRunner().invoke(app, [*command, *more]) for more in ([], options(here)))
    assert remotely.exit_code == 0 and json.loads(locally.stdout) == json.loads(remotely.stdout)
    command = ["report", str(artifact), "--runs", "10", "--json", *options(here)]
    (report,) = json.loads(CliRunner().invoke(app, command).stdout)["artifacts"]
    assert {task["task"] for task in report["tasks"]} == {"kernel-task", "element-task", "other-task"}
    for task in report["tasks"]:
        assert task["latency"]["count"] == 10 and task["unmasked_latency"]["count"] == 10
        assert task["latency"]["median_seconds"] > 0 and task["switch"]["median_seconds"] > 0


def test_list_shows_what_is_free_and_what_is_busy(here: BoardAddress) -> None:
    command = ["board", "list", *options(here)[:2], "--json"]

    def listed() -> bool:
        boards = json.loads(CliRunner().invoke(app, command).stdout)["boards"]
        return next(board["free"] for board in boards if board["key"] == "here")

    assert_free(here)
    with connected_board(here):
        assert not listed()
        with pytest.raises(UserError, match=r"'here' .* was busy for 1 s"), connected_board(here, wait=1):
            pass
    assert_free(here)


def test_one_board_without_a_tracker(artifact: Path, tmp_path: Path) -> None:
    port = board_processes.free_port()
    command = [*board_processes.COMMAND, "serve", "--port", str(port), "--cache", os.path.relpath(tmp_path / "cache")]
    address = BoardAddress(host=("127.0.0.1", port))
    with board_processes.running(command, tmp_path / "log"):
        end = time.monotonic() + 60
        while "Board 'board'" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.2)
        wrong = BoardAddress(host=address.host, key="wrong")
        with pytest.raises(UserError, match="does not go by the key 'wrong'"), connected_board(wrong):
            pass
        with connected_board(address) as board:
            assert board.load(artifact).switch("other-task") > 0


# What goes wrong.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:9190", None, None), "--tracker needs --key"),
        ((None, "rpi4", None), "give --tracker"),
        (("127.0.0.1:9190", "rpi4", "127.0.0.1:9091"), "not both"),
        (("nowhere", "rpi4", None), "'nowhere' is no address"),
        ((None, None, "127.0.0.1:x"), "'127.0.0.1:x' is no address"),
    ],
)
def test_options_that_make_no_address(given: tuple[str | None, str | None, str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        board_address(*given)


def test_addresses() -> None:
    assert parse_address("[::1]:9190") == ("::1", 9190)
    assert board_address(None, None, None) is None
    assert board_address(None, None, "rpi:9091") == BoardAddress(host=("rpi", 9091), key="board")


def test_nobody_there(tracker: tuple[str, int], here: BoardAddress) -> None:
    nowhere = ("127.0.0.1", board_processes.free_port())
    for address, message in (
        (BoardAddress(tracker=nowhere, key="rpi4"), "No tracker answers at 127.0.0.1:"),
        (BoardAddress(host=nowhere), "No board answers at 127.0.0.1:"),
        (BoardAddress(tracker=tracker, key="rpi9"), r"knows no board 'rpi9'. It knows: .*here"),
    ):
        with pytest.raises(UserError, match=message), connected_board(address):
            pass


def test_a_server_that_is_not_ours(tracker: tuple[str, int], tmp_path: Path) -> None:
    port = str(board_processes.free_port())
    address = f"{tracker[0]}:{tracker[1]}"
    command = [board_processes.COMMAND[0], "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--port", port]
    with board_processes.running(
        [*command, "--port-end", str(int(port) + 1), "--tracker", address, "--key", "plain"], tmp_path / "log"
    ):
        board_processes.wait_for_board(tracker, "plain", tmp_path / "log")
        with (
            pytest.raises(UserError, match="without ksm-hw's part"),
            connected_board(BoardAddress(tracker, key="plain")),
        ):
            pass


def test_a_board_of_another_version(here: BoardAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a desk sees it whose ksm-hw is newer than the board's."""
    monkeypatch.setattr(ksm_hw.boards.board, "VERSION", VERSION + 1)
    monkeypatch.setattr(ksm_hw.boards.board, "__version__", "99.0")
    message = (
        rf"'here' .* runs ksm-hw {__version__}, which speaks version {VERSION} .*; "
        rf"ksm-hw 99\.0 here speaks version {VERSION + 1}\. Install the same ksm-hw on the board"
    )
    with pytest.raises(UserError, match=message), connected_board(here):
        pass
    assert_free(here)


def test_code_for_another_cpu_is_refused(arm64_artifact: Path, emulated: BoardAddress, tmp_path: Path) -> None:
    artifact, other = shutil.copytree(arm64_artifact, tmp_path / "artifact"), load_target("rpi5")
    manifest = unsealed((artifact / "manifest.json").read_text())
    changed = {"tvm_target": dict(other.tvm), "cpu_features": required_cpu_features(other)}
    (artifact / "manifest.json").write_text(json.dumps({**manifest, **changed}))
    with pytest.raises(UserError, match=r"'emulated'.*cortex-a76 and uses asimddp, asimdhp, which this CPU"):
        verify(artifact, board=emulated)
    assert_free(emulated)


@pytest.mark.parametrize(("core", "said"), [("cortex-a76", "uses i8mm, which this CPU"), ("max", "")])
def test_products_of_matrices_are_refused_by_a_cpu_without_them(core: str, said: str, tmp_path: Path) -> None:
    target = 'mtriple = "aarch64-linux-gnu"\nmcpu = "cortex-a76"\nmattr = ["+i8mm"]\n'
    (tmp_path / "i8mm.toml").write_text(f'description = "i8mm"\ndevice = "cpu"\n[tvm]\nkind = "llvm"\n{target}')
    needed = required_cpu_features(load_target("i8mm", file=tmp_path / "i8mm.toml"))
    assert needed == ["asimddp", "asimdhp", "i8mm"]
    program = f"from ksm_hw.runtime.machine import check_cpu_features\ncheck_cpu_features({needed}, 'i8mm')"
    environment = {**os.environ, "QEMU_CPU": core}
    done = subprocess.run(
        [board_processes.EMULATED_PYTHON, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode == 0) == (not said) and said in done.stderr


def test_an_instruction_that_the_cpu_lacks(bundle: Bundle, emulated: BoardAddress, tmp_path: Path) -> None:
    """What the manifest does not tell of ends in SIGILL: the user hears of it, and the board serves again."""
    (tmp_path / "sve.toml").write_text(
        'description = "SVE"\ndevice = "cpu"\n[tvm]\nkind = "llvm"\nmtriple = "aarch64-linux-gnu"\n'
        'mcpu = "neoverse-v1"\nnum-cores = 2\n'
    )
    target = load_target("sve", file=tmp_path / "sve.toml")
    # Rows of 9 values, each with its own mask: LLVM makes their last step of scalable vectors.
    (artifact,) = compile_bundle(select_tasks(bundle, "element-task"), target, tmp_path / "artifact")
    manifest = unsealed((artifact / "manifest.json").read_text())
    assert "sve" in manifest["cpu_features"]
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "cpu_features": []}))
    with pytest.raises(UserError, match=r"'emulated'.*an instruction that its CPU lacks \(SIGILL\)"):
        verify(artifact, board=emulated)
    assert_free(emulated)


def session_process(server: psutil.Process) -> psutil.Process:
    """The process of a server's session: the youngest of its descendants."""
    return max(server.children(recursive=True), key=lambda process: process.create_time())


def test_a_session_that_runs_out_of_memory(artifact: Path, tracker: tuple[str, int], tmp_path: Path) -> None:
    """What Linux does then: it kills the process."""
    address = BoardAddress(tracker, key="small")
    with board_processes.board(tracker, "small", tmp_path, emulated=False) as server, connected_board(address) as board:
        session = board.load(artifact)
        session_process(psutil.Process(server.pid)).send_signal(signal.SIGKILL)
        with pytest.raises(UserError, match=r"'small' .* memory ran out"):
            session.switch("other-task")
        assert_free(address)


def test_a_board_that_vanishes(artifact: Path, tracker: tuple[str, int], tmp_path: Path) -> None:
    address = BoardAddress(tracker, key="vanishing")
    served = board_processes.board(tracker, "vanishing", tmp_path, emulated=False)
    with served as server, connected_board(address) as board:
        session = board.load(artifact)
        # Its group is all of the board: as if the plug was pulled.
        board_processes.end_group(server)
        with pytest.raises(UserError, match=r"'vanishing' .* is gone"):
            session.run(np.zeros(session.manifest.input_shape, np.float32))
    with pytest.raises(UserError, match="knows no board 'vanishing'"), connected_board(address):
        pass


def test_a_board_that_does_not_answer(artifact: Path, tracker: tuple[str, int], tmp_path: Path) -> None:
    address = BoardAddress(tracker, key="frozen")
    served = board_processes.board(tracker, "frozen", tmp_path, emulated=False)
    with served as server, connected_board(address) as board:
        session = board.load(artifact)
        board._patience = 3
        os.killpg(server.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match=r"'frozen' .* gave no answer for 3 s"):
            session.switch("other-task")
        os.killpg(server.pid, signal.SIGCONT)


def test_a_damaged_artifact_is_not_sent(copied_artifact: Path, here: BoardAddress) -> None:
    with (copied_artifact / "model.so").open("ab") as library:
        library.write(b"more")
    with connected_board(here) as board, pytest.raises(UserError, match="copied incompletely"):
        board.load(copied_artifact)


def test_names_that_lead_out_of_an_artifact(copied_artifact: Path, here: BoardAddress, tmp_path: Path) -> None:
    manifest = json.loads((copied_artifact / "manifest.json").read_text())
    manifest["files"]["../outside"] = manifest["files"]["model.so"]
    shutil.copy(copied_artifact / "model.so", tmp_path / "outside")
    (copied_artifact / "manifest.json").write_text(json.dumps(manifest))
    with connected_board(here) as board, pytest.raises(UserError, match="lies outside"):
        board.load(copied_artifact)


def test_an_interrupted_server_leaves_nothing(tracker: tuple[str, int], tmp_path: Path) -> None:
    with board_processes.board(tracker, "stopped", tmp_path, emulated=False) as server:
        descendants = psutil.Process(server.pid).children(recursive=True)
        assert descendants
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 130
        _, alive = psutil.wait_procs(descendants, timeout=30)
        assert not alive


def test_two_clients_wait_for_each_other(artifact: Path, here: BoardAddress) -> None:
    images = np.zeros(json.loads((artifact / "manifest.json").read_text())["input_shape"], np.float32)
    results: list[np.ndarray] = []

    def client() -> None:
        with connected_board(here) as board:
            results.append(board.load(artifact).run(images))

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[0], results[1])
