"""TVM's descriptions of tensor instructions: tuning leaves out those that its target cannot use. Needs no TVM."""

import sys
import types


def leave_out_tensor_intrinsics(*modules: str) -> None:
    """From now on an import of these modules in this process finds them empty, if nothing imported them before.

    MetaSchedule's TuneContext imports the descriptions for all devices, whatever its target, and that takes half a
    minute. An import cannot be told what to leave out, but it takes what is there.

    Args:
        modules: names of TVM's modules. What lies in them must be of no use to the schedules that are searched.
    """
    for module in modules:
        sys.modules.setdefault(module, types.ModuleType(module))
