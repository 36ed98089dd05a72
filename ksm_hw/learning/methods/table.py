"""The table of the methods, and a network that is prepared to learn by one."""

import difflib
from collections.abc import Sequence

from torch import nn

from ksm_hw.errors import UserError
from ksm_hw.learning.methods.binary import BINARY
from ksm_hw.learning.methods.cpg import CPG
from ksm_hw.learning.methods.fine_tuning import FINE_TUNING
from ksm_hw.learning.methods.head import HEAD
from ksm_hw.learning.methods.ksm import KSM
from ksm_hw.learning.methods.method import Method
from ksm_hw.learning.methods.names import TITLES
from ksm_hw.learning.methods.packnet import PACKNET
from ksm_hw.learning.methods.piggyback import PIGGYBACK
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.mask_format import Granularity
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import replace_head

METHODS = {method.name: method for method in (KSM, BINARY, PIGGYBACK, PACKNET, CPG, HEAD, FINE_TUNING)}


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


def granularity_of(options: LearningOptions) -> Granularity:
    """What shares a mask value."""
    return options.granularity or method_named(options.method).granularities[0]


def check_options(options: LearningOptions) -> None:
    """Checks that the method can learn as it is asked to.

    Raises:
        UserError: there is no such method; its masks are of another granularity; there are too few epochs for all that
            it does; it looks at a validation part, and there is none.
    """
    method, title = method_named(options.method), TITLES[options.method]
    if granularity_of(options) not in method.granularities:
        raise UserError(
            f"Masks of {title} have a value for each {' or '.join(method.granularities)}, not for each "
            f"{options.granularity}. Leave out --granularity."
        )
    if options.epochs < method.fewest_epochs:
        raise UserError(
            f"{title} learns, prunes and learns again: it takes at least {method.fewest_epochs} epochs. Give --epochs "
            f"{method.fewest_epochs} or more."
        )
    if method.validation and options.validation == 0:
        raise UserError(f"{title} looks at images that it does not learn. Leave out --validation, or give more than 0.")


def prepared_network(
    backbone: nn.Module, classes: int, options: LearningOptions, older: Sequence[TaskPack] = ()
) -> nn.Module:
    """Turns a pretrained backbone into a network that learns one task, in place, and returns it.

    Everything is frozen but a fresh head and what the method learns.

    Args:
        backbone: the pretrained network.
        classes: outputs of the head.
        options: how to learn.
        older: the other tasks over the backbone's weights.

    Raises:
        UserError: there is no such method, or it cannot learn over these tasks.
    """
    method = method_named(options.method)
    check_options(options)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    replace_head(backbone, classes)
    method.prepare(backbone, options, older)
    return backbone
