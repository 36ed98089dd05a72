"""A backbone at rest in fewer bits: how far weights are from what they were, and files that are none."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ksm_hw.errors import UserError
from ksm_hw.masks.backbone_precision import BackbonePrecision
from ksm_hw.masks.backbone_rounding import SCALE, exact_tensors, rounded_arrays

FILE = Path("backbone.safetensors")


def tensors() -> dict[str, npt.NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((64, 5, 3, 3), np.float32)
    weight *= np.logspace(-20, 20, 64, dtype=np.float32).reshape(-1, 1, 1, 1)
    weight[3] = 0
    weight[4] = 1e-38  # A scale would have no digits left.
    image = generator.standard_normal((8, 3, 3, 3), np.float32)
    return {
        "first.weight": image,
        "weight": weight,
        "dense.weight": weight[:, :, 0, 0],
        "norm.running_var": weight[0, 0, 0],
    }


def test_int8_is_off_by_half_a_step_and_its_products_are_exact() -> None:
    stored = rounded_arrays(tensors(), "int8")
    types = {name: str(array.dtype) for name, array in stored.items()}
    assert types == {
        "first.weight": "float16", "weight": "int8", "weight/scale": "float32", "dense.weight": "int8",
        "dense.weight/scale": "float32", "norm.running_var": "float32",
    }  # fmt: skip
    exact = exact_tensors(stored, "int8", FILE)
    for name in ("weight", "dense.weight"):
        before, scale = tensors()[name], stored[name + SCALE].reshape(-1, *[1] * (exact[name].ndim - 1))
        np.testing.assert_array_equal(exact[name], stored[name] * scale.astype(np.float64))
        error = np.abs(exact[name].astype(np.float64) - before)
        assert (error <= np.abs(before).reshape(64, -1).max(1).reshape(scale.shape) / 253.9 + 1e-37).all()
        assert stored[name].min() == -127 or stored[name].max() == 127
    np.testing.assert_array_equal(exact["norm.running_var"], tensors()["norm.running_var"])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_what_was_read_is_written_as_it_was(precision: BackbonePrecision) -> None:
    given = {name: array.clip(-6e4, 6e4) for name, array in tensors().items()}
    stored = rounded_arrays(given, precision)
    again = rounded_arrays(exact_tensors(stored, precision, FILE), precision)
    assert stored.keys() == again.keys()
    for name, array in stored.items():
        assert array.dtype == again[name].dtype
        np.testing.assert_array_equal(array, again[name])


def test_float16_does_not_hold_every_weight() -> None:
    with pytest.raises(UserError, match=r"'weight' of the backbone has weights up to .* float16 ends at 65504"):
        rounded_arrays(tensors(), "float16")


@pytest.mark.parametrize("factor", [1e-8, 1e6])
def test_a_first_layer_that_float16_does_not_hold(factor: float) -> None:
    """float16 would make zeros of it, or infinity."""
    given = {"first.weight": tensors()["first.weight"] * np.float32(factor)}
    stored = rounded_arrays(given, "int8")
    np.testing.assert_array_equal(exact_tensors(stored, "int8", FILE)["first.weight"], given["first.weight"])
    with pytest.raises(UserError, match=r"'first.weight' .* float16 (loses digits below|ends at)"):
        rounded_arrays(given, "float16")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight/scale": np.full(64, np.inf, np.float32)}, r"found \[64\] of float32, inf among them"),
        ({"weight/scale": np.full(64, 3e38, np.float32)}, r"3e\+38 among them"),
        ({"weight/scale": np.full(64, -1, np.float32)}, r"-1 among them"),
        ({"weight": None}, r"'weight/scale', but no weight"),
        ({"weight/scale": None}, r"'weight' .* as many scales .* found none"),
        ({"weight/scale": np.ones(63, np.float32)}, r"found \[63\] of float32"),
        ({"weight/scale": np.ones(64, np.float64)}, r"found \[64\] of float64"),
        ({"weight/scale": np.zeros(64, np.float32)}, r"scales above 0"),
        ({"weight/scale": np.full(64, np.nan, np.float32)}, r"scales above 0"),
        ({"weight": np.ones((64, 5, 3, 3), np.float32)}, r"'weight' as float32; expected int8"),
        ({"first.weight": np.ones((8, 3, 3, 3), np.int8)}, r"'first.weight' as int8; expected float16"),
        ({"first.weight/scale": np.ones(8, np.float32)}, r"'first.weight' .* is float16"),
        ({"norm.running_var": np.ones(3, np.float16)}, r"expected float32"),
    ],
)
def test_a_file_that_is_none(change: dict[str, npt.NDArray[Any] | None], said: str) -> None:
    stored = {**rounded_arrays(tensors(), "int8"), **change}
    with pytest.raises(UserError, match=said):
        exact_tensors({name: array for name, array in stored.items() if array is not None}, "int8", FILE)
