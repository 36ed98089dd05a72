"""Targets: what to compile for, one TOML file each in `targets/`."""

import difflib
import os
import sys
from dataclasses import dataclass
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.resources import targets_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The vector instructions that decide whether compiled code runs, by LLVM's name and by that in /proc/cpuinfo.
_VECTOR_FEATURES = {
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512vnni": "avx512_vnni",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
}


@dataclass(frozen=True)
class CompileTarget:
    """A target.

    Attributes:
        name: of the file.
        description: one line for a person.
        device: TVM device that the artifact runs on.
        tvm: the dictionary of `tvm.target.Target`.
    """

    name: str
    description: str
    device: str
    tvm: dict[str, Any]


def target_names() -> list[str]:
    """Names of the targets that can be given to `--target`."""
    return sorted(path.stem for path in targets_folder().glob("*.toml"))


def load_target(name: str) -> CompileTarget:
    """Reads a target, with what it leaves to this machine filled in.

    Raises:
        UserError: there is no such target; the message names those that are.
    """
    path = targets_folder() / f"{name}.toml"
    if name not in target_names():
        near = difflib.get_close_matches(name, target_names(), n=1)
        raise UserError(
            f"No target named '{name}'."
            + (f" Did you mean '{near[0]}'?" if near else "")
            + f" There are: {', '.join(target_names())}."
        )
    description = tomllib.loads(path.read_text())
    tvm_target = {key: _detected(key) if value == "detect" else value for key, value in description["tvm"].items()}
    return CompileTarget(name, description["description"], description["device"], tvm_target)


def _detected(key: str) -> str | int:
    if key == "num-cores":
        return len(os.sched_getaffinity(0))
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


def required_cpu_features(target: CompileTarget) -> list[str]:
    """The vector instructions that code for an LLVM target may use, by their names in /proc/cpuinfo."""
    from tvm.target import Target, codegen

    with Target(target.tvm):
        return [found for name, found in _VECTOR_FEATURES.items() if codegen.target_has_features([name])]
