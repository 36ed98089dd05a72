"""int8 from end to end: compiled tasks give the logits of the integer model, bit for bit, after every switch."""

from pathlib import Path

import numpy as np
import pytest
import tvm
from board_logits import logits_on_a_board
from board_processes import needs_emulated_board
from typer.testing import CliRunner

from ksm_hw.artifact.parameters import FEWEST_SOFT_VALUES
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.tuning.tune import tune_functions
from ksm_hw.compiler.tuning.tuning_records import create_records
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.soft_mask import binary_mask
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of
from ksm_hw.runtime.device_session import bytes_of
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)


def test_compiled_tasks_are_the_integer_model(calibrated_bundle: Bundle, int8_artifact: Path) -> None:
    session = Session.load(int8_artifact)
    assert session.manifest.precision == "int8"
    for task in [*calibrated_bundle.packs, *calibrated_bundle.packs]:
        pack = calibrated_bundle.packs[task]
        model = integer_model(network_of(calibrated_bundle, pack), calibrated_bundle, pack)
        session.switch(task)
        assert np.array_equal(session.run_all(IMAGES), model.logits(IMAGES)), task


def test_soft_values_are_uploaded_as_they_are_coded(calibrated_bundle: Bundle, int8_artifact: Path) -> None:
    """A byte each of those of 8 and 4 bits, where one that is decoded takes four."""
    session = Session.load(int8_artifact)
    for task, size in (("kernel-task", 1), ("element-task", 1), ("other-task", 4)):
        names = session.manifest.tasks[task].parameters
        uploaded = dict(zip(names, session._uploaded_tasks[task].parameters, strict=True))
        for layer, mask in calibrated_bundle.packs[task].masks.items():
            zeros = int((~binary_mask(mask)).sum())
            assert bytes_of([uploaded[f"mask/{layer}/scale"]]) == size * max(zeros, FEWEST_SOFT_VALUES), (task, layer)


def test_what_int8_cannot_do_is_refused(calibrated_bundle: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every inference"):
        compile_bundle(calibrated_bundle, load_target("host"), tmp_path, precision="int8", fold="fused")
    with pytest.raises(UserError, match="GPU"):
        compile_bundle(calibrated_bundle, load_target("mali"), tmp_path, precision="int8", fold="bake")
    with pytest.raises(UserError, match=r"--batch 1000000 .* values.*fewer images"):
        compile_bundle(calibrated_bundle, load_target("host"), tmp_path, precision="int8", batch=10**6)
    with pytest.raises(UserError, match="no ranges"):
        compile_bundle(bundle, load_target("host"), tmp_path, precision="int8")


@pytest.mark.slow  # An emulated board takes a minute, and loops of its own kernels half of one to compile.
@needs_emulated_board
@pytest.mark.parametrize("board", ["rpi5", "rpi4"])
def test_tasks_on_a_board_are_the_integer_model(calibrated_bundle: Bundle, board: str, tmp_path: Path) -> None:
    target = load_target(board)
    (artifact,) = compile_bundle(calibrated_bundle, target, tmp_path / "artifact", precision="int8")
    computed = logits_on_a_board(artifact, target, dict.fromkeys(calibrated_bundle.packs, IMAGES), tmp_path)
    for task, pack in calibrated_bundle.packs.items():
        model = integer_model(network_of(calibrated_bundle, pack), calibrated_bundle, pack)
        assert np.array_equal(computed[task], model.logits(IMAGES)), task


def test_operators_without_a_choice_are_not_tuned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to tune"):
        tune_functions(tvm.IRModule(), create_records(tmp_path, load_target("host")), None, trials=1)  # type: ignore[arg-type]
    result = CliRunner().invoke(
        app, ["tune", "--target", "host", "--ir", "relay", "--precision", "int8", "-o", str(tmp_path)]
    )
    assert isinstance(result.exception, UserError) and "Relay tunes in float32" in str(result.exception)


def test_compiling_without_ranges_or_through_relay(bundle_folder: Path, tmp_path: Path) -> None:
    command = ["compile", "--target", "host", "--task", "all", "--bundle", str(bundle_folder), "--precision", "int8"]
    command += ["-o", str(tmp_path / "artifact")]
    for more, message in ([], "ksm-hw calibrate --task element-task"), (["--ir", "relay"], "Relay compiles in float32"):
        result = CliRunner().invoke(app, [*command, *more])
        assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not (tmp_path / "artifact").exists()
