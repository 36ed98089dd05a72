"""What a learned task loses in int8, and where: the integer model as it is, and with biases corrected.

A layer's bias is corrected by the mean, over training images and pixels, of what its sums in float32 and with quantised
weights and activations differ by; each layer reads what the corrected ones before it give. Prints a table of
docs/quantisation.md; nothing in the bundle is changed.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch

from ksm_hw.learning.calibration_images import split_batches
from ksm_hw.learning.datasets import load_task_data
from ksm_hw.learning.images import test_batches
from ksm_hw.masks.bundle import load_bundle
from ksm_hw.quantising.float_model import Folded, float_results, operator_result
from ksm_hw.quantising.folded_weights import folded_weights
from ksm_hw.quantising.integer_model import IntegerModel, quantised_model
from ksm_hw.quantising.network import INPUT, Convolution, network_of
from ksm_hw.quantising.ranges import task_ranges
from ksm_hw.quantising.scheme import Quantisation, dequantise, quantise
from ksm_hw.resources import shipped_bundle

_IMAGES = 100  # Of the training split, that biases are corrected by.


@torch.inference_mode()
def corrected(model: IntegerModel, folded: Folded, images: torch.Tensor) -> Folded:
    """The folded weights of a model with corrected biases."""

    def rounded(tensor: torch.Tensor, of: Quantisation) -> torch.Tensor:
        return torch.from_numpy(dequantise(quantise(tensor.numpy(), of), of))

    real, quantised, found = {INPUT: images}, {INPUT: rounded(images, model.quantisations[INPUT])}, dict(folded)
    for operator in model.network.operators:
        if isinstance(operator, Convolution):
            free, layer = dataclasses.replace(operator, clamp=(-math.inf, math.inf)), operator.layer
            of, (weight, bias) = model.layers[layer], folded[layer]
            scale = of.scale / np.float32(model.quantisations[operator.data].scale)
            steps = of.weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            expected = operator_result(free, real, folded)
            sums = operator_result(free, quantised, {layer: (steps, bias)})
            error = (expected - sums).mean((0, *range(2, sums.ndim)))
            found[layer] = weight, bias + error.numpy()
            result = (sums + error.reshape(-1, *[1] * (sums.ndim - 2))).clamp(*operator.clamp)
            real[operator.result] = expected.clamp(*operator.clamp)
        else:
            real[operator.result] = operator_result(operator, real, folded)
            result = operator_result(operator, quantised, folded)
        if operator.result != model.network.logits:
            quantised[operator.result] = rounded(result, model.quantisations[operator.result])
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=shipped_bundle())
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    pack, data = bundle.packs[arguments.task], load_task_data(arguments.task)
    network = network_of(bundle, pack)
    folded, ranges = folded_weights(network, bundle, pack), task_ranges(network, pack)
    model = quantised_model(network, folded, ranges)
    images = np.concatenate(list(split_batches(data.train, pack.preprocessing, _IMAGES, arguments.task)))
    biases = corrected(model, folded, torch.from_numpy(images))
    first = network.convolutions[0].layer
    models = {
        "as it is": model,
        "the first layer's bias corrected": quantised_model(network, {**folded, first: biases[first]}, ranges),
        "all biases corrected": quantised_model(network, biases, ranges),
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("float32", *models)}
    labels = []
    for batch, classes in test_batches(data.test, pack.preprocessing, 50):
        labels.append(classes.numpy())
        found["float32"].append(float_results(network, folded, batch.numpy())[network.logits].numpy())
        for name, one in models.items():
            found[name].append(one.logits(batch.numpy()))
    logits, known = {name: np.concatenate(parts) for name, parts in found.items()}, np.concatenate(labels)
    right = {name: values.argmax(1) == known for name, values in logits.items()}
    print("| the integer model | points | lost | gained | logits |\n| --- | --- | --- | --- | --- |")
    for name in models:
        lost, gained = (int(np.sum(one)) for one in (right["float32"] & ~right[name], ~right["float32"] & right[name]))
        error = np.sqrt(np.square(logits[name] - logits["float32"]).mean())
        print(f"| {name} | {100 * (gained - lost) / len(known):+.2f} | {lost} | {gained} | {error:.2f} |")


if __name__ == "__main__":
    main()
