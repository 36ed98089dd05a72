"""A dtype that a pass does not know is an error, which names the pass, the parameter and the dtype."""

import dataclasses
from pathlib import Path

import pytest
import tvm
from tvm import relax

from ksm_hw.artifact.parameters import HEAD_WEIGHT
from ksm_hw.compiler import lower
from ksm_hw.compiler import relax as compiler
from ksm_hw.compiler.compile import compile_bundle
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle
from ksm_hw.models.backbones import build_backbone
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.dtypes import UnknownDtypeError
from tvm_passes.relax.fold_task_mask import MaskLayout
from tvm_passes.relax.pipeline import fold_tasks

HOST = tvm.target.Target("llvm")


def network_of(layer: str, dtype: str, features: int = 8) -> tvm.IRModule:
    """A convolution with weights [8, 3, 3, 3], and a linear layer's weight, which nothing reads."""
    builder = relax.BlockBuilder()
    types = {"input": (1, 3, 8, 8), f"{layer}.weight": (8, 3, 3, 3), HEAD_WEIGHT: (5, features)}
    parameters = [relax.Var(name, relax.TensorType(shape, dtype)) for name, shape in types.items()]
    with builder.function("main", parameters, attrs={"num_input": 1}):
        with builder.dataflow():
            result = builder.emit_output(relax.op.nn.conv2d(*parameters[:2], out_dtype=dtype))
        builder.emit_func_output(result)
    return builder.get()


def test_a_masked_weight_in_half_precision() -> None:
    with pytest.raises(UnknownDtypeError, match=r"^FoldTaskMask knows float32, and 'stem.weight' is float16\.$"):
        fold_tasks(network_of("stem", "float16"), {"masked": {"stem": MaskLayout((8, 3))}}, HOST)


def test_a_convolution_in_half_precision() -> None:
    with pytest.raises(UnknownDtypeError, match=r"^WeightLayouts knows float32, and 'stem.weight' is float16\.$"):
        fold_tasks(network_of("stem", "float16"), {"unmasked": {}}, HOST)


def test_what_a_pass_does_not_know_is_bad_input(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = bundle.packs["kernel-task"]
    layer = next(iter(pack.masks))
    network = network_of(layer, "float16", features=pack.head_weight.shape[1])
    monkeypatch.setattr(compiler, "lower_backbone", lambda *_: network)
    one = dataclasses.replace(bundle, packs={"kernel-task": pack})
    with pytest.raises(UserError, match=rf"FoldTaskMask knows float32, and '{layer}.weight' is float16.*Use float32"):
        compile_bundle(one, load_target("host"), tmp_path / "artifact")


def test_a_backbone_in_half_precision_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "build_backbone", lambda name, classes: build_backbone(name, classes).half())
    with pytest.raises(UserError, match=r"'conv1.0.weight' of shufflenet_v2_x0_5 is torch.float16"):
        lower.lower_backbone("shufflenet_v2_x0_5", 5, 1, 32)
