"""Verify on the emulated board as two cores: every shipped task in every fold mode, and every architecture."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import board_processes
import pytest
from board_processes import needs_emulated_board
from random_tasks import random_bundle
from verifications import ARCHITECTURES, assert_all_passed

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.boards.address import BoardAddress
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import Bundle
from ksm_hw.report.verify import verify
from ksm_hw.toolchains.targets import CompileTarget, load_target

# Slow: what test_boards.py shows of one core and a small network, an emulator takes ten minutes to show of all.
pytestmark = [needs_emulated_board, pytest.mark.slow]

# QEMU's name of each core, and the target whose code it runs.
CORES = {"cortex-a72": "rpi4", "cortex-a76": "rpi5"}


@pytest.fixture(scope="module", params=CORES)
def core(
    request: pytest.FixtureRequest, tracker: tuple[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CompileTarget, BoardAddress]]:
    """A target, and a board with its core."""
    folder = tmp_path_factory.mktemp(request.param)
    with board_processes.board(tracker, request.param, folder, environment={"QEMU_CPU": request.param}):
        yield load_target(CORES[request.param]), BoardAddress(tracker=tracker, key=request.param)


@pytest.mark.parametrize("fold", ["switch", "bake", "fused"])
def test_every_shipped_task_in_every_mode(
    core: tuple[CompileTarget, BoardAddress], shipped_with_two_samples: Bundle, fold: FoldMode, tmp_path: Path
) -> None:
    target, board = core
    artifacts = compile_bundle(shipped_with_two_samples, target, tmp_path / "artifact", fold=fold)
    results = [result for artifact in artifacts for result in verify(artifact, board=board)]
    assert_all_passed(results, list(shipped_with_two_samples.packs), 2)
    assert all(result.agreement == 1 for result in results), results


@pytest.mark.parametrize("network", ARCHITECTURES)
def test_every_architecture(
    core: tuple[CompileTarget, BoardAddress], network: str, photographs: Path, tmp_path: Path
) -> None:
    target, board = core
    bundle = random_bundle(network, image_size=64, granularities=("kernel",))
    (artifact,) = compile_bundle(bundle, target, tmp_path / "artifact")
    assert_all_passed(verify(artifact, images=photographs, board=board), ["kernel-task"], 3)
    shutil.rmtree(artifact)  # VGG16's takes half a gigabyte.
