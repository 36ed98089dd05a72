"""Masks at rest take hardly more than their entropy, come back as they were, and damage to them is an error."""

import dataclasses
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, add_task, load_bundle
from ksm_hw.masks.mask_coding import CODINGS, Coding, decoded, shortest
from ksm_hw.masks.mask_format import ScaleBits
from ksm_hw.masks.safetensors_file import read_arrays, write_arrays
from ksm_hw.masks.soft_mask import PackedMask, ones_among, pack_mask
from ksm_hw.masks.task_pack import TaskPack, bytes_at_rest, coded_bytes, load_task_pack, save_task_pack
from ksm_hw.report.inspection import inspect_packs

DENSITIES = (0.0, 0.001, 0.01, 0.1, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
# Tables of Huffman's codes, which a layer of few values pays too.
TABLES = 96


def random_pack(pack: TaskPack, count: int, density: float, bits: ScaleBits) -> TaskPack:
    """A task with one mask of so many values: soft ones spread as those of KSM, about a bell."""
    generator = np.random.default_rng(count)
    soft = np.clip(generator.normal(0.3, 0.06, count), 0, 0.5).astype(np.float32)
    if bits in (0, 1):
        soft = np.where(generator.random(count) < 0.3 * bits, np.float32(-1), np.float32(0))
    values = np.where(generator.random(count) < density, np.float32(1), soft)
    return dataclasses.replace(pack, masks={"layer": pack_mask(values, bits)})


@pytest.mark.parametrize("bits", [0, 1, 4, 8, 32])
@pytest.mark.parametrize("density", DENSITIES)
def test_large_layers_take_at_most_a_tenth_more_than_their_entropy(
    bundle: Bundle, density: float, bits: ScaleBits
) -> None:
    pack = random_pack(bundle.packs["element-task"], 2**18 + 3, density, bits)
    (layer,) = inspect_packs("here", {"task": pack}).tasks[0].layers
    assert layer.stored_bytes == coded_bytes(pack.masks["layer"]) <= 1.1 * layer.entropy_bytes + 2 * TABLES
    assert layer.stored_bytes <= pack.masks["layer"].nbytes


def test_bytes_at_rest_are_those_of_the_files(bundle: Bundle, tmp_path: Path) -> None:
    pack = random_pack(bundle.packs["element-task"], 2**12, 0.9, 8)
    for coded in (True, False):
        save_task_pack(pack, tmp_path / "pack", coded)
        in_file = sum(array.nbytes for array in read_arrays(tmp_path / "pack")[0].values())
        assert in_file == (bytes_at_rest(pack) if coded else pack.nbytes)
    assert bytes_at_rest(pack) < pack.nbytes


@pytest.mark.parametrize("count", [1, 7, 8, 64, 1000])
@pytest.mark.parametrize("density", DENSITIES)
def test_small_layers_pay_a_table_at_most(bundle: Bundle, count: int, density: float) -> None:
    pack = random_pack(bundle.packs["element-task"], count, density, 8)
    (layer,) = inspect_packs("here", {"task": pack}).tasks[0].layers
    assert layer.stored_bytes <= min(1.1 * layer.entropy_bytes + 3 * TABLES, pack.masks["layer"].nbytes)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 255, 256, 5000])
def test_bytes_come_back_as_they_were(count: int, density: float) -> None:
    """Gaps of just 255 bits, and of none, among them."""
    bits = np.random.default_rng(count).random(8 * count) < density
    bits[255::256] = True
    values = np.packbits(bits)
    coding, content = shortest(values)
    assert np.array_equal(decoded(coding, content, count), values)


def test_each_coding_is_somewhere_the_shortest() -> None:
    generator = np.random.default_rng(0)
    found = {shortest(np.packbits(generator.random(2**20) < density))[0] for density in DENSITIES}
    assert found == set(CODINGS)


