"""What a benchmark says of the machine and versions that it ran with."""

import dataclasses
from typing import Any


def facts() -> dict[str, Any]:
    """The machine and versions. Imports TVM: for the processes that measure."""
    import tvm

    from ksm_hw import __version__
    from ksm_hw.runtime.machine import this_machine

    return {"machine": dataclasses.asdict(this_machine()), "tvm": tvm.__version__, "ksm_hw": __version__}
