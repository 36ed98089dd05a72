"""int8 equals the integer model bit for bit: all operators, networks and masks, by the instructions of every CPU."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from board_logits import logits_on_a_board
from board_processes import needs_emulated_board
from every_operator import IMAGES, every_operator, with_ranges
from random_tasks import random_bundle
from settled_networks import blurred_images
from tvm.target.codegen import llvm_get_system_cpu
from verifications import ARCHITECTURES

from ksm_hw.artifact.manifest import LIBRARY
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.masks.bundle import Bundle, load_bundle, sample_images
from ksm_hw.masks.input_batches import read_batches
from ksm_hw.masks.mask_format import GRANULARITIES
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of
from ksm_hw.report.verify_integers import IntegerCheck
from ksm_hw.resources import shipped_bundle
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.disassembly import disassemble
from ksm_hw.toolchains.targets import CompileTarget, load_target

# CPUs whose code this machine runs, with what it has for that by /proc/cpuinfo; boards are emulated.
HERE = {"haswell": "avx2", "alderlake": "avx_vnni", llvm_get_system_cpu(): "avx2"}
# Of each the core that runs it, by QEMU's name, and the instructions that must be in its code; `max` has i8mm.
CORES = {
    "rpi5": ("cortex-a76", {"sdot"}),
    "rpi4": ("cortex-a72", {"smull", "sadalp"}),
    "i8mm": ("max", {"smmla", "sdot"}),
}
BOARDS = [*CORES]
CPUS = [*HERE, *(pytest.param(board, marks=needs_emulated_board) for board in BOARDS)]
SWITCHES, MOST_GROWTH = 1000, 4 << 20


def target_of(cpu: str) -> CompileTarget:
    if cpu == "i8mm":
        with_i8mm = load_target("rpi5")
        return dataclasses.replace(with_i8mm, name=cpu, tvm={**with_i8mm.tvm, "mattr": ["+i8mm"]})
    if cpu in BOARDS:
        return load_target(cpu)
    with open("/proc/cpuinfo") as file:
        if not any(HERE[cpu] in line.split() for line in file if line.startswith("flags")):
            pytest.skip(f"this machine cannot run code for {cpu}")
    return dataclasses.replace(load_target("host"), tvm={"kind": "llvm", "mcpu": cpu, "num-cores": 2})


def assert_integer_model(
    bundle: Bundle, target: CompileTarget, images: dict[str, npt.NDArray[np.float32]], folder: Path
) -> None:
    """Compiles the tasks; here every tensor, on a board the logits of each are those of the integer model."""
    (artifact,) = compile_bundle(bundle, target, folder / "artifact", precision="int8")
    if target.name not in BOARDS:
        session = Session.load(artifact)
        for task in bundle.packs:
            session.switch(task)
            check = IntegerCheck(session, bundle)
            check.add(images[task])
            assert [one.tensor for one in check.tensors() if not one.equal] == [], task
        return
    models = {task: integer_model(network_of(bundle, pack), bundle, pack) for task, pack in bundle.packs.items()}
    core, instructions = CORES[target.name]
    code = disassemble(artifact / LIBRARY, "aarch64").values()
    assert instructions <= {instruction.mnemonic for function in code for instruction in function}
    computed = logits_on_a_board(artifact, target, images, folder, core)
    for task, model in models.items():
        assert np.array_equal(computed[task], model.logits(images[task])), task


def test_every_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = every_operator(monkeypatch)
    assert_integer_model(bundle, load_target("host"), dict.fromkeys(bundle.packs, IMAGES), tmp_path)


@pytest.mark.slow  # As long as all networks on one CPU.
@pytest.mark.parametrize("cpu", CPUS)
def test_every_operator_with_masks_of_every_granularity(
    cpu: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = every_operator(monkeypatch, GRANULARITIES)
    assert_integer_model(bundle, target_of(cpu), dict.fromkeys(bundle.packs, IMAGES), tmp_path)


def test_a_thousand_switches_are_those_of_fresh_sessions(calibrated_bundle: Bundle, int8_artifact: Path) -> None:
    images = blurred_images(1, 32).numpy()
    fresh = {}
    for task in calibrated_bundle.packs:
        session = Session.load(int8_artifact)
        session.switch(task)
        fresh[task] = session.run_all(images)
    assert len({logits.tobytes() for logits in fresh.values()}) == len(fresh)
    session, memory = Session.load(int8_artifact), psutil.Process().memory_info
    generator, begin = np.random.default_rng(0), 0
    for number in range(SWITCHES):
        task = generator.choice([other for other in fresh if other != session.task])
        assert session.switch(task) > 0
        assert np.array_equal(session.run_all(images), fresh[task]), (number, task)
        if number == SWITCHES // 10:  # What is made once is there.
            begin = memory().rss
    assert memory().rss - begin < MOST_GROWTH


@pytest.mark.slow  # Minutes for each CPU.
@pytest.mark.parametrize("cpu", CPUS)
def test_every_shipped_task(cpu: str, tmp_path: Path) -> None:
    bundle = load_bundle(shipped_bundle())
    images = {}
    for task, pack in bundle.packs.items():
        _, images[task] = next(iter(read_batches(sample_images(bundle, task)[:2], pack.preprocessing, 2)))
    assert_integer_model(bundle, target_of(cpu), images, tmp_path)


@pytest.mark.slow  # Minutes for each network.
@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("network", [*ARCHITECTURES, "mobilenet_v3_small", "efficientnet_b0"])
def test_every_architecture_with_masks_of_every_granularity(network: str, cpu: str, tmp_path: Path) -> None:
    size = 224 if network == "vgg16_bn" else 64  # VGG16 pools smaller maps to larger ones, which int8 does not know.
    bundle = with_ranges(random_bundle(network, size))
    images = dict.fromkeys(bundle.packs, blurred_images(1, size, seed=1).numpy())
    assert_integer_model(bundle, target_of(cpu), images, tmp_path)
