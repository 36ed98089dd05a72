"""What tests share: one compiled artifact with random tasks, real photographs, and the option --slow."""

import dataclasses
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import board_processes
import numpy as np
import pytest
import tvm  # noqa: F401  # With its compiler: `ksm-hw run` in a test's own process would import it without.
from once_for_all_workers import made_once
from PIL import Image
from random_tasks import SMALL_NETWORK, save_three_tasks, with_scale_bits
from skimage import data as photographs_of_skimage

from ksm_hw.boards.address import BoardAddress
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images
from ksm_hw.resources import shipped_bundle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three real photographs; read only."""

    def save(folder: Path) -> None:
        folder.mkdir()
        for name in ("astronaut", "cat", "coffee"):
            Image.fromarray(getattr(photographs_of_skimage, name)()).save(folder / f"{name}.png")

    return made_once(tmp_path_factory, "photographs", save)


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """Three random tasks over the small network; read only."""
    return made_once(tmp_path_factory, "bundle", lambda folder: save_three_tasks(SMALL_NETWORK, photographs, folder))


@pytest.fixture(scope="session")
def bundle(bundle_folder: Path) -> Bundle:
    """The bundle of `bundle_folder`, loaded."""
    return load_bundle(bundle_folder)


def compiled_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, bundle: Bundle, target: str = "host", **options: Any
) -> Path:
    """A bundle compiled for a target, by one of the processes that test beside each other."""

    def compile_into(folder: Path) -> None:
        from ksm_hw.compiler.compile import compile_bundle
        from ksm_hw.toolchains.targets import load_target

        compile_bundle(bundle, load_target(target), folder, **options)

    return made_once(tmp_path_factory, name, compile_into)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """The bundle compiled for this machine with `--fold switch`; read only: `copied_artifact` may be changed."""
    return compiled_once(tmp_path_factory, "artifact", bundle)


@pytest.fixture(scope="session")
def calibrated_bundle(bundle: Bundle) -> Bundle:
    """The bundle with ranges of its tasks' tensors, as int8 needs them, and with corrected biases of all but a task.

    Soft values have 8 bits, 4, and 32.
    BatchNorms leave channels all but 0 whose shift decides the scale of their weights, or which have none.
    """
    from ksm_hw.quantising.calibrate import calibrate

    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    packs = {}
    for task, pack in bundle.packs.items():
        norms = {name: array.copy() for name, array in pack.batch_norms.items()}
        for name in norms:
            if name.endswith(".weight"):
                norms[name][:3] = 1e-12, 0, 1e-22
        pack = dataclasses.replace(pack, batch_norms=norms)
        pack = with_scale_bits(pack, {"kernel-task": 8, "element-task": 4}.get(task, 32))
        found = calibrate(bundle, pack, [images], "minmax", correction="none" if task == "other-task" else "all")
        packs[task] = dataclasses.replace(pack, calibration=found)
    return dataclasses.replace(bundle, packs=packs)


@pytest.fixture(scope="session")
def int8_artifact(tmp_path_factory: pytest.TempPathFactory, calibrated_bundle: Bundle) -> Path:
    """That compiled in int8 for this machine; read only."""
    return compiled_once(tmp_path_factory, "int8-artifact", calibrated_bundle, precision="int8")


@pytest.fixture(scope="session")
def arm64_artifact(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> Path:
    """The bundle compiled for a Raspberry Pi 4, whichever machine this is; read only."""
    return compiled_once(tmp_path_factory, "arm64-artifact", bundle, "rpi4")


@pytest.fixture(scope="session")
def shipped_with_two_samples(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The shipped tasks, with two of each one's samples: for an emulator, which takes seconds for an inference."""
    shipped, samples = load_bundle(shipped_bundle()), tmp_path_factory.mktemp("samples")
    for task in shipped.packs:
        (samples / task).mkdir()
        for image in sample_images(shipped, task)[:2]:
            shutil.copy(image, samples / task)
    return dataclasses.replace(shipped, samples=samples)


@pytest.fixture(scope="session")
def shipped_on_arm64(tmp_path_factory: pytest.TempPathFactory, shipped_with_two_samples: Bundle) -> Path:
    """The tasks of `shipped_with_two_samples` compiled for any arm64 CPU, the runner beside them; read only."""
    return compiled_once(tmp_path_factory, "shipped-on-arm64", shipped_with_two_samples, "arm64", runner=True)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """This process, and what it starts, heed Ctrl-C: a shell has what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def copied_artifact(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return shutil.copytree(artifact, tmp_path / "artifact")


@pytest.fixture
def copied_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return shutil.copytree(bundle_folder, tmp_path / "bundle")


@pytest.fixture(scope="session")
def opencl() -> None:
    """An OpenCL device: this machine's GPU, or pocl on its CPU."""
    from ksm_hw.runtime.opencl.load import load_opencl_runtime

    try:
        load_opencl_runtime()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with board_processes.tracker(tmp_path_factory.mktemp("tracker")) as address:
        yield address


@pytest.fixture(scope="session")
def emulated(tracker: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[BoardAddress]:
    """A Cortex-A72, as a Raspberry Pi 4 has."""
    folder = tmp_path_factory.mktemp("emulated")
    with board_processes.board(tracker, "emulated", folder, environment={"QEMU_CPU": "cortex-a72"}):
        yield BoardAddress(tracker=tracker, key="emulated")
