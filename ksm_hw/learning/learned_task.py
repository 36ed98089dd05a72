"""What a network learned: the task's pack, and the backbone as it is afterwards."""

from torch import nn

from ksm_hw.learning.datasets import TaskData
from ksm_hw.learning.methods.masked_weights import pack_masks, shared_weights
from ksm_hw.learning.methods.table import granularity_of, method_named
from ksm_hw.learning.options import LearningOptions
from ksm_hw.masks.growth import Tensors, by_kind
from ksm_hw.masks.mask_format import ScaleBits
from ksm_hw.masks.preprocessing import Preprocessing
from ksm_hw.masks.task_pack import TaskPack
from ksm_hw.models.backbones import head_path


def backbone_after(network: nn.Module, before: Tensors, options: LearningOptions) -> Tensors:
    """The tensors that all tasks share, after a task was learned: those from before unless the method changes them.

    Args:
        network: result of `learn`.
        before: the tensors that it began from.
        options: how it was learned.
    """
    method = method_named(options.method)
    if not method.changes_weights:
        return before
    weights, own = shared_weights(network), set(method.own(network, options))
    return {name: array if name in own else weights[name].copy() for name, array in before.items()}


def task_pack_of(
    network: nn.Module,
    data: TaskData,
    task: str,
    options: LearningOptions,
    backbone: tuple[str, str],
    preprocessing: Preprocessing,
    scale_bits: ScaleBits = 32,
) -> TaskPack:
    """What the network learned, as a task pack.

    Args:
        network: result of `learn`.
        data: the task's images.
        task: name of the task.
        options: how it was learned.
        backbone: (name, SHA-256 of its weights), as they are afterwards.
        preprocessing: of the task.
        scale_bits: bits of a stored soft value.
    """
    state = shared_weights(network)
    head = head_path(network)
    norms, parameters = by_kind(
        {name: state[name] for name in method_named(options.method).own(network, options)}, state
    )
    return TaskPack(
        task=task,
        classes=data.classes,
        method=options.method,
        granularity=granularity_of(options),
        backbone=backbone[0],
        backbone_sha256=backbone[1],
        preprocessing=preprocessing,
        masks=pack_masks(network, scale_bits),
        batch_norms=norms,
        head_weight=state[f"{head}.weight"],
        head_bias=state[f"{head}.bias"],
        parameters=parameters,
    )
