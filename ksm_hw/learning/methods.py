"""The methods that learn a task, as one table. Needs no torch, so that the command line can show it."""

import difflib
from dataclasses import dataclass

from ksm_hw.errors import UserError


@dataclass(frozen=True)
class Method:
    """A way to learn a task over a pretrained backbone. Every method learns a fresh head; what else, is said here.

    Attributes:
        name: for the command line and in task packs.
        title: for people.
        masks: whether the layers get masks.
        soft: whether those have soft values where the binary mask is 0.
        batch_norms: whether BatchNorms are learned and their statistics gathered.
        weights: whether the weights are learned. Then the result is a whole network and no task pack.
    """

    name: str
    title: str
    masks: bool = False
    soft: bool = False
    batch_norms: bool = False
    weights: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("ksm", "KSM soft masks", masks=True, soft=True, batch_norms=True),
        Method("binary", "binary masks", masks=True, batch_norms=True),
        Method("head", "head only"),
        Method("fine-tuning", "fine-tuning", batch_norms=True, weights=True),  # To compare with.
    )
}

# Those whose result is a task pack.
PACK_METHODS = {name: method for name, method in METHODS.items() if not method.weights}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        UserError: there is none; the message names those there are.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise UserError(f"No method named '{name}'.{hint} There are: {', '.join(METHODS)}.")
    return METHODS[name]
