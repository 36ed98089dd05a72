"""`verify` passes where the compiled model equals PyTorch's, on every architecture, and fails where one bit differs."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import unsealed
from random_tasks import SMALL_NETWORK, random_bundle
from typer.testing import CliRunner
from verifications import ARCHITECTURES, assert_all_passed

from ksm_hw.artifact.modes import FoldMode
from ksm_hw.cli import app
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.files.hashes import sha256_of_file
from ksm_hw.images.decoding import read_image
from ksm_hw.images.finding import images_of_folder
from ksm_hw.masks.bundle import Bundle
from ksm_hw.masks.mask_format import GRANULARITIES, Granularity
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.masks.soft_mask import PackedMask, binary_mask, pack_mask, unpack_mask
from ksm_hw.masks.task_pack import save_task_pack
from ksm_hw.models.task_module import task_module
from ksm_hw.report.verify import TOLERANCE, Verification, _compare, verify
from ksm_hw.resources import shipped_bundle
from ksm_hw.toolchains.targets import load_target


def test_tolerance_is_the_issue_s() -> None:
    assert TOLERANCE == 1e-4


def test_verify_passes_on_the_samples_and_on_given_images(artifact: Path, bundle: Bundle, photographs: Path) -> None:
    assert_all_passed(verify(artifact), list(bundle.packs), 3)
    assert_all_passed(verify(artifact, ["other-task"], photographs / "cat.png"), ["other-task"], 1)


def flipped(mask: PackedMask) -> PackedMask:
    """The mask with one bit flipped: its first 1 becomes a 0, with the soft value 0."""
    values = unpack_mask(mask).copy()
    values.flat[int(np.flatnonzero(binary_mask(mask))[0])] = 0
    changed = pack_mask(values)
    assert np.unpackbits(changed.bits ^ mask.bits).sum() == 1
    return changed


def test_one_flipped_mask_bit_makes_verify_fail(bundle: Bundle, photographs: Path, tmp_path: Path) -> None:
    """Compiled from a corrupted pack, against the pack as it was: what a compiler that misread one bit would do."""
    pack = bundle.packs["kernel-task"]
    # The first layer, whose every kernel sees every image.
    masks = {**pack.masks, "conv1.0": flipped(pack.masks["conv1.0"])}
    corrupted = dataclasses.replace(pack, masks=masks)
    compiled_from = dataclasses.replace(bundle, packs={"kernel-task": corrupted})
    (artifact,) = compile_bundle(compiled_from, load_target("host"), tmp_path / "artifact", fold="bake")
    command = ["verify", str(artifact), "--images", str(photographs)]
    assert CliRunner().invoke(app, command).exit_code == 0

    save_task_pack(pack, artifact / "tasks" / "kernel-task.safetensors")
    resign(artifact, "tasks/kernel-task.safetensors")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "FAILED" in result.stdout
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["passed"] is False and content["results"][0]["relative_error"] > 10 * TOLERANCE


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_fail(wrong: float) -> None:
    right = np.array([[1.0, 2.0]], np.float32)
    assert _compare("task", right, right, TOLERANCE).passed
    assert not _compare("task", np.array([[wrong, 2.0]], np.float32), right, TOLERANCE).passed


def test_errors_are_relative_to_the_largest_logit_of_the_worst_image() -> None:
    reference = np.array([[1, -10], [0.5, 0.1]], np.float32)
    compiled = np.array([[1, -10.5], [0.5, 0.2]], np.float32)
    result = _compare("task", compiled, reference, 0.1)
    assert np.isclose(result.absolute_error, 0.5) and np.isclose(result.relative_error, 0.2)
    assert result.agreement == 1.0 and not result.passed and result.images == 2


def verdict(error: float, tolerance: float, float32_errors: list[float]) -> Verification:
    reference = np.array([[1.0, -10.0]])
    return _compare("task", reference + np.array([[0, 10 * error]]), reference, tolerance, float32_errors)


def test_past_the_tolerance_an_ill_conditioned_network_is_judged_by_pytorch_s_own_error() -> None:
    passed = verdict(0.019, TOLERANCE, [0.001, 0.005])
    assert passed.passed and passed.ill_conditioned and passed.float32_error == 0.005
    assert not verdict(0.021, TOLERANCE, [0.001, 0.005]).passed
    # A network that PyTorch computes well is held to the tolerance, however tight somebody asks.
    assert not verdict(5e-7, 1e-8, [5e-7]).passed
    assert not verdict(0.019, TOLERANCE, [np.inf, 0.005]).passed
    within = verdict(0.5e-4, TOLERANCE, [])
    assert within.passed and not within.ill_conditioned and within.float32_error is None


def resign(artifact: Path, name: str) -> None:
    """Writes the size and hash of a file that was changed into the manifest."""
    file = artifact / name
    manifest = unsealed((artifact / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    (artifact / "manifest.json").write_text(json.dumps(manifest))


def test_a_network_that_float32_cannot_compute(copied_artifact: Path, bundle: Bundle, photographs: Path) -> None:
    """A head whose large terms cancel for every image that is shown: its logits are what float32 rounds away."""
    pack = bundle.packs["kernel-task"]
    network = task_module(bundle, pack)
    network.fc = torch.nn.Identity()
    batch = preprocess_batch([read_image(path) for path in images_of_folder(photographs)], pack.preprocessing)
    with torch.inference_mode():
        features = network.double()(torch.from_numpy(batch).double()).numpy()
    large = np.random.default_rng(0).normal(0, 1e4, pack.head_weight.shape)
    cancelling = large - large @ np.linalg.pinv(features) @ features
    name = "tasks/kernel-task.safetensors"
    save_task_pack(dataclasses.replace(pack, head_weight=cancelling.astype(np.float32)), copied_artifact / name)
    resign(copied_artifact, name)
    command = ["verify", str(copied_artifact), "--task", "kernel-task", "--images", str(photographs)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "kernel-task: the network is ill-conditioned" in result.stdout
    (row,) = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)["results"]
    assert row["passed"] and row["ill_conditioned"]
    assert TOLERANCE < row["relative_error"] <= 4 * row["float32_error"]


def test_without_images_it_says_what_to_do(copied_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No images in .*nowhere"):
        verify(copied_artifact, images=tmp_path / "nowhere")


def verify_granularities(
    network: str,
    photographs: Path,
    folder: Path,
    batch: int = 1,
    granularities: tuple[Granularity, ...] = GRANULARITIES,
) -> None:
    bundle = random_bundle(network, image_size=64, granularities=granularities)
    (artifact,) = compile_bundle(bundle, load_target("host"), folder, batch=batch)
    assert_all_passed(verify(artifact, images=photographs), sorted(bundle.packs), 3)
    # VGG16's takes half a gigabyte.
    shutil.rmtree(artifact)


# Each granularity more is up to 20 s more for the others.
QUICK = {"resnet18"}
# Half a gigabyte of weights; twice the kernels of any other; and what the shipped tasks below are of.
SLOW = {"vgg16_bn", "densenet121", "efficientnet-lite0"}


@pytest.mark.parametrize(
    "network",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES],
)
def test_every_architecture_with_masks_of_every_granularity(network: str, photographs: Path, tmp_path: Path) -> None:
    verify_granularities(network, photographs, tmp_path / "artifact")


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in ARCHITECTURES
        if name not in QUICK
    ],
)
def test_every_other_architecture(network: str, photographs: Path, tmp_path: Path) -> None:
    verify_granularities(network, photographs, tmp_path / "artifact", granularities=("kernel",))


# One of each family of torchvision, at the size of its published weights where that is not 224.
SIZES = {"inception_v3": 299, "swin_v2_t": 256, "efficientnet_v2_s": 384}
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18"),
    *("resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"),
    "wide_resnet50_2",
)


@pytest.mark.slow
@pytest.mark.parametrize("network", FAMILIES)
def test_a_network_of_every_family(network: str, photographs: Path, tmp_path: Path) -> None:
    """Both EfficientNets with random weights are ill-conditioned, and held to PyTorch's own error in float32."""
    bundle = random_bundle(network, image_size=SIZES.get(network, 224), granularities=("kernel",))
    (artifact,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")
    (result,) = verify(artifact, images=photographs)
    assert result.passed and result.images == 3 and result.agreement == 1.0, result
    assert result.relative_error > 0
    shutil.rmtree(artifact)


def test_a_head_that_is_a_convolution(photographs: Path, tmp_path: Path) -> None:
    """As SqueezeNet's is, which has no linear layer."""
    bundle = random_bundle("squeezenet1_1", image_size=32, granularities=("kernel",))
    assert bundle.packs["kernel-task"].head_weight.shape == (5, 512, 1, 1)
    (artifact,) = compile_bundle(bundle, load_target("host"), tmp_path / "artifact")
    assert_all_passed(verify(artifact, images=photographs), ["kernel-task"], 3)


def test_a_batch_of_three(photographs: Path, tmp_path: Path) -> None:
    verify_granularities("mobilenet_v2", photographs, tmp_path / "artifact", granularities=("kernel",), batch=3)


def test_a_batch_of_two_with_the_last_one_not_full(bundle: Bundle, photographs: Path, tmp_path: Path) -> None:
    few = dataclasses.replace(bundle, packs={"other-task": bundle.packs["other-task"]})
    (artifact,) = compile_bundle(few, load_target("host"), tmp_path / "artifact", batch=2)
    assert few.backbone == SMALL_NETWORK
    assert_all_passed(verify(artifact, images=photographs), ["other-task"], 3)


# With `bake` four libraries are compiled.
@pytest.mark.parametrize("fold", ["switch", pytest.param("bake", marks=pytest.mark.slow), "fused"])
def test_every_shipped_task_in_every_mode(fold: FoldMode, tmp_path: Path) -> None:
    from ksm_hw.masks.bundle import load_bundle

    if not (shipped_bundle() / "bundle.json").exists():
        pytest.skip("no tasks ship yet: run benchmarks/learned_tasks.py")
    shipped = load_bundle(shipped_bundle())
    artifacts = compile_bundle(shipped, load_target("host"), tmp_path / "artifact", fold=fold)
    assert len(artifacts) == (len(shipped.packs) if fold == "bake" else 1)
    results = [result for artifact in artifacts for result in verify(artifact)]
    assert [result.task for result in results] == list(shipped.packs)
    assert all(result.passed and result.images >= 1 for result in results), results
