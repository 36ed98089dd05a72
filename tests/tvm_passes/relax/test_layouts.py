"""Activations stay channels-last from the first layer to the last."""

import pytest
import tvm
from operator_cases import HOST
from tvm import relax

from ksm_hw.compiler.lower import lower_backbone
from tvm_passes.relax.pipeline import fold_tasks

SIDE = 64


@pytest.mark.parametrize(
    ("backbone", "flattened"),
    [
        ("resnet18", None),
        ("mobilenet_v2", None),
        pytest.param("densenet121", None, marks=pytest.mark.slow),
        ("efficientnet-lite0", None),
        ("vgg16_bn", [1, 512, 7, 7]),  # Its first linear layer reads the values of a map in the order of PyTorch.
    ],
)
def test_layouts_change_only_at_the_ends(backbone: str, flattened: list[int] | None) -> None:
    module, functions = fold_tasks(lower_backbone(backbone, 10, 1, SIDE), {"unmasked": {}}, HOST)
    changed: list[list[int]] = []

    def visit(expression: relax.Expr) -> None:
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.permute_dims"):
            changed.append([int(extent) for extent in expression.ty.shape])

    relax.analysis.post_order_visit(module[functions["unmasked"].main], visit)
    assert changed == [[1, SIDE, SIDE, 3], *([] if flattened is None else [flattened])]