def test_what_is_damaged_is_an_error_and_takes_no_memory() -> None:
    generator = np.random.default_rng(0)
    for density in (0.002, 0.2):
        values = np.packbits(generator.random(2**14) < density)
        coding, content = shortest(values)
        assert coding != "plain"
        for _ in range(2000):
            damaged = content.copy()
            damaged[generator.integers(len(damaged))] ^= 1 << generator.integers(8)
            damaged = damaged[: generator.integers(len(damaged) + 1)] if generator.random() < 0.3 else damaged
            try:
                assert len(decoded(coding, damaged, len(values))) == len(values)
            except ValueError:
                continue
        for count in (len(values) - 1, len(values) + 1, 2**50):
            with pytest.raises(ValueError, match=r"bytes|gaps"):
                decoded(coding, content, count)


@pytest.mark.parametrize("coding", CODINGS[1:])
def test_what_repeats_itself_is_damaged_and_takes_no_memory(coding: Coding) -> None:
    """As Deflate may, and no coder of masks does: 10 KB that stand for 10 MB, whose places take 8 bytes each."""
    coder = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    first = b"\1" if coding == "gaps" else b""
    content = np.frombuffer(first + coder.compress(bytes(10**7)) + coder.flush(), np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bytes|gaps"):
            decoded(coding, content, 255 * len(content))
        assert tracemalloc.get_traced_memory()[1] < 300 * len(content)
    finally:
        tracemalloc.stop()


def test_a_bundle_has_masks_coded_and_a_device_as_it_reads_them(bundle: Bundle, tmp_path: Path) -> None:
    pack = random_pack(bundle.packs["element-task"], 2**18, 0.97, 8)
    save_task_pack(pack, tmp_path / "device")
    save_task_pack(pack, tmp_path / "bundle", coded=True)
    names = [{name for name in read_arrays(tmp_path / name)[0] if "mask/" in name} for name in ("device", "bundle")]
    assert names == [{"mask/layer/bits", "mask/layer/scale"}, {"mask/layer/bits-gaps", "mask/layer/scale-huffman"}]
    for part in ("bits", "scale"):
        first, second = (getattr(load_task_pack(tmp_path / name).masks["layer"], part) for name in ("device", "bundle"))
        assert np.array_equal(first, second) and first.dtype == second.dtype
    for task in bundle.packs.values():
        add_task(tmp_path / "tasks", task, bundle.tensors)
        found = load_bundle(tmp_path / "tasks").packs[task.task]
        assert all(np.array_equal(found.masks[layer].bits, mask.bits) for layer, mask in task.masks.items())


def test_ones_are_counted_where_they_lie(bundle: Bundle, tmp_path: Path) -> None:
    """A pack of a few KB may claim millions of values; what it is refused for must not take a byte for each."""
    bits = np.random.default_rng(0).integers(0, 256, 9, np.uint8)
    for count in range(8 * len(bits) + 1):
        assert ones_among(bits[: -(-count // 8)], count) == np.unpackbits(bits)[:count].sum()
    count = 2**25
    packed = PackedMask((count,), np.zeros(count // 8, np.uint8), np.empty(0, np.uint8), 0)
    save_task_pack(dataclasses.replace(bundle.packs["element-task"], masks={"a": packed}), tmp_path / "a", coded=True)
    assert (tmp_path / "a").stat().st_size < 2**20
    tracemalloc.start()
    try:
        load_task_pack(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < count / 2
    finally:
        tracemalloc.stop()


def test_a_coded_mask_that_is_damaged_is_named(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    save_task_pack(random_pack(bundle.packs["element-task"], 2**16, 0.99, 0), path, coded=True)
    arrays, metadata = read_arrays(path)
    write_arrays(path, {**arrays, "mask/layer/bits-gaps": arrays["mask/layer/bits-gaps"][:-9]}, metadata)
    with pytest.raises(
        UserError, match=r"pack\.safetensors: 'mask/layer/bits' cannot be decoded .*copy the task again"
    ):
        load_task_pack(path)
