"""The benchmark of slowed cores: both ways to give out loops compute the same on four threads, which have quotas."""

import os
import re
import runpy
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from peers.engine_process import answering_process
from peers.places import BENCHMARKS
from random_tasks import random_bundle
from slowed_cores import quotas
from slowed_cores.equal_parts import equal_parts
from small_transformers import make_transformer_known
from tiny_network import TINY, tiny

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.toolchains.targets import load_target


def test_both_ways_compute_the_same_on_a_thread_for_each_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The board's program, here, on artifacts for this machine."""
    make_transformer_known(monkeypatch, TINY, tiny)
    bundle, target = random_bundle(TINY, 32, ("kernel",)), load_target("host")
    with equal_parts():
        compile_bundle(bundle, target, tmp_path / "equal")
    compile_bundle(bundle, target, tmp_path / "shared")
    command = [sys.executable, "-m", "slowed_cores.board", "4", str(tmp_path / "equal"), str(tmp_path / "shared")]
    with answering_process(command, {}) as process:
        assert process.facts["equal_parts"] == [True, False]
        threads = process.facts["threads"]
        assert len({*threads}) == 4 and {*threads} <= {*map(int, os.listdir(f"/proc/{threads[0]}/task"))}
        answers = [process.ask(artifact=number) for number in (0, 1, 1, 0)]
    assert len({answer["logits"] for answer in answers}) == 1
    assert all(answer["seconds"] > 0 for answer in answers)


def test_a_thread_has_the_share_of_a_core_that_it_is_given() -> None:
    try:
        quotas.check_quotas()
    except UserError as error:
        pytest.skip(str(error))
    me = threading.get_native_id()
    with quotas.slowed_threads([me]) as (thread,):
        assert (thread.folder / "tasks").read_text().split() == [str(me)]
        for share in (0.4, 0.2):
            thread.allow(share)
            quota, period = (int((thread.folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            assert quota / period == share
    assert not thread.folder.exists()
    assert Path(f"/proc/self/task/{me}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()


@pytest.mark.parametrize(
    ("mounts", "message"),
    [("", "has mounted none"), ("cgroup {} cgroup rw,cpu 0 0\n", "none can be made in .* Run this as root")],
)
def test_a_machine_without_groups_is_told_so(
    mounts: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mounts").write_text(mounts.format(tmp_path / "no-folder"))
    monkeypatch.setattr(quotas, "MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(sys, "argv", ["slowed_cores.py"])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # The benchmark sets them, for itself alone.
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / "slowed_cores.py"), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line)
