"""Targets: what to compile for, one TOML file each in `targets/`, or a user's own file."""

import dataclasses
import difflib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional

import msgspec

from ksm_hw.errors import UserError, did_you_mean
from ksm_hw.json_document import Count, Positive
from ksm_hw.resources import targets_folder
from ksm_hw.runtime.tvm_import import import_tvm_before_torch
from ksm_hw.toolchains.linker import architecture_of

_log = logging.getLogger(__name__)

DEVICES = ("cpu", "opencl", "cuda")

# The vector instructions that decide whether compiled code runs, by LLVM's name and by that in /proc/cpuinfo.
VECTOR_FEATURES = {
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",  # LLVM shuffles bytes by it.
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "gfni": "gfni",  # LLVM shifts bytes by it.
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "sve": "sve",
}


@dataclass(frozen=True)
class CompileTarget:
    """A target.

    Attributes:
        name: of the file.
        description: one line for a person.
        device: TVM device that the artifact runs on: `cpu`, `opencl` or `cuda`.
        tvm: the dictionary of `tvm.target.Target`; for a GPU it holds the CPU beside it as `host`.
        architectures: of a CUDA target: the compute capabilities that get machine code. The first is that in `tvm`.
        cores: numbers, as Linux gives them, of the CPU's cores that threads are pinned to; empty where it may be any.
        fast_cores: of a CPU whose threads may be on any core: numbers of its fast ones (`on_fast_cores`); empty where
            all are alike.
    """

    name: str
    description: str
    device: str
    tvm: Mapping[str, Any]
    architectures: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    fast_cores: tuple[int, ...] = ()

    @property
    def cpu(self) -> Mapping[str, Any]:
        """The dictionary of the CPU: that of the target, or of a GPU's host."""
        return self.tvm if self.device == "cpu" else self.tvm["host"]

    @property
    def is_for_a_board(self) -> bool:
        """Whether its CPU is of another architecture than this machine's, which can only compile for it."""
        return architecture_of(self.cpu) != platform.machine()


def check_runs_here(target: CompileTarget) -> None:
    """Checks before long work that what is compiled for a target can be measured on this machine.

    Raises:
        UserError: only on a board.
    """
    if target.is_for_a_board:
        raise UserError(
            f"{target.name} is a board of {architecture_of(target.cpu)}, and this machine is {platform.machine()}: say "
            "where to measure, by --tracker (`ksm-hw board list` shows what a tracker knows)."
        )


class _TvmTarget(msgspec.Struct, rename="kebab"):
    """What ksm-hw itself reads in the dictionary for TVM, which may hold more."""

    kind: str
    mtriple: str = ""
    mcpu: str = ""
    mattr: tuple[str, ...] = ()
    num_cores: Positive | Literal["detect"] = 1
    arch: str = ""
    host: Optional["_TvmTarget"] = None


class _TargetFile(msgspec.Struct):
    """A target's file."""

    description: str
    device: str
    tvm: dict[str, Any]
    cores: tuple[Count, ...] = ()
    fast_cores: tuple[Count, ...] = msgspec.field(default=(), name="fast-cores")


def target_names() -> list[str]:
    """Names of the targets that can be given to `--target`."""
    return sorted(path.stem for path in targets_folder().glob("*.toml"))


def describe_targets() -> list[CompileTarget]:
    """All targets as their files say, with "detect" where they leave something to the machine."""
    return [_read(targets_folder() / f"{name}.toml", name) for name in target_names()]


def load_target(
    name: str, *, file: Path | None = None, arch: str | None = None, host: str | None = None
) -> CompileTarget:
    """Reads a target, with what it leaves to this machine filled in.

    Args:
        name: one of `target_names`; with `file` only what the target is called.
        file: a description outside `targets/`.
        arch: of a CUDA target: a compute capability, such as `sm_80`, in place of the target's; or several, with commas
            between them: each gets machine code, and the kernels are scheduled for the first.
        host: of a GPU target: a CPU target whose CPU takes the place of the target's host.

    Raises:
        UserError: there is no such target, the file is damaged, TVM or LLVM knows no such CPU or feature, or a GPU that
            should be detected is not there.
    """
    target = _read(_path_of(name) if file is None else file, name)
    tvm_target = dict(target.tvm)
    others: list[str] = []
    if arch is not None:
        if target.device != "cuda":
            raise UserError(f"--arch is for CUDA targets; '{name}' is for {target.device}.")
        tvm_target["arch"], *others = arch.split(",")
    if host is not None:
        if target.device == "cpu":
            raise UserError(f"--host-cpu is for GPU targets; '{name}' is a CPU itself.")
        other = on_fast_cores(load_target(host))
        if other.device != "cpu":
            raise UserError(f"--host-cpu takes a CPU target; '{host}' is for {other.device}.")
        tvm_target["host"] = other.tvm
        target = dataclasses.replace(target, cores=other.cores)
    import_tvm_before_torch()
    tvm_target = _detected(tvm_target, name)
    architectures = (tvm_target["arch"], *others) if target.device == "cuda" else ()
    target = dataclasses.replace(target, tvm=tvm_target, architectures=architectures)
    _check_cpu(target)
    return target


def on_fast_cores(target: CompileTarget) -> CompileTarget:
    """A target kept to its fast cores, for what waits for its slowest thread: Relay's loops, or a GPU's host.

    Relax's loops for a CPU are shared out as cores become free, and slow ones help (docs/shared_loops.md).
    """
    if not target.fast_cores:
        return target
    tvm_target = {**target.tvm, "num-cores": len(target.fast_cores)}
    return dataclasses.replace(target, tvm=tvm_target, cores=target.fast_cores, fast_cores=())


