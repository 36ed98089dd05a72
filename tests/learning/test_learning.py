"""Each equation of learning against a direct NumPy computation; what a step changes and what it never does."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize

from ksm_hw.errors import UserError
from ksm_hw.learning import learn as learn_module
from ksm_hw.learning import train as train_module
from ksm_hw.learning.dataset_sources import ImagesInMemory
from ksm_hw.learning.datasets import TaskData
from ksm_hw.learning.images import kept_for_testing, kept_for_training, training_batches
from ksm_hw.learning.images import test_batches as batches_for_testing
from ksm_hw.learning.learn import learn, measure_accuracy
from ksm_hw.learning.learned_task import task_pack_of
from ksm_hw.learning.mask_equations import PAPER, binary_mask, scale, soft_mask
from ksm_hw.learning.methods.masked_weights import masked_layers
from ksm_hw.learning.methods.table import prepared_network
from ksm_hw.learning.options import LearningOptions
from ksm_hw.learning.train import Trained, train_task
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.mask_format import GRANULARITIES, GROUP_SIZE, Granularity
from ksm_hw.masks.preprocessing import preprocess_batch
from ksm_hw.masks.safetensors_file import sha256_of_tensors
from ksm_hw.masks.soft_mask import unpack_mask
from ksm_hw.masks.task_pack import TaskPack, save_task_pack
from ksm_hw.models.backbones import (
    backbone_tensors,
    batch_norm_names,
    default_preprocessing,
    head_path,
    maskable_layers,
    pretrained_backbone,
)
from ksm_hw.models.task_module import task_module

NETWORK = "efficientnet-lite0"  # With its real ImageNet weights; its dropout is random in every step.
PREPROCESSING = default_preprocessing(NETWORK, 32)
# Large enough that masks cross the threshold within a few steps.
FAST = LearningOptions(epochs=2, batch_size=8, mask_rate=5e-3, head_rate=1e-3)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small steps are no faster with more, and much slower beside other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(train: int = 24, test: int = 20) -> TaskData:
    """Real handwritten digits, 8×8, that scikit-learn carries."""
    pixels, labels = load_digits(return_X_y=True)
    images = [np.repeat((image.reshape(8, 8, 1) * 15).astype(np.uint8), 3, axis=2) for image in pixels]

    def split(start: int, stop: int) -> ImagesInMemory:
        return ImagesInMemory(images[start:stop], labels[start:stop].tolist())

    classes = tuple("0123456789")
    return TaskData("digits", classes, split(0, train), split(train, train + test), False, "scikit-learn", "CC-BY-4.0")


def fresh_backbone() -> nn.Module:
    return pretrained_backbone(NETWORK)


def real_mask(shape: tuple[int, ...] = (6, 5, 1, 1), seed: int = 0) -> np.ndarray:
    """Learned values on both sides of the threshold, one of them exactly on it, one exactly 0, some negative."""
    values = np.random.default_rng(seed).uniform(-5e-3, 1.5e-2, shape).astype(np.float32)
    values.flat[0], values.flat[1] = np.float32(5e-3), 0
    return values


def numpy_soft_mask(values: np.ndarray, scale_weight: float = 0.5) -> np.ndarray:
    """DESIGN's equations, written out."""
    binary = ((values - np.float32(5e-3)) >= 0).astype(np.float32)
    a = values * (1 - binary)
    spread = a.max() - a.min()
    a = np.where(a != 0, (a - a.min()) / spread, np.float32(0)) if spread > 0 else np.zeros_like(a)
    return binary + np.float32(scale_weight) * a


def test_constants_are_the_paper_s() -> None:
    assert dataclasses.asdict(PAPER) == {
        "initial": 1e-2, "threshold": 5e-3, "slope": 1200.0, "temperature": 100.0, "scale_weight": 0.5,
    }  # fmt: skip
    assert (LearningOptions().mask_rate, LearningOptions().head_rate) == (2e-4, 2e-4)


