"""Tasks of methods that change the backbone, or widen it, are compiled as any other."""

from pathlib import Path

import pytest
from learned_noise import noise, refuse_to_calibrate
from tiny_network import TINY, make_known, save_tiny
from verifications import assert_all_passed

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import train_task
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.report.verify import verify
from ksm_hw.toolchains.targets import load_target


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        (LearningOptions("packnet", epochs=2, batch_size=8, mask_rate=6e-3), 9),
        # A goal that no network reaches at this rate: the second task's network grows once.
        (LearningOptions("cpg", epochs=2, batch_size=8, mask_rate=1e-6, accuracy_goal=1.0, max_width=1.5), 14),
    ],
    ids=["packnet", "cpg"],
)
def test_both_tasks_compute_what_pytorch_does(
    options: LearningOptions, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_known(monkeypatch)
    refuse_to_calibrate(monkeypatch)
    weights, folder = save_tiny(tmp_path / "weights.pt"), tmp_path / "bundle"
    narrow = LearningOptions(options.method, epochs=2, batch_size=8, mask_rate=6e-3)
    for seed, (task, how) in enumerate({"first": narrow, "second": options}.items()):
        train_task(noise(seed), task, folder, TINY, how, weights=weights, image_size=32)
    bundle = load_bundle(folder)
    assert len(bundle.tensors["0.0.weight"]) == channels
    (artifact,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")
    assert_all_passed(verify(artifact), ["first", "second"], images=9)