def _path_of(name: str) -> Path:
    if name not in target_names():
        raise UserError(
            f"No target named '{name}'.{did_you_mean(name, target_names())} There are: {', '.join(target_names())}. "
            "`compile`, `tune` and `targets show` take one of your own by --target-file."
        )
    return targets_folder() / f"{name}.toml"


def _read(path: Path, name: str) -> CompileTarget:
    try:
        content = msgspec.toml.decode(path.read_bytes(), type=_TargetFile)
        msgspec.convert(content.tvm, _TvmTarget)
        target = CompileTarget(
            name, content.description, content.device, content.tvm, (), content.cores, content.fast_cores
        )
        if target.device not in DEVICES:
            raise UserError(f"{path}: device is '{target.device}'; expected one of {', '.join(DEVICES)}.")
        kind = {"cpu": "llvm"}.get(target.device, target.device)
        if target.tvm["kind"] != kind or target.cpu["kind"] != "llvm":
            raise UserError(f'{path}: a target for {target.device} needs kind = "{kind}", and "llvm" for the CPU.')
        if target.device != "cpu" and target.fast_cores:
            raise UserError(f"{path}: fast-cores is for CPUs. Of a GPU's host, cores are those to pin threads to.")
        if target.device == "cuda" and "arch" not in target.tvm:
            raise UserError(f'{path}: a target for cuda needs an arch, such as "sm_80", or "detect".')
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} describes no target ({error}). It needs description, device and [tvm]; [tvm.host] too for a "
            "GPU; fast-cores and cores, where there are some, are numbers, such as [4, 5, 6, 7]. targets/arm64.toml is "
            "an example."
        ) from error
    return target


def _detected(tvm_target: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The dictionary with what this machine says in the place of each "detect"."""
    detect = {"num-cores": lambda: len(os.sched_getaffinity(0)), "mcpu": _this_cpu, "arch": _this_gpu}
    found: dict[str, Any] = {}
    for key, value in tvm_target.items():
        if isinstance(value, Mapping):
            found[key] = _detected(value, f"{name}'s {key}")
        elif value == "detect":
            found[key] = detect[key]()
            _log.info("target %s: %s of this machine is %s", name, key, found[key])
        else:
            found[key] = value
    return found


def _this_cpu() -> str:
    from tvm.target.codegen import llvm_get_system_cpu

    return str(llvm_get_system_cpu())


def _this_gpu() -> str:
    """The compute capability of the first NVIDIA GPU, as `sm_80`."""
    program = shutil.which("nvidia-smi")
    command = [program or "nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True) if program else None
    if found is None or found.returncode != 0 or not found.stdout.strip():
        raise UserError("No NVIDIA GPU was found here (nvidia-smi). Name the one to compile for: --arch sm_80.")
    return "sm_" + found.stdout.split()[0].replace(".", "")


def _check_cpu(target: CompileTarget) -> None:
    """Finds a CPU or feature that LLVM does not know before the build, where LLVM would go on without it."""
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_archlist, llvm_get_targets

    triple = {key: target.cpu[key] for key in ("kind", "mtriple") if key in target.cpu}
    # LLVM's lookup of an unknown architecture's CPUs is a crash.
    architectures = {str(name).replace("-", "_") for name in llvm_get_targets()}
    _check_known(target.name, "architecture", architecture_of(target.cpu), architectures)
    cpus = map(str, llvm_get_cpu_archlist(Target(triple)))
    _check_known(target.name, "mcpu", target.cpu.get("mcpu", "generic"), {*cpus, "generic"})
    if attributes := target.cpu.get("mattr"):
        known = _known_features(triple)
        for attribute in attributes:
            _check_known(target.name, "mattr", attribute.lstrip("+-"), known)
    try:
        Target(dict(target.tvm))
    except Exception as error:
        message = str(error).strip().splitlines()[-1]
        raise UserError(f"Target '{target.name}': TVM does not take it: {message}") from error


# How to order instructions, by architecture, which no CPU of LLVM's has: `targets/rk3588.toml`.
_OF_NO_CPU = {"aarch64": {"slow-paired-128"}}


def _known_features(triple: Mapping[str, Any]) -> set[str]:
    """All features that LLVM knows for an architecture, of whatever CPU."""
    from tvm.target import Target
    from tvm.target.codegen import llvm_get_cpu_archlist, llvm_get_cpu_features

    of_cpus = {
        str(feature)
        for cpu in llvm_get_cpu_archlist(Target(dict(triple)))
        for feature in llvm_get_cpu_features(Target({**triple, "mcpu": str(cpu)}))
    }
    return of_cpus | _OF_NO_CPU.get(architecture_of(triple), set())


def _check_known(target: str, field: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=3)
        raise UserError(
            f"Target '{target}': LLVM knows no {field} '{value}'."
            + (f" Near it: {', '.join(near)}." if near else f" It knows: {', '.join(sorted(known))}.")
        )


def required_cpu_features(target: CompileTarget) -> list[str]:
    """The vector instructions that the code for the CPU may use, by their names in /proc/cpuinfo."""
    from tvm.target import Target, codegen

    with Target(dict(target.cpu)):
        return [found for name, found in VECTOR_FEATURES.items() if codegen.target_has_features([name])]
