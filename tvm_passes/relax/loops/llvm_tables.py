"""Which of LLVM's tables of CPUs order a target's instructions, where those that it takes by itself are another's."""

from collections.abc import Mapping

from tvm.target import Target

# LLVM orders instructions for a Cortex-A76 by the tables of an A57, and has none of its own. Neoverse-N1 is the A76 of
# servers; beside its instructions it has those of a profiler. By the tables of the A55 a load of two registers takes as
# long as six loads, and LLVM makes one of two all the same.
_TABLES: Mapping[str, Mapping[str, str | list[str]]] = {
    "cortex-a55": {"mattr": ["+slow-paired-128"]},
    "cortex-a76": {"mcpu": "neoverse-n1", "mattr": ["-spe"]},
}


def by_tables(target: Target) -> Target:
    """The target whose code is for the same CPU, but ordered by tables that describe it."""
    attributes = dict(target.export())
    tables = _TABLES.get(str(attributes.get("mcpu")))
    if target.kind.name != "llvm" or tables is None:
        return target
    features = [*attributes.get("mattr", ()), *tables["mattr"]]
    return Target({**attributes, **tables, "mattr": features})
