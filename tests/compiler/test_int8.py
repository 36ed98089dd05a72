"""int8 from end to end: compiled tasks give the logits of the integer model, bit for bit, after every switch."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from random_tasks import SMALL_NETWORK, random_bundle

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import read_network
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target

IMAGES = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def calibrated() -> Bundle:
    """Two tasks of different scales and masks."""
    bundle = random_bundle(SMALL_NETWORK, image_size=32, granularities=("kernel", "group"))
    packs = {
        task: dataclasses.replace(pack, calibration=calibrate(bundle, pack, [IMAGES], "minmax"))
        for task, pack in bundle.packs.items()
    }
    return dataclasses.replace(bundle, packs=packs)


def test_compiled_tasks_are_the_integer_model(calibrated: Bundle, tmp_path: Path) -> None:
    (artifact,) = compile_bundle(calibrated, load_target("host"), tmp_path / "artifact", precision="int8")
    session = Session.load(artifact)
    assert session.manifest.precision == "int8"
    for task in [*calibrated.packs, *calibrated.packs]:
        pack = calibrated.packs[task]
        model = integer_model(read_network(SMALL_NETWORK, len(pack.classes), 32), calibrated, pack)
        session.switch(task)
        assert np.array_equal(session.run_all(IMAGES), model.logits(IMAGES)), task


def test_what_int8_cannot_do_is_refused(calibrated: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every inference"):
        compile_bundle(calibrated, load_target("host"), tmp_path, precision="int8", fold="fused")
    with pytest.raises(UserError, match="GPU"):
        compile_bundle(calibrated, load_target("mali"), tmp_path, precision="int8", fold="bake")
    with pytest.raises(UserError, match="no ranges"):
        compile_bundle(bundle, load_target("host"), tmp_path, precision="int8")
