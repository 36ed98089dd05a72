"""Imports torchvision beside a CPU torch.

The wheel of torchvision that the package index serves is linked against CUDA. Beside a CPU torch its compiled operators
cannot load, and `import torchvision` then fails because the schema of `torchvision::nms` does not exist. ksm-hw needs
only models, transforms and data sets, which are plain Python: defining the missing schemas is enough.
"""

import functools
from types import ModuleType

import torch


@functools.cache
def import_torchvision() -> ModuleType:
    """The module `torchvision`; models, transforms and datasets work, `torchvision.ops.nms` may not."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        # The registration lives as long as this object.
        import_torchvision.library = library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[attr-defined]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    module: ModuleType = torchvision
    return module