def test_binary_mask_is_the_step_at_the_threshold() -> None:
    values = real_mask()
    expected = (values - np.float32(5e-3) >= 0).astype(np.float32)
    found = binary_mask(torch.from_numpy(values)).numpy()
    assert found.flat[0] == 1 and found.dtype == np.float32
    assert np.array_equal(found, expected)
    assert set(np.unique(found)) == {0.0, 1.0}


def test_gradient_of_the_binary_mask_is_that_of_the_sigmoid() -> None:
    values, upstream = real_mask(), np.random.default_rng(1).standard_normal((6, 5, 1, 1)).astype(np.float32)
    mask_real = torch.from_numpy(values).requires_grad_()
    (binary_mask(mask_real) * torch.from_numpy(upstream)).sum().backward()
    sigmoid = 1 / (1 + np.exp(-12 * (values.astype(np.float64) - 5e-3)))
    assert np.allclose(mask_real.grad.numpy(), upstream * 12 * sigmoid * (1 - sigmoid), rtol=1e-5)


def test_scale_is_min_max_over_the_layer_with_zeros_included() -> None:
    values = real_mask()
    binary = (values >= np.float32(5e-3)).astype(np.float32)
    a = values * (1 - binary)
    assert a.min() < 0 and a.max() > 0
    expected = np.where(a != 0, (a - a.min()) / (a.max() - a.min()), 0)
    found = scale(torch.from_numpy(values), torch.from_numpy(binary)).numpy()
    assert np.allclose(found, expected, rtol=1e-6, atol=0)
    assert (found[binary == 1] == 0).all() and found.min() == 0 and found.max() == 1
    # The zeros at the ones of the binary mask count: without them the smallest value here would become 0.
    positive = np.array([[3e-3, 4e-3, 1e-2]], np.float32)
    found = scale(torch.from_numpy(positive), torch.tensor([[0.0, 0.0, 1.0]])).numpy()
    assert np.allclose(found, [[0.75, 1, 0]], rtol=1e-6)


@pytest.mark.parametrize("value", [1e-2, 0.0, -1e-3, 2e-3])
def test_a_layer_whose_range_is_zero_has_no_nan(value: float) -> None:
    mask_real = torch.full((4, 3, 1, 1), value, requires_grad=True)
    mask = soft_mask(mask_real)
    mask.sum().backward()
    assert torch.isfinite(mask).all() and torch.isfinite(mask_real.grad).all()
    assert np.array_equal(mask.detach().numpy(), numpy_soft_mask(np.full((4, 3, 1, 1), value, np.float32)))


