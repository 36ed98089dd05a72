"""The name of a mask, from which that of the weight follows that it multiplies, and the other way round.

A mask has the path of its layer, whose weight is `<path>.weight`. Attention keeps the weights of several layers in one
tensor of another name (`in_proj_weight` of PyTorch's `nn.MultiheadAttention`: queries, keys and values, [3·E, E]), and
a mask of such a weight has the whole of its name. Both are called a layer. Needs no NumPy.
"""

OTHER_NAMES = ("in_proj_weight",)


def weight_of(layer: str) -> str:
    """The name of a layer's weight in the network's state dict."""
    return layer if has_other_name(layer) else f"{layer}.weight"


def layer_of(weight: str) -> str:
    """The layer of a weight by its name in the network's state dict; a tensor that is no weight has its own."""
    return weight.removesuffix(".weight")


def bias_of(layer: str) -> str:
    """The name that a layer's bias has, if there is one."""
    return weight_of(layer).removesuffix("weight") + "bias"


def has_other_name(layer: str) -> bool:
    """Whether a layer is called by its weight's own name."""
    return layer.rpartition(".")[2] in OTHER_NAMES
