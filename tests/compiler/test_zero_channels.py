"""Channels that are 0 in all tasks are left out, no others, and tasks compute what they did."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import random_tasks
import torch
from tiny_network import make_known
from torch import nn

from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.compiler.zero_channels import Narrowed, without_zero_channels
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, add_task, load_bundle, rounded_bundle, select_tasks
from ksm_hw.masks.growth import carried_over
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import pack_mask, selected_mask, unpack_mask
from ksm_hw.models.backbones import backbone_tensors, widen
from ksm_hw.models.task_module import task_module
from ksm_hw.quantising.calibrate import calibrate
from ksm_hw.quantising.integer_model import integer_model
from ksm_hw.quantising.network import network_of
from ksm_hw.report.deployed_methods import deploy
from ksm_hw.report.learning_trials import LearningTrial
from ksm_hw.report.measure import measure_artifact
from ksm_hw.report.rounding import exact_bundle
from ksm_hw.report.terminal import machine_facts
from ksm_hw.runtime.session import Session
from ksm_hw.toolchains.targets import load_target

SIDE = 16
CUT = slice(3, 11)
SHARED = ("stem", "block", "depthwise", "excite")  # Layers of `Blocks` whose output channels are the same.
IMAGES = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE), np.float32)


class Blocks(nn.Module):
    """A residual block, a depthwise convolution, squeezing and exciting, and pixels that are flattened."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 3, 4, 1, bias=False), nn.BatchNorm2d(16)
        self.block, self.block_norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.depthwise_norm = nn.Conv2d(16, 16, 3, 2, 1, 1, 16, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.wide = nn.Conv2d(16, 24, 1)
        self.hidden, self.head = nn.Linear(24 * 4, 16), nn.Linear(16, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(images)).relu()
        x = x + self.block_norm(self.block(x))
        x = torch.nn.functional.relu6(self.depthwise_norm(self.depthwise(x)))
        squeezed = torch.nn.functional.adaptive_avg_pool2d(x, 1)
        x = x * torch.sigmoid(self.excite(self.squeeze(squeezed).relu()))
        x = torch.nn.functional.hardswish(self.wide(x))
        x = torch.nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(self.hidden(torch.flatten(x, 1)).relu())


class Joined(nn.Module):
    """A concatenation, a convolution in groups, and a shuffling, of which the head reads the first half."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.second = nn.Conv2d(3, 16, 3, 4), nn.Conv2d(16, 16, 1)
        self.grouped, self.head = nn.Conv2d(32, 32, 1, groups=2), nn.Linear(16, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = self.grouped(torch.cat([x, self.second(x)], 1))
        x = x.view(-1, 2, 16, 4, 4).transpose(1, 2).contiguous().view(-1, 32, 4, 4)
        return self.head(x.chunk(2, 1)[0].mean((2, 3)))


class Gated(nn.Module):
    """Pixels that are multiplied by a number that all of their channels have in common."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 16, 3, 4), nn.Conv2d(16, 24, 1)
        self.gate, self.head = nn.Conv2d(24, 1, 1), nn.Linear(24, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.stem(images).relu())
        return self.head((x * torch.sigmoid(self.gate(x))).mean((2, 3)))


Make = Callable[..., Bundle]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(network: type[nn.Module], *granularities: Granularity) -> Bundle:
        make_known(monkeypatch, network.__name__, network)
        monkeypatch.setattr("random_tasks.build_backbone", lambda name: network(5))
        preprocessing = Preprocessing(SIDE, SIDE, "bilinear", (0.5,) * 3, (0.5,) * 3)
        monkeypatch.setattr("random_tasks.default_preprocessing", lambda name, size: preprocessing)
        return random_tasks.random_bundle(network.__name__, SIDE, granularities)

    return made


def grown(bundle: Bundle) -> Bundle:
    """The tasks in a network of twice the width, whose new weights are random."""
    torch.manual_seed(1)
    network = Blocks(5)
    shapes = {}
    for name, array in network.state_dict().items():
        if name.endswith(".weight") and not name.startswith("head"):
            own = array.shape[1:2] if name.startswith(("stem.", "depthwise.")) else [2 * n for n in array.shape[1:2]]
            shapes[name] = (2 * len(array), *own, *array.shape[2:])
    wide = {name: array.copy() for name, array in backbone_tensors(widen(network, shapes)).items()}
    for name, array in bundle.tensors.items():
        wide[name][tuple(map(slice, array.shape))] = array
    sha256 = sha256_of_tensors(wide)
    packs = {task: carried_over(pack, bundle.tensors, wide, sha256, (32,)) for task, pack in bundle.packs.items()}
    return Bundle(bundle.backbone, sha256, wide, packs)


def logits(bundle: Bundle, task: str) -> np.ndarray:
    with torch.inference_mode():
        return task_module(bundle, bundle.packs[task])(torch.from_numpy(IMAGES)).numpy()


def test_tasks_of_a_network_that_grew_are_as_they_were_before(make: Make) -> None:
    """Features of flattened pixels too: the wide network's channels lie behind each other, each with its pixels."""
    narrow = make(Blocks, "kernel", "element", "channel")
    wide = grown(narrow)
    found = without_zero_channels(wide)
    assert found.channels == sum(len(a) for name, a in narrow.tensors.items() if a.ndim > 1)
    for name, array in narrow.tensors.items():
        assert np.array_equal(found.bundle.tensors[name], array), name
    for task, pack in narrow.packs.items():
        after = found.bundle.packs[task]
        assert after.backbone_sha256 == found.bundle.backbone_sha256 == narrow.backbone_sha256
        for layer, mask in pack.masks.items():
            assert np.array_equal(unpack_mask(after.masks[layer]), unpack_mask(mask)), layer
        for name, array in {**pack.own_tensors, "head": pack.head_weight}.items():
            assert np.array_equal({**after.own_tensors, "head": after.head_weight}[name], array), name
        np.testing.assert_allclose(logits(wide, task), logits(found.bundle, task), rtol=1e-4, atol=1e-4)


def with_zeros(bundle: Bundle, *cuts: tuple[str, int], norms: float | None = None, task: str = "") -> Bundle:
    """A task whose masks are 0 at the channels 3 to 10.

    Args:
        bundle: has it.
        cuts: layers, and of each 0 for output channels or 1 for those that it reads.
        norms: what the BatchNorm behind a layer makes of output channels that are 0.
        task: its name; of all tasks without it.
    """
    packs = dict(bundle.packs)
    for name, pack in packs.items():
        masks, own = dict(pack.masks), {path: array.copy() for path, array in pack.batch_norms.items()}
        for layer, axis in cuts:
            soft = unpack_mask(masks[layer]).copy()
            soft[(slice(None),) * axis + (CUT,)] = 0
            masks[layer] = pack_mask(soft)
            if axis == 0 and norms is not None:
                own[f"{layer}_norm.bias"][CUT] = norms
                own[f"{layer}_norm.running_mean"][CUT] = 0
        if task in ("", name):
            packs[name] = dataclasses.replace(pack, masks=masks, batch_norms=own)
    return dataclasses.replace(bundle, packs=packs)


def left_out(bundle: Bundle) -> dict[str, int]:
    """By layer, how many output channels; the tasks are held to what they computed."""
    found = without_zero_channels(bundle)
    for task in bundle.packs:
        np.testing.assert_allclose(logits(bundle, task), logits(found.bundle, task), rtol=1e-4, atol=1e-4)
    kept = {name: len(found.bundle.tensors[name]) for name in bundle.tensors}
    less = {
        name.removesuffix(".weight"): len(array) - kept[name]
        for name, array in bundle.tensors.items()
        if array.ndim > 1 and len(array) != kept[name]
    }
    assert found.channels == sum(less.values())
    return less


@pytest.mark.parametrize(("shift", "goes"), [(0.0, True), (-0.5, True), (0.5, False)])
def test_a_channel_of_zeros_is_what_its_batchnorm_and_activation_make_of_it(
    make: Make, shift: float, goes: bool
) -> None:
    """Behind the depthwise convolution, whose channels are those of the residual block in front of it."""
    bundle = with_zeros(make(Blocks, "kernel"), ("depthwise", 0), norms=shift)
    assert left_out(bundle) == {}, "the block reads all channels of the stem"
    assert left_out(with_zeros(bundle, ("block", 1))) == (dict.fromkeys(SHARED, 8) if goes else {})


def test_a_sum_is_0_where_both_terms_are(make: Make) -> None:
    bundle = make(Blocks, "element")
    one = with_zeros(bundle, ("block", 0), norms=0.0)
    assert left_out(one) == {}
    both = with_zeros(one, ("stem", 0), norms=0.0)
    assert left_out(both) == {}, "the depthwise convolution's BatchNorm makes constants of them"
    assert left_out(with_zeros(both, ("depthwise", 0), norms=0.0)) == dict.fromkeys(SHARED, 8)


def test_what_nothing_reads_goes_too(make: Make) -> None:
    """8 of 24 channels in front of the pixels that are flattened: of each 4."""
    bundle = make(Blocks, "element")
    pack = bundle.packs["element-task"]
    soft = unpack_mask(pack.masks["hidden"]).copy()
    soft[:, 4 * CUT.start : 4 * CUT.stop] = 0
    unread = dataclasses.replace(pack, masks={**pack.masks, "hidden": pack_mask(soft)})
    bundle = dataclasses.replace(bundle, packs={"element-task": unread})
    assert left_out(bundle) == {"wide": 8}
    narrow = without_zero_channels(bundle).bundle
    assert narrow.tensors["hidden.weight"].shape == (16, 16 * 4)
    assert np.array_equal(narrow.tensors["wide.bias"], np.delete(bundle.tensors["wide.bias"], CUT))


def test_one_task_that_uses_a_channel_keeps_it(make: Make) -> None:
    bundle = make(Blocks, "kernel", "element")
    cuts = [("squeeze", 0), ("excite", 1)]
    assert left_out(with_zeros(bundle, *cuts, task="kernel-task")) == {}
    # Fewer than the kernels compute at once stay: 0 of 8 channels would be none.
    assert left_out(with_zeros(bundle, *cuts)) == {}
    wide = [("wide", 0), ("hidden", 1)]
    assert left_out(with_zeros(bundle, *wide, task="kernel-task")) == {}


def test_channels_that_are_joined_shuffled_or_in_groups_stay(make: Make) -> None:
    bundle = make(Joined, "kernel")
    assert left_out(with_zeros(bundle, ("stem", 0), ("second", 0), ("second", 1), ("grouped", 0), ("grouped", 1))) == {}


def test_a_channel_that_all_others_are_multiplied_by_stays(make: Make) -> None:
    bundle = make(Gated, "element")
    assert left_out(with_zeros(bundle, ("gate", 1))) == {}
    assert left_out(with_zeros(bundle, ("wide", 1))) == {"stem": 8}


def test_masks_by_groups_and_rounded_weights_stay_whole(make: Make) -> None:
    wide = grown(make(Blocks, "kernel", "group"))
    assert without_zero_channels(wide) == Narrowed(wide, 0)
    rounded = rounded_bundle(grown(make(Blocks, "kernel")), "int8")
    assert without_zero_channels(rounded) == Narrowed(rounded, 0)


@pytest.mark.parametrize("bits", get_args(ScaleBits))
def test_no_soft_value_changes_in_however_few_bits(bits: ScaleBits) -> None:
    """Of codes too, which stay what they were."""
    generator = np.random.default_rng(bits)
    values = generator.choice(
        np.float32([0, 1] if bits == 0 else [0, -1, 1] if bits == 1 else [0.25, 0.5, 0.1, 1]), (9, 7)
    )
    packed = pack_mask(values, bits)
    rows, columns = generator.random(9) < 0.6, generator.random(7) < 0.6
    found = selected_mask(packed, (rows, columns))
    assert found.scale_range == packed.scale_range and found.scale_bits == bits
    assert np.array_equal(unpack_mask(found), unpack_mask(packed)[rows][:, columns])


def calibrated(bundle: Bundle, bias: float | None) -> Bundle:
    """With ranges, and a bias for int8 of the depthwise convolution's channels 3 to 10."""
    (pack,) = bundle.packs.values()
    found = calibrate(bundle, pack, [IMAGES], "minmax")
    if bias is not None:
        array = pack.batch_norms["depthwise_norm.bias"].copy()
        array[CUT] = bias
        found = dataclasses.replace(found, biases={"depthwise_norm.bias": array})
    return dataclasses.replace(bundle, packs={pack.task: dataclasses.replace(pack, calibration=found)})


def test_int8_gives_the_same_to_the_last_bit(make: Make) -> None:
    bundle = with_zeros(make(Blocks, "kernel"), ("block", 1), ("depthwise", 0), norms=-0.5)
    # Of weights that are not 0 int8 would round others anew, whose scale they share.
    wide = calibrated(with_zeros(bundle, ("squeeze", 1), ("wide", 1)), -0.25)
    assert left_out(wide) == dict.fromkeys(SHARED, 8)
    both = [(each, each.packs["kernel-task"]) for each in (wide, without_zero_channels(wide).bundle)]
    first, second = (integer_model(network_of(each, pack), each, pack).logits(IMAGES) for each, pack in both)
    assert np.array_equal(first, second)


def test_a_bias_that_int8_corrects_keeps_a_channel(make: Make) -> None:
    bundle = with_zeros(make(Blocks, "kernel"), ("block", 1), ("depthwise", 0), norms=-0.5)
    assert left_out(calibrated(bundle, None)) == dict.fromkeys(SHARED, 8)
    assert left_out(calibrated(bundle, 0.5)) == {}


def test_an_artifact_is_narrower_and_computes_what_the_wide_network_did(make: Make, tmp_path: Path) -> None:
    wide = grown(make(Blocks, "kernel", "element"))
    (artifact,) = compile_bundle(wide, load_target("host"), tmp_path / "artifact")
    session = Session.load(artifact)
    for task, pack in wide.packs.items():
        compiled = session.run(IMAGES[:1], task)[:, : len(pack.classes)]
        np.testing.assert_allclose(compiled, logits(wide, task)[:1], rtol=1e-4, atol=1e-4)
    assert load_bundle(artifact).tensors["wide.weight"].shape == (24, 16, 1, 1)
    report = measure_artifact(artifact, runs=5, compare_unmasked=False)
    assert dict(machine_facts(report))["left out"].startswith("112 channels of layers")


def test_a_comparison_measures_a_narrower_artifact_that_it_compiled_before(make: Make, tmp_path: Path) -> None:
    wide = grown(make(Blocks, "kernel"))
    for pack in wide.packs.values():
        add_task(tmp_path / "bundles" / "ksm-0", pack, wide.tensors)
    compile_bundle(wide, load_target("host"), tmp_path / "artifacts" / "ksm-0-float32")
    steps: list[str] = []
    deploy([LearningTrial("ksm", task, "nowhere", 0) for task in wide.packs], tmp_path, steps.append)
    assert next(step for step in steps if "float32" in step) == "ksm-0-float32: load"


def test_what_rounding_costs_is_known_of_a_narrower_backbone(make: Make, tmp_path: Path) -> None:
    """Its source has another task too, which uses the channels that were left out."""
    bundle = make(Blocks, "kernel", "element")
    cut = with_zeros(bundle, ("block", 1), ("depthwise", 0), norms=0.0, task="kernel-task")
    narrow = without_zero_channels(select_tasks(cut, "kernel-task"))
    assert narrow.channels == 8 * len(SHARED)
    for folder, packs in (("source", cut.packs), ("other", bundle.packs)):
        for pack in packs.values():
            add_task(tmp_path / folder, pack, bundle.tensors)
    rounded = rounded_bundle(narrow.bundle, "int8")
    exact = exact_bundle(rounded, tmp_path / "source")
    assert exact is not None and exact.backbone_precision == "float32" and exact.packs == rounded.packs
    assert all(np.array_equal(exact.tensors[name], array) for name, array in narrow.bundle.tensors.items())
    with pytest.raises(UserError, match="Give the bundle that it was compiled from, as it was then"):
        exact_bundle(rounded, tmp_path / "other")
