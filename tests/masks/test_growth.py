"""A backbone is replaced only where every older task keeps its masked weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from random_tasks import SMALL_NETWORK, random_bundle

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, add_tasks_over, load_bundle, save_bundle
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.growth import carried_over, padded_tensor
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import broadcast_mask, check_packed, pack_mask, padded, padded_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack

LAYER = "conv1.0"
WEIGHT = f"{LAYER}.weight"
HEAD = (1024,)  # Features of the small network.


def can_grow() -> None:
    """Of a network that can; the small one cannot, and need not where shapes stay."""


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
    assert add_tasks_over(tmp_path, [later(pruned, tensors)], tensors, can_grow) == ["element-task"]
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
        add_tasks_over(tmp_path, [later(pruned, tensors)], tensors, can_grow)
    assert before == {path: path.read_bytes() for path in before}
    # The task itself may be replaced.
    same_name = dataclasses.replace(later(pruned, tensors), task="element-task")
    assert add_tasks_over(tmp_path, [same_name], tensors, can_grow) == []


def test_in_a_wider_network_a_task_has_the_first_channels(pruned: Bundle) -> None:
    pack = pruned.packs["element-task"]
    without = {layer: mask for layer, mask in pack.masks.items() if layer != LAYER}
    norms = {name: array for name, array in pack.batch_norms.items() if not name.startswith("conv1.1.")}
    pack = dataclasses.replace(pack, masks=without, batch_norms=norms)
    outputs, wide = len(pruned.tensors[WEIGHT]), with_wider_first_layer(pruned)
    carried = carried_over(pack, pruned.tensors, wide, "new", HEAD)
    mask = unpack_mask(carried.masks[LAYER])
    assert (mask[:outputs] == 1).all() and not mask[outputs:].any()
    for leaf, beyond in (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        found = carried.batch_norms[f"conv1.1.{leaf}"]
        np.testing.assert_array_equal(found[:outputs], pruned.tensors[f"conv1.1.{leaf}"])
        assert (found[outputs:] == beyond).all()
    assert all(carried.masks[layer] is mask for layer, mask in without.items())
    with pytest.raises(UserError, match="has shape"):
        carried_over(pack, wide, dict(pruned.tensors), "new", HEAD)


def with_wider_first_layer(bundle: Bundle) -> dict[str, np.ndarray]:
    wide = dict(bundle.tensors)
    wide[WEIGHT] = np.concatenate([wide[WEIGHT], np.full((3, *wide[WEIGHT].shape[1:]), 7, np.float32)])
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        wide[f"conv1.1.{leaf}"] = np.concatenate([wide[f"conv1.1.{leaf}"], np.full(3, 7, np.float32)])
    return wide


def test_heads_of_older_tasks_take_the_features_of_a_wider_network(pruned: Bundle, tmp_path: Path) -> None:
    save_bundle(pruned, tmp_path)
    wide = with_wider_first_layer(pruned)
    new = later(pruned, wide)
    masks = {**new.masks, LAYER: padded_mask(new.masks[LAYER], wide[WEIGHT].shape)}
    norms = {name: padded_tensor(name, array, wide[name].shape) for name, array in new.batch_norms.items()}
    head = padded(new.head_weight, (len(new.head_weight), HEAD[0] + 5))
    new = dataclasses.replace(new, masks=masks, batch_norms=norms, head_weight=head)
    add_tasks_over(tmp_path, [new], wide, can_grow)
    grown = load_bundle(tmp_path).packs["element-task"]
    older = pruned.packs["element-task"]
    np.testing.assert_array_equal(grown.head_weight[:, : HEAD[0]], older.head_weight)
    assert grown.head_weight.shape[1] == HEAD[0] + 5 and not grown.head_weight[:, HEAD[0] :].any()
    with pytest.raises(UserError, match="the head takes"):
        carried_over(older, pruned.tensors, wide, "new", (HEAD[0] - 1,))
    # Nor beside each other over one backbone.
    narrow_head = dataclasses.replace(new, task="other", head_weight=older.head_weight)
    with pytest.raises(UserError, match=r"takes \[1029\] features.*takes \[1024\]"):
        add_tasks_over(tmp_path, [narrow_head], wide, can_grow)
    assert "other" not in load_bundle(tmp_path).packs


def test_older_tasks_come_into_other_shapes_only_where_the_network_can_grow(pruned: Bundle, tmp_path: Path) -> None:
    save_bundle(pruned, tmp_path)
    wide = with_wider_first_layer(pruned)
    new = dataclasses.replace(later(pruned, wide), masks={}, batch_norms={})

    def cannot_grow() -> None:
        raise UserError("cannot grow")

    with pytest.raises(UserError, match="cannot grow"):
        add_tasks_over(tmp_path, [new], wide, cannot_grow)
    assert load_bundle(tmp_path).packs.keys() == pruned.packs.keys()
    # It is not asked where nothing is widened, or no older task stays.
    tensors = with_free_weights_changed(pruned)
    add_tasks_over(tmp_path, [later(pruned, tensors)], tensors, cannot_grow)
    names = ("element-task", "later")
    add_tasks_over(tmp_path, [dataclasses.replace(new, task=name) for name in names], wide, cannot_grow)


def test_calibration_and_bits_of_soft_values_stay(pruned: Bundle) -> None:
    pack = pruned.packs["element-task"]
    soft = np.random.default_rng(0).uniform(0, 0.5, pack.masks[LAYER].shape).astype(np.float32)
    soft.flat[0], soft.flat[1:99] = 0, 1
    wide = with_wider_first_layer(pruned)
    biases = {name: array + 1 for name, array in pack.batch_norms.items() if name.endswith(".bias")}
    biases["head/bias"] = pack.head_bias + 1
    calibration = Calibration("minmax", 8, 32, pack.backbone_sha256, {"x": (0.0, 1.0)}, biases)
    for bits in (4, 8):
        packed = pack_mask(soft, bits)
        small = dataclasses.replace(pack, masks={**pack.masks, LAYER: packed}, calibration=calibration)
        carried = carried_over(small, pruned.tensors, wide, "new", HEAD)
        assert carried.calibration is not None
        assert (carried.calibration.backbone_sha256, carried.calibration.ranges) == ("new", calibration.ranges)
        for name, bias in carried.calibration.biases.items():
            np.testing.assert_array_equal(bias, padded(biases[name], wide.get(name, biases[name]).shape))
        assert carried.calibration.biases.keys() == biases.keys()
        mask = carried.masks[LAYER]
        assert mask.scale_bits == bits
        check_packed(mask, "here")
        np.testing.assert_array_equal(unpack_mask(mask), padded(unpack_mask(packed), wide[WEIGHT].shape))
    # Where no code means 0, nothing may be lost either.
    packed = pack_mask(np.maximum(soft, np.float32(0.1)), 8)
    mask = padded_mask(packed, wide[WEIGHT].shape)
    np.testing.assert_array_equal(unpack_mask(mask), padded(unpack_mask(packed), wide[WEIGHT].shape))


def test_a_backbone_that_a_package_carries_replaces_the_file_of_another(
    pruned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_bundle(pruned, tmp_path)
    tensors = with_free_weights_changed(pruned)
    monkeypatch.setattr("ksm_hw.masks.bundle.packaged_tensors", lambda name: tensors)
    add_tasks_over(tmp_path, [later(pruned, tensors)], tensors, can_grow)
    assert not (tmp_path / "backbone.safetensors").exists()
    assert load_bundle(tmp_path).packs.keys() == {"element-task", "later"}


def test_samples_of_a_task_that_is_replaced_go_with_it(pruned: Bundle, tmp_path: Path) -> None:
    save_bundle(pruned, tmp_path)
    for task in ("element-task", "another"):
        (tmp_path / "samples" / task).mkdir(parents=True)
        (tmp_path / "samples" / task / "00-cat.png").touch()
    add_tasks_over(tmp_path, list(pruned.packs.values()), pruned.tensors, can_grow)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["another"]


def test_a_weight_without_a_mask_must_stay(pruned: Bundle) -> None:
    pack = dataclasses.replace(pruned.packs["element-task"], masks={})
    with pytest.raises(UserError, match=f"'{WEIGHT}', which it uses without a mask, is another"):
        carried_over(pack, pruned.tensors, with_free_weights_changed(pruned), "new", HEAD)
