"""int8 from end to end: compiled tasks give the logits of the integer model, bit for bit, after every switch."""

from pathlib import Path

import numpy as np
import pytest

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of
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


def test_what_int8_cannot_do_is_refused(calibrated_bundle: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every inference"):
        compile_bundle(calibrated_bundle, load_target("host"), tmp_path, precision="int8", fold="fused")
    with pytest.raises(UserError, match="GPU"):
        compile_bundle(calibrated_bundle, load_target("mali"), tmp_path, precision="int8", fold="bake")
    with pytest.raises(UserError, match="no ranges"):
        compile_bundle(bundle, load_target("host"), tmp_path, precision="int8")
