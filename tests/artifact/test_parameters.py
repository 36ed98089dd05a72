"""What the passes make of a network's parameters is what the runtime gives: names, order, dtypes and shapes."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import get_args

import pytest
import tvm
from folded_networks import layouts_of
from random_tasks import SMALL_NETWORK, random_bundle

from ksm_hw.artifact.parameters import (
    FEWEST_SOFT_VALUES,
    HEAD_BIAS,
    HEAD_WEIGHT,
    MaskPart,
    is_shared,
    mask_part_of,
    task_parameters,
)
from ksm_hw.compiler.compiled import group_tasks, most_classes
from ksm_hw.compiler.lower import lower_backbone
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.calibration import Calibration
from ksm_hw.masks.mask_format import ScaleBits
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from ksm_hw.masks.task_pack import TaskPack
from tvm_passes.parameters import Parameter
from tvm_passes.relax.kernels.weight_rewrite import LANES
from tvm_passes.relax.pipeline import TaskFunctions, fold_tasks

IMAGE_SIZE = 32
SCALE_BITS: tuple[ScaleBits, ...] = (0, 4, 8, 32)


def with_scale_bits(pack: TaskPack, bits: ScaleBits) -> TaskPack:
    """The task with soft values of so many bits; with 0 they become zeros."""
    masks = {}
    for layer, mask in pack.masks.items():
        soft = unpack_mask(mask)
        masks[layer] = pack_mask((soft == 1).astype(soft.dtype) if bits == 0 else soft, bits)
    return dataclasses.replace(pack, task=f"{pack.granularity}-{bits}", masks=masks)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A real network, with tasks of every granularity, whose soft values take every number of bits."""
    made = random_bundle(SMALL_NETWORK, IMAGE_SIZE)
    packs = [with_scale_bits(*case) for case in itertools.product(made.packs.values(), SCALE_BITS)]
    return dataclasses.replace(made, packs={pack.task: pack for pack in packs})


@pytest.fixture(scope="module")
def network(bundle: Bundle) -> tvm.IRModule:
    return lower_backbone(bundle.backbone, most_classes(bundle), 1, IMAGE_SIZE)


@pytest.fixture(scope="module", params=[False, True], ids=["switch", "fused"])
def made(request: pytest.FixtureRequest, network: tvm.IRModule, bundle: Bundle) -> dict[str, list[Parameter]]:
    """What the function of each task takes, as the whole pipeline leaves it."""
    groups = group_tasks(bundle, lambda pack: layouts_of(pack.masks, pack.granularity)) | {"unmasked": []}
    layouts = {
        name: layouts_of(bundle.packs[tasks[0]].masks, bundle.packs[tasks[0]].granularity) if tasks else {}
        for name, tasks in groups.items()
    }
    module, entries = fold_tasks(network, layouts, tvm.target.Target("llvm"), fused=request.param)
    taken = {name: list(_parameters(module, entry)) for name, entry in entries.items()}
    return {task: taken[name] for name, tasks in groups.items() for task in tasks or ["unmasked"]}


def _parameters(module: tvm.IRModule, entry: TaskFunctions) -> Iterator[Parameter]:
    """Of `rewrite`, which takes them as a tuple, or of a fused `main`."""
    function = module[entry.rewrite or entry.main]
    types = [one.ty for one in function.params[1:]] if entry.rewrite is None else function.params[0].ty.fields
    for name, type_ in zip(entry.parameters, types, strict=True):
        yield Parameter(name, tuple(type_.shape), str(type_.dtype))


def test_the_passes_add_the_parameters_that_are_agreed_on(made: dict[str, list[Parameter]], bundle: Bundle):
    assert len(made) == len(bundle.packs) + 1
    plain = [parameter.name for parameter in made["unmasked"]]
    assert {HEAD_WEIGHT, HEAD_BIAS} < set(plain) and not any(map(mask_part_of, plain))
    for task, pack in bundle.packs.items():
        added = [f"mask/{layer}/{part}" for layer in pack.masks for part in get_args(MaskPart)]
        assert [parameter.name for parameter in made[task]] == plain + added


def test_the_arrays_of_a_task_are_of_the_types_that_the_passes_made(made: dict[str, list[Parameter]], bundle: Bundle):
    for task, pack in bundle.packs.items():
        names = [parameter.name for parameter in made[task]]
        arrays = task_parameters(names, pack, bundle.tensors, most_classes(bundle))
        for parameter, array in zip(made[task], arrays, strict=True):
            assert array.dtype.name == parameter.dtype, parameter
            fixed = [isinstance(extent, tvm.tirx.IntImm) for extent in parameter.shape]
            if all(fixed):
                assert array.shape == tuple(map(int, parameter.shape)), parameter
            else:
                assert array.ndim == 1 and len(array) >= FEWEST_SOFT_VALUES, parameter
                assert mask_part_of(parameter.name)[1] == "scale"


def test_what_is_shared_is_what_the_backbone_alone_has(made: dict[str, list[Parameter]], bundle: Bundle):
    for task, pack in bundle.packs.items():
        shared = {parameter.name for parameter in made[task] if is_shared(parameter.name, pack)}
        assert shared == {f"{layer}.weight" for layer in pack.masks}


def test_a_kernel_finds_as_many_soft_values_as_it_reads_at_once():
    assert LANES <= FEWEST_SOFT_VALUES


def test_an_unknown_part_of_a_mask_is_an_error():
    assert mask_part_of("mask/a.b/scale") == ("a.b", "scale") and mask_part_of("head/weight") is None
    with pytest.raises(ValueError, match="no part 'range'"):
        mask_part_of("mask/a.b/range")


def test_what_is_shared_is_looked_up_and_not_built(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked of each parameter of each task. A backbone's bias that int8 corrects for a task is that task's."""
    pack = next(iter(bundle.packs.values()))
    names = sorted(bundle.tensors)
    (corrected, *_) = (name for name in names if name not in pack.own_tensors)
    biases = {corrected: bundle.tensors[corrected], HEAD_BIAS: pack.head_bias}
    ranged = dataclasses.replace(pack, calibration=Calibration("minmax", 1, 32, pack.backbone_sha256, {}, biases))
    expected = {*ranged.for_int8.own_tensors}
    for built in ("for_int8", "own_tensors"):
        monkeypatch.setattr(TaskPack, built, property(lambda _pack: pytest.fail("it was built")))
    assert {name for name in names if not is_shared(name, ranged)} == expected
    assert is_shared(corrected, pack) and not is_shared(HEAD_BIAS, pack)
