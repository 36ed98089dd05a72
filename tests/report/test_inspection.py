"""What is said of masks is what is in them, counted here another way."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.safetensors_file import read_arrays
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.masks.task_pack import save_task_pack
from ksm_hw.report.inspection import BINS, inspect_packs


def test_shares_overlaps_and_soft_values_are_those_of_the_masks(bundle: Bundle, tmp_path: Path) -> None:
    found = inspect_packs("here", bundle.packs)
    for task in found.tasks:
        pack = bundle.packs[task.task]
        assert [layer.layer for layer in task.layers] == list(pack.masks)
        save_task_pack(pack, tmp_path / task.task, coded=True)
        assert task.pack_bytes == sum(array.nbytes for array in read_arrays(tmp_path / task.task)[0].values())
        for layer in task.layers:
            soft = unpack_mask(pack.masks[layer.layer])
            others = soft[soft != 1]
            assert layer.ones == pytest.approx((soft == 1).mean()) and layer.values == soft.size
            assert layer.soft_range == pytest.approx((others.min(), others.max()))
            assert sum(layer.soft_counts) == others.size and len(layer.soft_counts) == BINS
    (overlap,) = found.overlaps  # Of the tasks with masks of one granularity.
    assert overlap.tasks == ("kernel-task", "other-task")
    first, second = (bundle.packs[task].masks for task in overlap.tasks)
    for layer, shared in overlap.layers.items():
        left, right = unpack_mask(first[layer]) == 1, unpack_mask(second[layer]) == 1
        assert shared == pytest.approx((left & right).sum() / (left | right).sum())


@pytest.mark.parametrize(("values", "bits", "expected"), [
    # 3 of 4 are ones: 4 · H(1/4) bits; of a ternary mask also the code of the others; float32 counts as it is.
    ((1, 1, 1, 0), 0, 4 * 0.8112781 / 8),
    ((1, 1, 0, -1), 1, (4 * 1 + 2 * 1) / 8),
    ((1, 1, 1, 1), 0, 0),
    ((1, 1, 0.25, 0.5), 32, 4 / 8 + 8),
])  # fmt: skip
def test_entropy(bundle: Bundle, values: tuple[float, ...], bits: int, expected: float) -> None:
    mask = pack_mask(np.array(values, np.float32), bits)  # type: ignore[arg-type]
    pack = dataclasses.replace(bundle.packs["kernel-task"], masks={"layer": mask})
    (task,) = inspect_packs("here", {"task": pack}).tasks
    assert math.isclose(task.layers[0].entropy_bytes, expected, abs_tol=1e-6)
    assert task.layers[0].stored_bytes == mask.nbytes


@pytest.mark.parametrize("other", [np.nextafter(np.float32(0.3), np.float32(1)), np.float32(0.3000001)])
def test_soft_values_next_to_each_other_are_counted(bundle: Bundle, other: np.float32) -> None:
    mask = pack_mask(np.array([1, 0.3, other], np.float32))
    pack = dataclasses.replace(bundle.packs["kernel-task"], masks={"layer": mask})
    (layer,) = inspect_packs("here", {"task": pack}).tasks[0].layers
    assert layer.soft_counts == (1, *(0,) * (BINS - 2), 1)


def test_the_command_says_it_in_the_terminal_as_json_and_as_a_page(bundle_folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "masks.html"
    runner = CliRunner()
    said = runner.invoke(app, ["inspect", str(bundle_folder), "--html", str(page)], catch_exceptions=False)
    assert (
        said.exit_code == 0 and "Layers of element-task" in said.output and "kernel-task and other-task" in said.output
    )
    text = page.read_text()
    assert text.count("<svg") == 5 and "Share of ones by task and layer" in text and "default-src 'none'" in text
    pack = bundle_folder / "tasks" / "kernel-task.safetensors"
    one = json.loads(runner.invoke(app, ["inspect", str(pack), "--json"], catch_exceptions=False).stdout)
    assert [task["task"] for task in one["tasks"]] == ["kernel-task"] and one["overlaps"] == []
