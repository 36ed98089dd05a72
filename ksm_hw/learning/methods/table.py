"""The table of the methods, and a network that is prepared to learn by one."""

from collections.abc import Sequence

from torch import nn

from ksm_hw.errors import UserError, did_you_mean
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
from ksm_hw.masks.mask_format import Granularity, ScaleBits
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import replace_head

# Options that only some methods read, and their flags; the names are those of `LearningOptions`, `MaskConstants` and of
# the bits of a pack.
SPECIAL_OPTIONS = {
    "mask_rate": "--mask-rate",
    "norm_rate": "--norm-rate",
    "layer_norms": "--no-layer-norms",
    "granularity": "--granularity",
    "initial": "--mask-initial",
    "threshold": "--mask-threshold",
    "slope": "--mask-slope",
    "temperature": "--mask-temperature",
    "scale_weight": "--mask-scale-weight",
    "scale_bits": "--scale-bits",
    "prune": "--prune",
    "accuracy_goal": "--accuracy-goal",
    "max_width": "--max-width",
}

METHODS = {method.name: method for method in (KSM, BINARY, PIGGYBACK, PACKNET, CPG, HEAD, FINE_TUNING)}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        UserError: there is none; the message names those there are.
    """
    if name not in METHODS:
        raise UserError(f"No method named '{name}'.{did_you_mean(name, METHODS)} There are: {', '.join(METHODS)}.")
    return METHODS[name]


def granularity_of(options: LearningOptions) -> Granularity:
    """What shares a mask value."""
    return options.granularity or method_named(options.method).granularities[0]


def check_read(options: LearningOptions, scale_bits: ScaleBits) -> None:
    """Checks that the method reads what a user asks for; a default is what nobody asked for.

    Raises:
        UserError: an option that has another value means nothing to the method, or to it without another.
    """

    def values(of: LearningOptions, bits: ScaleBits) -> dict[str, object]:
        return {**vars(of), **vars(of.constants), "scale_bits": bits}

    method, given, default = method_named(options.method), values(options, scale_bits), values(LearningOptions(), 32)
    for name, flag in SPECIAL_OPTIONS.items():
        if name not in method.reads and given[name] != default[name]:
            readers = ", ".join(other.name for other in METHODS.values() if name in other.reads)
            raise UserError(
                f"{TITLES[options.method]} has no use for {flag}. Leave it out, or give --method with one of {readers}."
            )
    if options.accuracy_goal is None and options.max_width != LearningOptions().max_width:
        raise UserError(
            f"{TITLES[options.method]} grows for a goal of accuracy alone, and --max-width is given without one. Give "
            "--accuracy-goal too, or leave out --max-width."
        )


def check_older(options: LearningOptions, share: float, older: Sequence[TaskPack]) -> None:
    """Checks that the method can learn over the weights of older tasks, which leave a share in 0…1 free.

    Raises:
        UserError: it needs all weights, or more than are free.
    """
    method = method_named(options.method)
    if method.alone and older:
        title = TITLES[options.method]
        raise UserError(f"{title} changes all weights, and task '{older[0].task}' uses them. Give another --bundle.")
    if share < (least := method.least_free):
        raise UserError(
            f"{share:.2%} of the weights are free, and {TITLES[options.method]} needs {least:.0%}: the older tasks "
            f"({', '.join(pack.task for pack in older)}) use the others. Give another --bundle; learn by --method "
            "piggyback, which needs no free weight; or learn the older tasks again by PackNet with a larger --prune."
        )


def check_sequence(options: LearningOptions, count: int) -> None:
    """Checks that the method can learn so many tasks one after another into one bundle.

    Raises:
        UserError: each needs a bundle of its own; the first ones would leave the last too few free weights.
    """
    method, title = method_named(options.method), TITLES[options.method]
    if method.alone and count > 1:
        raise UserError(
            f"{title} changes all weights, so that a bundle holds one such task. Give each its own --bundle, with "
            "--task and --data."
        )
    if method.least_free and (left := options.prune ** (count - 1)) < method.least_free:
        raise UserError(
            f"With --prune {options.prune:g} the last of {count} tasks would find {left:.2%} of the weights free, and "
            f"{title} needs {method.least_free:.0%}. Give a larger --prune, or fewer tasks."
        )


def check_options(options: LearningOptions) -> None:
    """Checks that the method can learn as it is asked to.

    Raises:
        UserError: there is no such method; its masks are of another granularity; there are too few epochs for all that
            it does, or for those in int8; it looks at a validation part, and there is none; it prunes by accuracies,
            and some would be of int8.
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
    if options.precision == "float32":
        if options.int8_epochs is not None:
            raise UserError("--int8-epochs says how many epochs learn in int8. Give --precision int8 too.")
    elif method.grows:
        raise UserError(
            f"{title} grows and prunes by the accuracy of each epoch in float32. Learn with --precision float32, and "
            "let calibration quantise what it gives; or give another --method."
        )
    elif options.epochs_in_float < 0:
        raise UserError(f"--int8-epochs {options.int8_epochs} is more than --epochs {options.epochs}.")


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