def test_soft_mask_equals_numpy_and_its_gradient_is_the_binary_mask_s_alone() -> None:
    values = real_mask((12, 7, 1, 1), seed=2)
    mask_real = torch.from_numpy(values).requires_grad_()
    mask = soft_mask(mask_real)
    assert np.allclose(mask.detach().numpy(), numpy_soft_mask(values), rtol=1e-6, atol=0)
    mask.sum().backward()
    alone = torch.from_numpy(values).requires_grad_()
    binary_mask(alone).sum().backward()
    assert torch.equal(mask_real.grad, alone.grad)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_weight_of_a_masked_layer_is_the_backbone_s_times_the_soft_mask(granularity: Granularity) -> None:
    backbone = fresh_backbone()
    original = {path: backbone.get_submodule(path).weight.detach().numpy().copy() for path in maskable_layers(backbone)}
    network = prepared_network(backbone, 10, LearningOptions("ksm", granularity))
    layers = masked_layers(network)
    assert layers.keys() == original.keys() and len(layers) == 49
    for number, (path, layer) in enumerate(layers.items()):
        outputs, inputs, *place = original[path].shape
        # Written out here: `mask_shape` and `broadcast_mask` are what is tested.
        shape = {
            "kernel": (outputs, inputs, 1, 1),
            "element": (outputs, inputs, *place),
            "channel": (outputs, 1, 1, 1),
            "group": (outputs, math.ceil(inputs / GROUP_SIZE), 1, 1),
        }[granularity]
        assert layer.mask_real.shape == shape and (layer.mask_real == 1e-2).all()
        values = real_mask(shape, seed=number)
        with torch.no_grad():
            layer.mask_real.copy_(torch.from_numpy(values))
        mask = numpy_soft_mask(values)
        if granularity == "group":
            mask = np.stack([mask[:, channel // GROUP_SIZE] for channel in range(inputs)], axis=1)
        found = network.get_submodule(path).weight.detach().numpy()
        assert np.allclose(found, original[path] * mask, rtol=1e-6, atol=0), path


def frozen_tensors(network: nn.Module) -> dict[str, np.ndarray]:
    """The shared weights of a network in training, by their names in the backbone: no head, no BatchNorms, no masks."""
    head = head_path(network)
    batch_norms = {name.rpartition(".")[0] for name in batch_norm_names(network)}
    return {
        name.replace(".parametrizations.weight.original", ".weight"): tensor.detach().numpy()
        for name, tensor in network.state_dict().items()
        if not name.startswith(f"{head}.") and name.rpartition(".")[0] not in batch_norms and "mask_real" not in name
    }


@pytest.fixture(scope="module")
def learned() -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A network after two epochs, and the backbone's tensors as they were before."""
    backbone = fresh_backbone()
    before = {name: array.copy() for name, array in backbone_tensors(backbone).items()}
    network, history = learn(backbone, digits(), PREPROCESSING, FAST)
    assert [epoch.number for epoch in history] == [1, 2]
    return network, before


def test_learning_never_changes_the_backbone_s_bytes(learned: tuple[nn.Module, dict[str, np.ndarray]]) -> None:
    network, before = learned
    frozen = frozen_tensors(network)
    assert len(frozen) == 49
    assert sha256_of_tensors(frozen) == sha256_of_tensors({name: before[name] for name in frozen})
    # And it did learn: masks on both sides of the threshold, other BatchNorms.
    masks = [layer.mask_real.detach().numpy() for layer in masked_layers(network).values()]
    assert any((mask < 5e-3).any() for mask in masks) and any((mask >= 5e-3).any() for mask in masks)
    state = network.state_dict()
    assert all((state[name].numpy() != before[name]).any() for name in batch_norm_names(network))


def pack_of(network: nn.Module, before: dict[str, np.ndarray], options: LearningOptions = FAST) -> TaskPack:
    identity = (NETWORK, sha256_of_tensors(before))
    return task_pack_of(network, digits(), "digits", options, identity, PREPROCESSING)


def logits_of(network: nn.Module) -> torch.Tensor:
    """Over the test images, in one memory format: the order of sums in a convolution depends on it."""
    images = torch.cat([images for images, _ in batches_for_testing(digits().test, PREPROCESSING, 20)])
    with torch.inference_mode():
        logits = network.to(memory_format=torch.contiguous_format)(images)
    assert logits.std(dim=0).min() > 0, "a network that answers the same to every image shows nothing"
    return logits


def test_the_task_s_module_gives_the_learned_network_s_logits_bit_by_bit(
    learned: tuple[nn.Module, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    network, before = learned
    pack = pack_of(network, before)
    zeros = sum(int((unpack_mask(mask) != 1).sum()) for mask in pack.masks.values())
    assert zeros > 1000, "masks must have soft values for this to show something"
    reference = task_module(Bundle(pack.backbone, pack.backbone_sha256, before, {"digits": pack}), pack)
    assert torch.equal(logits_of(network), logits_of(reference))


@pytest.mark.parametrize("method", ["binary", "head", "fine-tuning"])
def test_what_each_method_changes(method: str) -> None:
    backbone = fresh_backbone()
    before = {name: array.copy() for name, array in backbone_tensors(backbone).items()}
    options = dataclasses.replace(FAST, method=method, epochs=1)
    network, _ = learn(backbone, digits(train=16), PREPROCESSING, options)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    changed_weights = {name for name, array in frozen_tensors(network).items() if (array != before[name]).any()}
    changed_norms = {name for name in batch_norm_names(network) if (state[name] != before[name]).any()}
    assert bool(changed_weights) == (method == "fine-tuning")
    assert changed_norms == (set() if method == "head" else set(batch_norm_names(network)))
    assert bool(masked_layers(network)) == (method == "binary")
    torch.manual_seed(options.seed)
    first_head = (
        prepared_network(fresh_backbone(), 10, LearningOptions(method)).get_submodule(head_path(network)).weight
    )
    assert (network.get_submodule(head_path(network)).weight != first_head).any()
    if method == "fine-tuning":
        return
    pack = pack_of(network, before, options)
    assert bool(pack.masks) == bool(pack.batch_norms) == (method != "head")
    stored = [len(mask.scale) for mask in pack.masks.values()]
    assert not any(stored)
    if method == "binary":
        masks = [unpack_mask(mask) for mask in pack.masks.values()]
        assert {value for mask in masks for value in np.unique(mask)} == {0.0, 1.0}
    reference = task_module(Bundle(pack.backbone, pack.backbone_sha256, before, {"digits": pack}), pack)
    assert torch.equal(logits_of(network), logits_of(reference))


def bytes_of(pack: TaskPack, folder: Path) -> bytes:
    save_task_pack(pack, folder / "pack.safetensors")
    return (folder / "pack.safetensors").read_bytes()


def stop_at(epoch: int, steps: int) -> Callable[[int, int], None]:
    seen = 0

    def on_batch(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == (epoch - 1) * total + steps:
            raise KeyboardInterrupt

    return on_batch


def test_an_interrupted_run_goes_on_to_exactly_the_same_result(
    learned: tuple[nn.Module, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    network, before = learned
    checkpoint = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        learn(fresh_backbone(), digits(), PREPROCESSING, FAST, checkpoint, on_batch=stop_at(epoch=2, steps=2))
    assert checkpoint.exists()
    epochs = []
    resumed, history = learn(
        fresh_backbone(), digits(), PREPROCESSING, FAST, checkpoint, on_epoch=lambda epoch: epochs.append(epoch.number)
    )
    assert epochs == [2] and [epoch.number for epoch in history] == [1, 2]
    assert bytes_of(pack_of(resumed, before), tmp_path) == bytes_of(pack_of(network, before), tmp_path)


def test_rates_follow_the_cosine_schedule(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    options = LearningOptions(method="head", epochs=3, batch_size=16, mask_rate=1e-3, head_rate=4e-3, norm_rate=5e-4)
    rates = []

    def on_epoch(_: object) -> None:
        groups = torch.load(checkpoint, weights_only=True)["optimizer"]["param_groups"]
        rates.append([group["lr"] for group in groups])

    learn(fresh_backbone(), digits(train=32), PREPROCESSING, options, checkpoint, on_epoch=on_epoch)
    factors = [(1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (1, 2, 3)]
    assert np.allclose(rates, [[1e-3 * factor, 4e-3 * factor, 5e-4 * factor] for factor in factors], atol=1e-9)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"epochs": 3}, {"mask_rate": 1e-4}, {"constants": dataclasses.replace(PAPER, threshold=4e-3)}],
)
def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path, other: dict[str, object]) -> None:
    checkpoint = tmp_path / "state.pt"
    options = LearningOptions(method="head", epochs=1, batch_size=16)
    learn(fresh_backbone(), digits(train=16, test=4), PREPROCESSING, options, checkpoint)
    with pytest.raises(UserError, match=r"other options.*--restart"):
        other_options = dataclasses.replace(options, **other)  # type: ignore[arg-type]
        learn(fresh_backbone(), digits(train=16, test=4), PREPROCESSING, other_options, checkpoint)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    options = LearningOptions(method="head", epochs=1, batch_size=16)
    learn(fresh_backbone(), digits(train=16, test=4), PREPROCESSING, options, checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"Cannot read the checkpoint .*--restart"):
        learn(fresh_backbone(), digits(train=16, test=4), PREPROCESSING, options, checkpoint)


def test_a_checkpoint_over_other_weights_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.pt"
    options = LearningOptions(method="head", epochs=1, batch_size=16)
    learn(fresh_backbone(), digits(train=16, test=4), PREPROCESSING, options, checkpoint)
    other = fresh_backbone()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    with pytest.raises(UserError, match=r"another backbone.*--restart"):
        learn(other, digits(train=16, test=4), PREPROCESSING, options, checkpoint)


def test_learning_stops_at_the_first_loss_that_is_not_finite(tmp_path: Path) -> None:
    """Weights as large as float32 goes, after the first step: the second loss is infinite."""
    options = LearningOptions(method="head", epochs=3, batch_size=8, head_rate=3e37)
    steps: list[int] = []
    with pytest.raises(
        UserError, match=r"diverged in epoch 1: .*Lower --mask-rate or --head-rate. Nothing of it is kept"
    ):
        learn(
            fresh_backbone(),
            digits(),
            PREPROCESSING,
            options,
            tmp_path / "state.pt",
            on_batch=lambda done, _: steps.append(done),
        )
    assert steps == [1] and not (tmp_path / "state.pt").exists()


def test_after_a_divergence_learning_goes_on_with_lower_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn_epoch = learn_module._learn_epoch
    checkpoint, data = tmp_path / "state.pt", digits(train=16, test=4)
    options = LearningOptions(method="head", epochs=3, batch_size=16, head_rate=4e-3)

    def diverge_in_the_second(*arguments: Any) -> float:
        loss = learn_epoch(*arguments)
        return math.nan if arguments[4] == 2 else loss

    with monkeypatch.context() as patch:
        patch.setattr(learn_module, "_learn_epoch", diverge_in_the_second)
        with pytest.raises(UserError, match=r"diverged in epoch 2.*The state after epoch 1 is kept"):
            learn(fresh_backbone(), data, PREPROCESSING, options, checkpoint)
    with pytest.raises(UserError, match="other options"):
        learn(fresh_backbone(), data, PREPROCESSING, dataclasses.replace(options, seed=1), checkpoint)
    rates = []

    def on_epoch(_: object) -> None:
        rates.append(torch.load(checkpoint, weights_only=True)["optimizer"]["param_groups"][1]["lr"])

    lower = dataclasses.replace(options, head_rate=1e-3)
    _, history = learn(fresh_backbone(), data, PREPROCESSING, lower, checkpoint, on_epoch=on_epoch)
    assert [epoch.number for epoch in history] == [1, 2, 3]
    assert np.allclose(rates, [1e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (2, 3)], atol=1e-9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dataclasses.replace(digits(), classes=("0",)), "at least 2 classes apart; .* has one, '0'"),
        (digits(train=1), "1 training images"),
        (digits(test=0), "0 test images"),
    ],
)
def test_too_little_to_learn_from(data: TaskData, message: str) -> None:
    with pytest.raises(UserError, match=message):
        learn(fresh_backbone(), data, PREPROCESSING, FAST)


def test_training_batches_depend_on_seed_and_epoch_alone() -> None:
    data = digits(train=33).train

    def batches(seed: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(training_batches(data, PREPROCESSING, 16, seed, flip=True))

    first, again, next_epoch = batches((0, 1)), batches((0, 1)), batches((0, 2))
    # The last image is alone, and a BatchNorm has no variance over one.
    assert [len(labels) for _, labels in first] == [16, 16]
    assert all(
        torch.equal(left, right) for pair in zip(first, again, strict=True) for left, right in zip(*pair, strict=True)
    )
    assert not torch.equal(first[0][0], next_epoch[0][0])


def test_training_adds_a_task_to_a_bundle(tmp_path: Path) -> None:
    options = dataclasses.replace(FAST, epochs=1)
    trained = train_task(
        digits(), "digits", tmp_path / "bundle", NETWORK, options, image_size=32, scale_bits=4, command="ksm-hw train"
    )
    bundle = load_bundle(tmp_path / "bundle")
    pack = bundle.packs["digits"]
    assert bytes_of(pack, tmp_path) == bytes_of(trained.pack, tmp_path)
    assert pack.calibration is not None and pack.calibration.images == 24
    # Soft values lie in 0…0.5, and 4 bits are 15 steps.
    assert 0 < trained.scale_error <= 0.5 / 15 / 2 + 1e-6
    # The accuracy that is told is that of the pack as stored.
    assert pack.facts["accuracy"] == measure_accuracy(task_module(bundle, pack), digits().test, PREPROCESSING)
    assert pack.facts["command"] == "ksm-hw train" and pack.facts["training_images"] == 24
    labels = {path.stem.split("-")[1] for path in (tmp_path / "bundle" / "samples" / "digits").glob("*.png")}
    assert labels == {str(label) for label in digits().test.labels}
    assert not list((tmp_path / "bundle").glob(".learning/*.pt"))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_task_is_kept_where_its_calibration_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(train_module, "calibrate", fail)
    options = LearningOptions("head", epochs=1, batch_size=8, head_rate=1e-3)
    added: list[Trained] = []
    # Who stops it stops the command.
    with pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else contextlib.nullcontext():
        train_task(digits(8, 10), "digits", tmp_path / "bundle", NETWORK, options, image_size=32, on_added=added.append)
    (trained,) = added
    assert bytes_of(load_bundle(tmp_path / "bundle").packs["digits"], tmp_path) == bytes_of(trained.pack, tmp_path)
    assert trained.pack.calibration is None
    assert f"ksm-hw calibrate --task digits --bundle {tmp_path / 'bundle'} --data IMAGES" in caplog.text
    assert not list((tmp_path / "bundle").glob(".learning/*.pt"))


def test_masks_are_parametrizations_over_frozen_weights() -> None:
    network = prepared_network(fresh_backbone(), 10, LearningOptions())
    for path in masked_layers(network):
        layer = network.get_submodule(path)
        assert parametrize.is_parametrized(layer, "weight")
        assert not layer.parametrizations.weight.original.requires_grad


def test_kept_images_give_the_same_batches_and_are_decoded_once() -> None:
    wide = ImagesInMemory([np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)] * 3, [0, 1, 2])
    decoded: list[int] = []

    class Counting:
        labels = wide.labels

        def __len__(self) -> int:
            return len(wide)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            decoded.append(index)
            return wide[index]

    kept = kept_for_training(Counting(), PREPROCESSING)
    for epoch in (1, 2):
        found, expected = (list(training_batches(split, PREPROCESSING, 3, (0, epoch), True)) for split in (kept, wide))
        assert torch.equal(found[0][0], expected[0][0]) and torch.equal(found[0][1], expected[0][1])
    assert sorted(decoded) == [0, 1, 2]
    tested = kept_for_testing(wide, PREPROCESSING)
    (found, _), (expected, _) = (next(iter(batches_for_testing(split, PREPROCESSING, 3))) for split in (tested, wide))
    assert torch.equal(found, expected)


def test_batches_are_normalised_as_the_task_will_see_them() -> None:
    split = digits(train=4).train
    (images, labels) = next(iter(batches_for_testing(split, PREPROCESSING, 4)))
    expected = preprocess_batch([split[index][0] for index in range(4)], PREPROCESSING)
    assert images.is_contiguous(memory_format=torch.channels_last) and labels.tolist() == list(split.labels)
    np.testing.assert_array_equal(images.numpy(), expected)


def test_images_beyond_what_memory_is_given_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_hw.learning.images._KEPT_BYTES", 3 * 36 * 36 * 2)
    monkeypatch.setattr("ksm_hw.learning.images._KEPT_SHARE", 0)
    kept = kept_for_training(digits().train, PREPROCESSING)
    assert [kept[index][0].size for index in range(3)] == [(36, 36)] * 3 and len(kept._kept) == 2
