"""A backbone is replaced only where every older task keeps its masked weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from random_tasks import SMALL_NETWORK, random_bundle

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, add_tasks_over, load_bundle, save_bundle, sha256_of_tensors
from ksm_hw.masks.growth import carried_over
from ksm_hw.masks.soft_mask import broadcast_mask, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack

LAYER = "conv1.0"
WEIGHT = f"{LAYER}.weight"


@pytest.fixture(scope="module")
def pruned() -> Bundle:
    """A bundle whose task leaves half of the weights free, by zeros of its masks."""
    bundle = random_bundle(SMALL_NETWORK, 32, ("element",))
    pack = bundle.packs["element-task"]
    masks = {}
    for layer, mask in pack.masks.items():
        binary = (unpack_mask(mask) == 1).astype(np.float32)
        masks[layer] = pack_mask(binary, 0)
    return dataclasses.replace(bundle, packs={pack.task: dataclasses.replace(pack, masks=masks)})


def masked_weight(bundle: Bundle, pack: TaskPack, layer: str) -> np.ndarray:
    weight = bundle.tensors[f"{layer}.weight"]
    return weight * broadcast_mask(unpack_mask(pack.masks[layer]), weight.shape, pack.granularity)


def later(bundle: Bundle, tensors: dict[str, np.ndarray]) -> TaskPack:
    """Another task, over other tensors."""
    (pack,) = bundle.packs.values()
    return dataclasses.replace(pack, task="later", backbone_sha256=sha256_of_tensors(tensors))


def with_free_weights_changed(bundle: Bundle) -> dict[str, np.ndarray]:
    (pack,) = bundle.packs.values()
    tensors = {name: array.copy() for name, array in bundle.tensors.items()}
    for layer, mask in pack.masks.items():
        free = unpack_mask(mask) == 0
        tensors[f"{layer}.weight"][free] += 1
    tensors["conv1.1.bias"] += 1  # A BatchNorm's, which the older task has of its own.
    return tensors


def test_free_weights_may_change_and_older_tasks_keep_theirs(pruned: Bundle, tmp_path: Path) -> None:
    save_bundle(pruned, tmp_path)
    tensors = with_free_weights_changed(pruned)
    assert add_tasks_over(tmp_path, [later(pruned, tensors)], tensors) == ["element-task"]
    grown = load_bundle(tmp_path)
    assert set(grown.packs) == {"element-task", "later"} and grown.backbone_sha256 == sha256_of_tensors(tensors)
    for layer in pruned.packs["element-task"].masks:
        before = masked_weight(pruned, pruned.packs["element-task"], layer)
        assert (before == masked_weight(grown, grown.packs["element-task"], layer)).all()
    assert not np.array_equal(grown.tensors[WEIGHT], pruned.tensors[WEIGHT])


def test_nothing_is_replaced_where_one_weight_of_an_older_task_would_change(pruned: Bundle, tmp_path: Path) -> None:
    save_bundle(pruned, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tensors = with_free_weights_changed(pruned)
    used = np.argwhere(unpack_mask(pruned.packs["element-task"].masks[LAYER]) == 1)[-1]
    tensors[WEIGHT][tuple(used)] = np.nextafter(tensors[WEIGHT][tuple(used)], np.float32(9))
    with pytest.raises(UserError, match=rf"'element-task' would change: masked weights of '{LAYER}' are others"):
        add_tasks_over(tmp_path, [later(pruned, tensors)], tensors)
    assert before == {path: path.read_bytes() for path in before}
    # The task itself may be replaced.
    same_name = dataclasses.replace(later(pruned, tensors), task="element-task")
    assert add_tasks_over(tmp_path, [same_name], tensors) == []


def test_in_a_wider_network_a_task_has_the_first_channels(pruned: Bundle) -> None:
    pack = pruned.packs["element-task"]
    without = {layer: mask for layer, mask in pack.masks.items() if layer != LAYER}
    norms = {name: array for name, array in pack.batch_norms.items() if not name.startswith("conv1.1.")}
    pack = dataclasses.replace(pack, masks=without, batch_norms=norms)
    wide = {name: array.copy() for name, array in pruned.tensors.items()}
    outputs, *rest = wide[WEIGHT].shape
    wide[WEIGHT] = np.concatenate([wide[WEIGHT], np.full((3, *rest), 7, np.float32)])
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        wide[f"conv1.1.{leaf}"] = np.concatenate([wide[f"conv1.1.{leaf}"], np.full(3, 7, np.float32)])
    carried = carried_over(pack, pruned.tensors, wide, "new")
    mask = unpack_mask(carried.masks[LAYER])
    assert (mask[:outputs] == 1).all() and not mask[outputs:].any()
    for leaf, beyond in (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        found = carried.batch_norms[f"conv1.1.{leaf}"]
        np.testing.assert_array_equal(found[:outputs], pruned.tensors[f"conv1.1.{leaf}"])
        assert (found[outputs:] == beyond).all()
    assert all(carried.masks[layer] is mask for layer, mask in without.items())
    with pytest.raises(UserError, match="has shape"):
        carried_over(pack, wide, dict(pruned.tensors), "new")


def test_a_weight_without_a_mask_must_stay(pruned: Bundle) -> None:
    pack = dataclasses.replace(pruned.packs["element-task"], masks={})
    with pytest.raises(UserError, match=f"'{WEIGHT}', which it uses without a mask, is another"):
        carried_over(pack, pruned.tensors, with_free_weights_changed(pruned), "new")
