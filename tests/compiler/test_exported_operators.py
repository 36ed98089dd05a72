"""Networks that are lowered without torch's decomposition, against the same ones with it."""

from collections.abc import Callable

import pytest
import torch
import tvm
import tvm_ffi
from torch import nn

from ksm_hw.compiler import lower
from ksm_hw.compiler.exported_operators import misread_operators, needs_decomposition
from ksm_hw.errors import UserError
from ksm_hw.toolchains.targets import load_target
from tvm_passes.relax.pipeline import fold_tasks, fuse_kernels


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, data: torch.Tensor) -> torch.Tensor:
        return self.function(data)


def graph_of(module: nn.Module, *shape: int) -> torch.fx.Graph:
    return torch.export.export(module.eval(), (torch.zeros(shape),)).graph


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("densenet121", "vgg11_bn")]


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", *SLOW])
def test_the_kernels_are_the_same(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tvm.target.Target(dict(load_target("host").tvm))
    kernels, decomposed = [], []
    for forced in (False, True):

        def decide(graph: torch.fx.Graph, forced: bool = forced) -> bool:
            decomposed.append(needs_decomposition(graph) or forced)
            return decomposed[-1]

        monkeypatch.setattr(lower, "needs_decomposition", decide)
        module, _ = fold_tasks(lower.lower_backbone(backbone, classes=10, batch=1, image_size=64), {"": {}}, target)
        kernels.append(fuse_kernels(module, target))
    assert decomposed == [False, True]
    tvm_ffi.structural_equal(*kernels) or pytest.fail(str(tvm_ffi.get_first_structural_mismatch(*kernels)))


def test_what_a_network_is_decomposed_for() -> None:
    # What a view shows, and what is read again, must not be changed in place.
    assert needs_decomposition(graph_of(Function(lambda data: (data + data).flatten(1).relu_()), 1, 3, 8, 8))
    assert needs_decomposition(graph_of(Function(lambda data: data.relu_()), 1, 3, 8, 8))

    def read_through_a_view(data: torch.Tensor) -> torch.Tensor:
        total = data + data
        view = total.flatten(1)
        total.relu_()
        return view

    assert needs_decomposition(graph_of(Function(read_through_a_view), 1, 3, 8, 8))
    assert not needs_decomposition(graph_of(Function(lambda data: (data + data).relu_() + data), 1, 3, 8, 8))
    # Forms that become something else.
    assert needs_decomposition(graph_of(Function(lambda data: data + 1), 1, 3, 8, 8))
    assert needs_decomposition(graph_of(nn.Linear(4, 2), 1, 3, 4))
    assert needs_decomposition(graph_of(nn.Linear(4, 2, bias=False), 3, 4))
    assert not needs_decomposition(graph_of(nn.Linear(4, 2), 3, 4))
    assert needs_decomposition(graph_of(nn.BatchNorm2d(4, affine=False), 2, 4, 8, 8))
    # Torch makes three parts of five channels, TVM four.
    assert needs_decomposition(graph_of(Function(lambda data: data.chunk(4, 1)[0]), 1, 5, 8, 8))
    assert not needs_decomposition(graph_of(Function(lambda data: data.chunk(2, 1)[0]), 1, 4, 8, 8))
    # And what is not known here.
    assert needs_decomposition(graph_of(nn.Hardswish(), 1, 3))
    # Statistics of the batch, which no network has that is lowered.
    batch_norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert needs_decomposition(graph_of(batch_norm, 2, 3, 8, 8))


def pooled_by_three(data: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(data, 2, divisor_override=3)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda data: torch.add(data, data.relu(), alpha=0.5), "TVM computes something else than sums with a factor"),
        (lambda data: data - torch.sub(data, 1 - data, alpha=2), "TVM computes something else than sums with a factor"),
        (lambda data: torch.rsub(data, 1.5, alpha=2), "TVM computes something else than sums with a factor"),
        (pooled_by_three, "TVM computes something else than avg_pool2d with divisor_override"),
        (nn.functional.selu, "TVM computes something else than SELU"),
        (lambda data: data.amax((2, 3), keepdim=True), r"TVM knows none of \['amax.default'\]"),
    ],
)
def test_what_tvm_cannot_read_is_no_network_to_compile(
    function: Callable[[torch.Tensor], torch.Tensor], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, TVM passed over factors and divisors, and what it does not have was a fault of ksm-hw."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Function(function), nn.Flatten(), nn.LazyLinear(5))
    network(torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(lower, "build_backbone", lambda _name, _classes: network)
    with pytest.raises(UserError, match=f"^own cannot be compiled: {why}.*Other engines take it: ksm-hw export"):
        lower.lower_backbone("own", 5, 1, 32)


def test_sums_and_windows_as_networks_have_them_are_read() -> None:
    graph = graph_of(Function(lambda data: nn.functional.avg_pool2d(data + data, 3, 2, 1, True, False)), 1, 3, 8, 8)
    assert not misread_operators(graph)
