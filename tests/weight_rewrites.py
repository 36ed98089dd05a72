"""Masks of all kinds, the arguments of a kernel that rewrites a weight with one, and what NumPy makes of them."""

import dataclasses
import math

import numpy as np
from folded_networks import CLASSES, MASK_PARAMETERS, pack_of
from torch import nn

from ksm_hw.artifact.parameters import task_parameters
from ksm_hw.masks.soft_mask import pack_mask, unpack_mask
from tvm_passes.relax.kernels.mask_decoding import decoding_table
from tvm_passes.relax.kernels.weight_rewrite import WeightRewrite
from tvm_passes.relax.kernels.winograd import transforms

MASKS = {
    "soft": (0.7, False),
    "binary": (0.7, True),
    "ones": (1.0, False),
    "zeros": (0.0, False),
    "nothing": (0.0, True),
}


class _Headed(nn.Module):
    """What a pack needs of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, CLASSES)


def kernel_and_expected(rewrite: WeightRewrite, ones: float, binary: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """The kernel's arguments and, by NumPy, its result."""
    generator = np.random.default_rng(7)
    outputs, *rest = rewrite.shape
    expected = weight = generator.standard_normal(rewrite.shape).astype(np.float32)
    arguments = [weight]
    if rewrite.columns:
        is_one = generator.random((outputs, rewrite.columns)) < ones
        soft = np.zeros if binary else lambda shape: generator.uniform(0.1, 0.5, shape)
        mask = np.where(is_one, 1, soft(is_one.shape)).astype(np.float32)
        packed = pack_mask(mask, 8 if rewrite.coded else 0 if binary else 32)
        pack = dataclasses.replace(pack_of(_Headed(), {}), masks={"layer": packed})
        arguments += [decoding_table(), *task_parameters(MASK_PARAMETERS, pack, {}, CLASSES)]
        values = np.repeat(unpack_mask(packed), rewrite.run, axis=1)[:, : math.prod(rest)]
        expected = expected * values.reshape(rewrite.shape)
    if rewrite.epsilon is not None:
        norm = [
            generator.uniform(-1, 1, outputs).astype(np.float32),
            generator.uniform(0.3, 2, outputs).astype(np.float32),
        ]
        factor = norm[0] / np.sqrt(norm[1] + np.float32(rewrite.epsilon))
        arguments += norm
        expected = expected * factor.reshape(-1, *[1] * len(rest))
    expected = expected.transpose(*range(2, expected.ndim), 1, 0)
    if rewrite.tile is not None:
        matrix = np.array(transforms(rewrite.tile).weight, np.float32)
        expected = np.einsum("ay,bx,yxio->abio", matrix, matrix, expected)
        expected = np.moveaxis(expected.reshape(*expected.shape[:-1], -1, rewrite.lanes), -2, 2)
    if rewrite.packed:
        filled = np.pad(expected, [(0, 0)] * (expected.ndim - 1) + [(0, rewrite.zeros)])
        blocks = filled.reshape(*filled.shape[:-1], -1, rewrite.lanes)
        expected = np.moveaxis(blocks, -2, 0)
    return arguments, np.ascontiguousarray(expected)


def assert_as_expected(rewrite: WeightRewrite, result: np.ndarray, expected: np.ndarray) -> None:
    if rewrite.tile is not None:
        assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()
    elif rewrite.coded and not rewrite.rounds:
        # A soft value is a product and a sum, which the CPU may round at once.
        np.testing.assert_array_max_ulp(result, expected, 4)
    else:
        assert result.tobytes() == expected.tobytes()
