"""Files of task packs and bundles: what is written is what is read, and what does not fit is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from damage import unsealed
from random_tasks import random_bundle

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import (
    Bundle,
    add_task,
    check_pack_fits,
    check_task_name,
    load_bundle,
    save_bundle,
    select_tasks,
    sha256_of_tensors,
)
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.mask_format import GRANULARITIES
from ksm_hw.masks.safetensors_file import read_arrays, write_arrays
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack, load_task_pack, save_task_pack


@pytest.fixture(scope="module")
def every_granularity() -> Bundle:
    """One task for each granularity, the last with soft values of 4 bits, with what a person may write in facts."""
    bundle = random_bundle("shufflenet_v2_x0_5", image_size=32)
    packs = dict(bundle.packs)
    masks = {layer: pack_mask(unpack_mask(mask), 4) for layer, mask in packs["group-task"].masks.items()}
    facts = {"accuracy": 0.5, "command": "ksm-hw train --task ‘ä’"}
    classes = tuple("äöüßabcdefg")
    packs["group-task"] = dataclasses.replace(packs["group-task"], masks=masks, facts=facts, classes=classes)
    return dataclasses.replace(bundle, packs=packs)


def assert_same_pack(left: TaskPack, right: TaskPack) -> None:
    def without_arrays(pack: TaskPack) -> dict[str, Any]:
        arrays = ("masks", "batch_norms", "parameters", "head_weight", "head_bias")
        return {key: value for key, value in vars(pack).items() if key not in arrays}

    assert without_arrays(left) == without_arrays(right)
    assert left.masks.keys() == right.masks.keys()
    for layer, mask in left.masks.items():
        other = right.masks[layer]
        assert (mask.shape, mask.scale_bits, mask.scale_range) == (other.shape, other.scale_bits, other.scale_range)
        assert_same_bits(mask.bits, other.bits)
        assert_same_bits(mask.scale, other.scale)
        assert_same_bits(unpack_mask(mask), unpack_mask(other))
    for own, other_s in ((left.batch_norms, right.batch_norms), (left.parameters, right.parameters)):
        assert own.keys() == other_s.keys()
        for name, array in own.items():
            assert_same_bits(array, other_s[name])
    assert_same_bits(left.head_weight, right.head_weight)
    assert_same_bits(left.head_bias, right.head_bias)


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_pack_is_read_as_it_was_written(every_granularity: Bundle, tmp_path: Path, granularity: str) -> None:
    pack = every_granularity.packs[f"{granularity}-task"]
    path = tmp_path / "pack.safetensors"
    save_task_pack(pack, path)
    loaded = load_task_pack(path)
    assert_same_pack(loaded, pack)
    assert loaded.nbytes == pack.nbytes
    # The file holds the tensors and a header, and nothing else.
    assert 0 < path.stat().st_size - pack.nbytes < 60_000


@pytest.mark.parametrize(
    "change", [{"classes": tuple("abcd\udcff")}, {"facts": {"source": "k\udcff.pt"}}, {"facts": {"accuracy": np.nan}}]
)
def test_a_header_that_nobody_could_read_is_not_written(
    every_granularity: Bundle, tmp_path: Path, change: dict[str, object]
) -> None:
    pack = dataclasses.replace(every_granularity.packs["kernel-task"], **change)
    with pytest.raises(UserError, match="'kernel-task' cannot be written"):
        save_task_pack(pack, tmp_path / "pack.safetensors")
    assert not list(tmp_path.iterdir())


def with_more(pack: TaskPack) -> TaskPack:
    """A pack with a tensor of its own beside its BatchNorms, and a ternary mask: of format version 2."""
    masks = {**pack.masks, "fc1": pack_mask(np.array([[1, 0], [-1, 1]], np.float32), 1)}
    return dataclasses.replace(pack, masks=masks, parameters={"fc1.bias": np.array([2, 3], np.float32)})


def test_biases_and_ternary_masks_are_read_as_they_were_written_and_make_a_pack_of_version_2(
    every_granularity: Bundle, tmp_path: Path
) -> None:
    plain = every_granularity.packs["kernel-task"]
    for pack, version in ((plain, 1), (with_more(plain), 2)):
        save_task_pack(pack, tmp_path / "pack.safetensors")
        assert_same_pack(load_task_pack(tmp_path / "pack.safetensors"), pack)
        assert pack.nbytes == plain.nbytes + (10 if version == 2 else 0)
        _, metadata = read_arrays(tmp_path / "pack.safetensors")
        assert json.loads(metadata["ksm-hw"])["format_version"] == version


def test_masks_of_weights_with_other_names_make_a_pack_of_version_6(every_granularity: Bundle, tmp_path: Path) -> None:
    plain, path = every_granularity.packs["kernel-task"], tmp_path / "pack.safetensors"
    masks = {**plain.masks, "attention.in_proj_weight": pack_mask(np.array([[1, 0.5]], np.float32))}
    pack = dataclasses.replace(plain, masks=masks)
    for coded in (False, True):
        save_task_pack(pack, path, coded)
        assert json.loads(read_arrays(path)[1]["ksm-hw"])["format_version"] == 6
        assert_same_pack(load_task_pack(path), pack)


def with_biases(pack: TaskPack, **biases: np.ndarray) -> TaskPack:
    found = Calibration("minmax", 3, 32, pack.backbone_sha256, {"input": (-1.0, 1.0)}, biases)
    return dataclasses.replace(pack, calibration=found)


def test_biases_for_int8_are_read_as_they_were_written_and_make_a_pack_of_version_4(
    every_granularity: Bundle, tmp_path: Path
) -> None:
    plain, path = every_granularity.packs["kernel-task"], tmp_path / "pack.safetensors"
    name = next(name for name in plain.batch_norms if name.endswith(".bias"))
    biases = {name: plain.batch_norms[name] + 1, "head/bias": plain.head_bias + 1}
    save_task_pack(with_biases(plain, **biases), path)
    assert json.loads(read_arrays(path)[1]["ksm-hw"])["format_version"] == 4
    loaded = load_task_pack(path)
    assert loaded.nbytes == plain.nbytes + 8 + sum(array.nbytes for array in biases.values())
    assert_same_pack(dataclasses.replace(loaded, calibration=None), plain)
    assert_same_bits(loaded.for_int8.batch_norms[name], biases[name])
    assert_same_bits(loaded.for_int8.head_bias, biases["head/bias"])
    assert loaded.for_int8.parameters == {} and loaded.for_int8.head_weight is loaded.head_weight


def test_biases_for_int8_that_fit_nothing_are_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    plain, path = every_granularity.packs["kernel-task"], tmp_path / "pack.safetensors"
    save_task_pack(with_biases(plain, **{"head/bias": np.zeros(3, np.float32)}), path)
    with pytest.raises(UserError, match=rf"bias \[3\] and \[{len(plain.classes)}\]"):
        load_task_pack(path)
    save_task_pack(with_biases(plain, **{"head/bias": np.full_like(plain.head_bias, np.nan)}), path)
    with pytest.raises(UserError, match="not finite"):
        load_task_pack(path)
    for name, expected in (("nothing.bias", "no such tensor"), (next(iter(plain.batch_norms)), r"\[24\]")):
        pack = with_biases(plain, **{name: np.zeros(3, np.float32)})
        with pytest.raises(UserError, match=rf"'{name}' with shape \[3\]; expected {expected}"):
            check_pack_fits(pack, "", pack.backbone_sha256, every_granularity.tensors)


def test_a_task_has_a_mask_of_a_weight_or_its_own_weight_and_not_both(
    every_granularity: Bundle, tmp_path: Path
) -> None:
    own = {"conv1.0.weight": every_granularity.tensors["conv1.0.weight"]}
    changed_pack(every_granularity, tmp_path, "kernel-task", parameters=own)
    with pytest.raises(UserError, match=r"has 'conv1.0.weight' with shape .*; expected no such tensor"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["head_weight", "head_bias", "batch_norms", "masks"])
def test_numbers_that_are_not_finite_are_refused(
    every_granularity: Bundle, tmp_path: Path, where: str, wrong: float
) -> None:
    pack = every_granularity.packs["kernel-task"]
    if where == "masks":
        layer, mask = next(iter(pack.masks.items()))
        changed: Any = {**pack.masks, layer: dataclasses.replace(mask, scale=np.full_like(mask.scale, wrong))}
    elif where == "batch_norms":
        name, array = next(iter(pack.batch_norms.items()))
        changed = {**pack.batch_norms, name: np.full_like(array, wrong)}
    else:
        changed = getattr(pack, where).copy()
        changed.flat[3] = wrong
    save_task_pack(dataclasses.replace(pack, **{where: changed}), tmp_path / "pack.safetensors")
    with pytest.raises(UserError, match="not finite"):
        load_task_pack(tmp_path / "pack.safetensors")


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("image_size", 64, "images of 32 pixels cannot be cropped to 64"),
        ("std", (1e-46, 1.0, 1.0), "Expected `float` >= 1e-06"),
        ("classes", (), "Expected `array` of length >= 1"),
    ],
)
def test_headers_that_no_image_can_be_classified_by(
    every_granularity: Bundle, tmp_path: Path, entry: str, value: Any, said: str
) -> None:
    """The runner would read before an image's first row, and the network see infinity."""
    pack = every_granularity.packs["kernel-task"]
    path = tmp_path / "pack.safetensors"
    save_task_pack(pack, path)
    arrays, metadata = read_arrays(path)
    header = json.loads(metadata["ksm-hw"])
    (header if entry in header else header["preprocessing"])[entry] = value
    write_arrays(path, arrays, {"ksm-hw": json.dumps(header)})
    with pytest.raises(UserError, match=f"header of .* is damaged .*{said}"):
        load_task_pack(path)


