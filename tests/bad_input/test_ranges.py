"""Ranges that are missing, damaged or of something else: int8 says which command makes them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, add_calibration, add_task, load_bundle
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.task_pack import TaskPack, load_task_pack, save_task_pack
from ksm_hw.quantising.network import read_network
from ksm_hw.quantising.ranges import task_ranges


def ranges_of(pack: TaskPack, **changes: Any) -> Mapping[str, tuple[float, float]]:
    """What int8 takes of a pack whose calibration was changed."""
    network = read_network(pack.backbone, len(pack.classes), 32)
    whole = Calibration("minmax", 3, 32, pack.backbone_sha256, {name: (-1.0, 1.0) for name in network.ranged_tensors()})
    return task_ranges(network, dataclasses.replace(pack, calibration=dataclasses.replace(whole, **changes)))


def test_a_task_without_ranges_says_how_to_make_them(bundle: Bundle) -> None:
    pack = bundle.packs["kernel-task"]
    with pytest.raises(UserError, match=r"no ranges.*ksm-hw calibrate --task kernel-task"):
        task_ranges(read_network(pack.backbone, len(pack.classes), 32), pack)


@pytest.mark.parametrize(
    "bad", [(float("nan"), 1), (2, 1), (0, 0), (0.5, 1), (-1, float("inf")), (-2, -1), (0, 1e-44), (-1e30, 3)]
)
def test_a_range_that_is_none_is_refused(bundle: Bundle, bad: tuple[float, float]) -> None:
    pack = bundle.packs["kernel-task"]
    good = ranges_of(pack)
    with pytest.raises(UserError, match=r"'input'.*ksm-hw calibrate"):
        ranges_of(pack, ranges={**good, "input": bad})
    with pytest.raises(UserError, match=r"no range of the tensor 'input'.*ksm-hw calibrate"):
        ranges_of(pack, ranges={name: one for name, one in good.items() if name != "input"})


def test_ranges_of_another_backbone_or_image_size_are_refused(bundle: Bundle) -> None:
    pack = bundle.packs["kernel-task"]
    with pytest.raises(UserError, match=r"SHA-256 0000.*ksm-hw calibrate"):
        ranges_of(pack, backbone_sha256="0" * 64)
    with pytest.raises(UserError, match=r"64 pixels, and it takes 32.*ksm-hw calibrate"):
        ranges_of(pack, image_size=64)


def test_ranges_that_are_not_a_pair_a_tensor_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    from ksm_hw.masks.safetensors_file import read_arrays, write_arrays

    path = tmp_path / "pack"
    pack = bundle.packs["kernel-task"]
    found = Calibration("minmax", 3, 32, pack.backbone_sha256, {"input": (-1.0, float("nan")), "conv1.0": (0.0, 2.0)})
    save_task_pack(dataclasses.replace(pack, calibration=found), path)
    assert load_task_pack(path).calibration != found  # Not a number, which is told where ranges are used.
    assert load_task_pack(path).calibration.ranges["conv1.0"] == (0, 2)  # type: ignore[union-attr]
    arrays, metadata = read_arrays(path)
    write_arrays(path, {**arrays, "ranges": np.zeros((3, 2), np.float32)}, metadata)
    with pytest.raises(UserError, match=r"ranges of 2 tensors.*\[3, 2\]"):
        load_task_pack(path)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, str(result.exception if isinstance(result.exception, UserError) else result.output)


def test_calibrate_writes_the_ranges_into_the_pack(copied_bundle: Path, photographs: Path) -> None:
    before = load_bundle(copied_bundle).packs
    words = ("calibrate", "--bundle", copied_bundle, "--task", "kernel-task", "--data", photographs)
    code, output = run(*words, "--images", 4)
    assert "3 images to calibrate on, and 4 were asked for" in output
    code, output = run(*words, "--observer", "percentile")
    assert code == 0, output
    after = load_bundle(copied_bundle).packs
    found = after["kernel-task"].calibration
    assert found is not None and (found.images, found.observer) == (3, "percentile")
    task_ranges(
        read_network(after["kernel-task"].backbone, len(after["kernel-task"].classes), 32), after["kernel-task"]
    )
    assert dataclasses.replace(after["kernel-task"], calibration=None).nbytes == before["kernel-task"].nbytes
    assert after["other-task"].calibration is None


def test_ranges_of_a_task_that_was_replaced_meanwhile_are_not_written(copied_bundle: Path) -> None:
    bundle = load_bundle(copied_bundle)
    read = bundle.packs["kernel-task"]
    found = Calibration("minmax", 3, 32, read.backbone_sha256, {"input": (-1.0, 1.0)})
    renamed = dataclasses.replace(read, facts={"accuracy": 0.5})
    add_task(copied_bundle, renamed, bundle.tensors)  # The same task, of which somebody wrote more.
    assert add_calibration(copied_bundle, read, found).facts == {"accuracy": 0.5}
    now = load_bundle(copied_bundle).packs["kernel-task"]
    assert (now.calibration, now.facts) == (found, {"accuracy": 0.5})
    learned = dataclasses.replace(read, head_bias=read.head_bias + 1)
    add_task(copied_bundle, learned, bundle.tensors)
    with pytest.raises(UserError, match=r"'kernel-task'.*was replaced or removed while it was calibrated.*again"):
        add_calibration(copied_bundle, read, found)
    now = load_bundle(copied_bundle).packs["kernel-task"]
    assert now.calibration is None and (now.head_bias == learned.head_bias).all()
    with pytest.raises(UserError, match="replaced or removed"):
        add_calibration(copied_bundle, dataclasses.replace(read, task="gone"), found)


def test_calibrate_refuses_a_task_that_is_not_there(copied_bundle: Path, photographs: Path) -> None:
    _, output = run("calibrate", "--bundle", copied_bundle, "--task", "kernel-tusk", "--data", photographs)
    assert "Did you mean 'kernel-task'" in output
    _, output = run("calibrate", "--bundle", copied_bundle, "--task", "kernel-task", "--data", "/nowhere")
    assert "No folder and no data set" in output
