"""A transformer's block, through all passes: attention, LayerNorm, and linear layers with GELU between them."""

import warnings

import numpy as np
import pytest
import torch
import tvm
from operator_cases import HOST, values
from torch import nn
from torch.nn import functional
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from ksm_hw.compiler.build import build_executable
from tvm_passes.relax.pipeline import fold_tasks, plan_memory, schedule_kernels


class Block(nn.Module):
    """A block as ViT and Swin have it, [B, N, width] → [B, N, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's result."""
        batch, tokens, width = x.shape
        parts = self.qkv(self.before_attention(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attention = functional.softmax(query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5, -1)
        x = x + self.joined((attention @ value).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.narrower(functional.gelu(self.wider(self.before_layers(x))))


@pytest.mark.parametrize(
    ("batch", "tokens", "width", "heads"),
    [(4, 49, 96, 3), (1, 197, 64, 4), (2, 1, 48, 3), (1, 5, 32, 2), (3, 17, 40, 5)],
    ids=["windows of Swin", "tokens of ViT", "one token", "few tokens", "odd"],
)
def test_a_block_equals_torch(batch: int, tokens: int, width: int, heads: int) -> None:
    torch.manual_seed(0)
    block = Block(width, heads).eval()
    (data,) = values((batch, tokens, width))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(block, (torch.from_numpy(data),))
        module = from_exported_program(exported, keep_params_as_input=True, unwrap_unit_return_tuple=True)
        expected = block.double()(torch.from_numpy(data).double()).numpy()
    module, parameters = relax.frontend.detach_params(module)
    folded, functions = fold_tasks(module, {"plain": {}}, HOST)
    scheduled = plan_memory(schedule_kernels(folded, HOST), HOST)
    machine = relax.VirtualMachine(build_executable(scheduled, HOST), tvm.cpu())
    plain = functions["plain"]
    arguments = dict(zip((one.name for one in module["main"].params[1:]), parameters["main"], strict=True))
    weights = [arguments[name] for name in plain.parameters]
    if plain.rewrite is not None:
        weights = list(machine[plain.rewrite](weights))
    found = machine[plain.main](tvm.runtime.tensor(data), *weights)
    np.testing.assert_allclose((found if hasattr(found, "numpy") else found[0]).numpy(), expected, rtol=1e-4, atol=2e-5)