def test_a_backbone_with_variances_below_0_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    name = next(name for name in every_granularity.tensors if name.endswith("running_var"))
    tensors = {**every_granularity.tensors, name: -every_granularity.tensors[name]}
    save_bundle(dataclasses.replace(every_granularity, tensors=tensors), tmp_path)
    with pytest.raises(UserError, match=f"'{name}' .*variances below 0"):
        load_bundle(tmp_path)


def test_the_same_pack_gives_the_same_bytes(every_granularity: Bundle, tmp_path: Path) -> None:
    pack = every_granularity.packs["kernel-task"]
    save_task_pack(pack, tmp_path / "one")
    save_task_pack(load_task_pack(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_bundle_is_read_as_it_was_written(every_granularity: Bundle, tmp_path: Path) -> None:
    save_bundle(every_granularity, tmp_path)
    loaded = load_bundle(tmp_path)
    assert (loaded.backbone, loaded.backbone_sha256) == (every_granularity.backbone, every_granularity.backbone_sha256)
    assert loaded.tensors.keys() == every_granularity.tensors.keys()
    for name, array in loaded.tensors.items():
        assert_same_bits(array, every_granularity.tensors[name])
    assert loaded.packs.keys() == every_granularity.packs.keys()
    for task, pack in loaded.packs.items():
        assert_same_pack(pack, every_granularity.packs[task])


def test_tensors_of_any_strides_are_read_as_they_were_written(every_granularity: Bundle, tmp_path: Path) -> None:
    tensors = {name: np.asfortranarray(array) for name, array in every_granularity.tensors.items()}
    packs = {
        task: dataclasses.replace(pack, head_weight=np.asfortranarray(pack.head_weight))
        for task, pack in every_granularity.packs.items()
    }
    assert not all(array.flags.c_contiguous for array in tensors.values())
    save_bundle(dataclasses.replace(every_granularity, tensors=tensors, packs=packs), tmp_path)
    loaded = load_bundle(tmp_path)
    assert all(np.array_equal(loaded.tensors[name], array) for name, array in tensors.items())
    assert all(np.array_equal(loaded.packs[task].head_weight, pack.head_weight) for task, pack in packs.items())


def test_adding_tasks_makes_a_bundle_and_keeps_what_it_had(every_granularity: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "bundle"
    kernel, element = (every_granularity.packs[f"{granularity}-task"] for granularity in ("kernel", "element"))
    add_task(folder, kernel, every_granularity.tensors)
    first = (folder / "tasks" / "kernel-task.safetensors").read_bytes()
    add_task(folder, element, every_granularity.tensors)
    loaded = load_bundle(folder)
    assert list(loaded.packs) == ["element-task", "kernel-task"]
    assert (folder / "tasks" / "kernel-task.safetensors").read_bytes() == first
    assert_same_pack(loaded.packs["element-task"], element)
    # The same name again replaces the task.
    add_task(folder, dataclasses.replace(kernel, facts={"accuracy": 1.0}), every_granularity.tensors)
    assert load_bundle(folder).packs["kernel-task"].facts == {"accuracy": 1.0}
    assert not [path for path in folder.rglob(".*")], "temporary files were left"


def test_a_task_over_another_backbone_is_not_added(every_granularity: Bundle, tmp_path: Path) -> None:
    add_task(tmp_path, every_granularity.packs["kernel-task"], every_granularity.tensors)
    other = random_bundle("shufflenet_v2_x0_5", image_size=32, granularities=("element",), seed=5)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(UserError) as error:
        add_task(tmp_path, other.packs["element-task"], other.tensors)
    # Both sides of a hash that does not match are named.
    assert other.backbone_sha256 in str(error.value) and every_granularity.backbone_sha256 in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["all", "", "../evil", "a b", "-x", "a/b", ".hidden", "x" * 129])
def test_names_that_cannot_be_a_file_s_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a task"):
        check_task_name(name)


def test_selecting_tasks(every_granularity: Bundle) -> None:
    assert select_tasks(every_granularity, "all") is every_granularity
    assert list(select_tasks(every_granularity, "group-task").packs) == ["group-task"]
    with pytest.raises(UserError, match="Did you mean 'kernel-task'"):
        select_tasks(every_granularity, "kernel-tsk")


def test_hash_depends_on_names_shapes_and_bytes_but_not_on_order() -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}
    expected = sha256_of_tensors(tensors)
    assert sha256_of_tensors(dict(reversed(tensors.items()))) == expected
    assert sha256_of_tensors({**tensors, "a": np.asfortranarray(tensors["a"])}) == expected
    assert sha256_of_tensors({**tensors, "a": tensors["a"].reshape(3, 2)}) != expected
    assert sha256_of_tensors({**tensors, "a": np.nextafter(tensors["a"], np.float32(9))}) != expected
    assert sha256_of_tensors({"c": tensors["a"], "b": tensors["b"]}) != expected


def changed_pack(bundle: Bundle, folder: Path, task: str, **changes: object) -> None:
    """Writes the bundle with one pack changed, every file itself whole."""
    pack = dataclasses.replace(bundle.packs[task], **changes)  # type: ignore[arg-type]
    save_bundle(dataclasses.replace(bundle, packs={**bundle.packs, task: pack}), folder)


def test_a_wrong_backbone_hash_is_refused_and_names_both(every_granularity: Bundle, tmp_path: Path) -> None:
    changed_pack(every_granularity, tmp_path, "kernel-task", backbone_sha256="0" * 64)
    with pytest.raises(UserError, match=f"{'0' * 64}.*{every_granularity.backbone_sha256}"):
        load_bundle(tmp_path)


def test_a_changed_backbone_is_refused_and_names_both(every_granularity: Bundle, tmp_path: Path) -> None:
    tensors = {name: array.copy() for name, array in every_granularity.tensors.items()}
    tensors["conv1.0.weight"].flat[0] += 1
    save_bundle(dataclasses.replace(every_granularity, tensors=tensors), tmp_path)
    with pytest.raises(UserError, match=f"{sha256_of_tensors(tensors)}.*expects {every_granularity.backbone_sha256}"):
        load_bundle(tmp_path)


def test_a_mask_of_another_shape_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    masks = dict(every_granularity.packs["kernel-task"].masks)
    masks["conv1.0"] = pack_mask(np.ones((24, 4, 1, 1), np.float32))
    changed_pack(every_granularity, tmp_path, "kernel-task", masks=masks)
    with pytest.raises(UserError, match=r"shape \[24, 4, 1, 1\] for layer 'conv1.0'; expected \[24, 3, 1, 1\]"):
        load_bundle(tmp_path)


def test_a_mask_for_a_layer_that_is_not_there_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    masks = {"conv99": pack_mask(np.ones((24, 3, 1, 1), np.float32))}
    changed_pack(every_granularity, tmp_path, "kernel-task", masks=masks)
    with pytest.raises(UserError, match="'conv99'; expected no such layer"):
        load_bundle(tmp_path)


def test_another_granularity_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    changed_pack(every_granularity, tmp_path, "kernel-task", granularity="channel")
    with pytest.raises(UserError, match=r"expected \[24, 1, 1, 1\] \(channel-wise"):
        load_bundle(tmp_path)


def test_a_batch_norm_of_another_shape_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    norms = {**every_granularity.packs["kernel-task"].batch_norms, "conv1.1.weight": np.ones(3, np.float32)}
    changed_pack(every_granularity, tmp_path, "kernel-task", batch_norms=norms)
    with pytest.raises(UserError, match=r"'conv1.1.weight' with shape \[3\]; expected \[24\]"):
        load_bundle(tmp_path)


def test_a_batch_norm_of_another_dtype_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    norms = {**every_granularity.packs["kernel-task"].batch_norms, "conv1.1.weight": np.ones(24, np.float64)}
    changed_pack(every_granularity, tmp_path, "kernel-task", batch_norms=norms)
    with pytest.raises(UserError, match="float64"):
        load_bundle(tmp_path)


def test_a_head_that_does_not_fit_the_classes_is_refused(every_granularity: Bundle, tmp_path: Path) -> None:
    pack = every_granularity.packs["kernel-task"]
    save_task_pack(dataclasses.replace(pack, classes=(*pack.classes, "one more")), tmp_path / "pack")
    with pytest.raises(UserError, match="6 classes need a head of 6 outputs"):
        load_task_pack(tmp_path / "pack")


def rewrite_header(path: Path, change: dict[str, Any]) -> None:
    with safetensors.safe_open(path, "numpy") as file:
        header = unsealed(file.metadata()["ksm-hw"])
    tensors = safetensors.numpy.load(path.read_bytes())
    path.write_bytes(safetensors.numpy.save(tensors, {"ksm-hw": json.dumps(header | change)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"granularity": "pixel"}, r"'pixel' - at `\$.granularity`"),
        ({"masks": {"conv1.0": {"shape": [24, 3, 1, 1], "scale_bits": 32, "scale_range": []}}}, "damaged"),
        ({"masks": {"conv1.0": {"shape": [24, 3, 1, 1], "scale_bits": 7, "scale_range": [0, 0]}}}, "damaged"),
        ({"masks": {"conv1.0": {"shape": ["a"], "scale_bits": 32, "scale_range": [0, 0]}}}, "damaged"),
        ({"masks": {"elsewhere": {"shape": [1], "scale_bits": 32, "scale_range": [0, 0]}}}, "elsewhere"),
        ({"masks": 3}, "damaged"),
        ({"classes": None}, "damaged"),
        ({"preprocessing": {"image_size": 32}}, "damaged"),
    ],
)
def test_a_header_that_is_wrong_is_refused(
    every_granularity: Bundle, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "pack.safetensors"
    save_task_pack(every_granularity.packs["kernel-task"], path)
    rewrite_header(path, change)
    with pytest.raises(UserError, match=message) as error:
        load_task_pack(path)
    assert str(path) in str(error.value)
