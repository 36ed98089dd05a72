"""Checks this machine for each target: what is there to compile for it, and to run it here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ksm_hw.errors import UserError
from ksm_hw.toolchains.linker import architecture_of, linker_command
from ksm_hw.toolchains.targets import CompileTarget, describe_targets, load_target


@dataclass(frozen=True)
class Finding:
    """What a target lacks on this machine.

    Attributes:
        target: its name.
        ready: whether it can be compiled for.
        text: one line: what was found, or what is missing and the command that installs it.
    """

    target: str
    ready: bool
    text: str


def examine(names: list[str] | None = None) -> list[Finding]:
    """Examines this machine for the named targets; for all without names.

    Raises:
        UserError: there is no target of a name.
    """
    targets = describe_targets() if names is None else [load_target(name) for name in names]
    return [_examine(target) for target in targets]


def _examine(target: CompileTarget) -> Finding:
    architecture = architecture_of(target.cpu)
    linker, missing = _outcome(lambda: linker_command(architecture))
    found = [f"links with {' '.join(linker[-3:])}"] if linker else []
    if target.device == "cuda":
        from ksm_hw.toolchains.cuda import find_cuda_compiler

        compiler, lack = _outcome(find_cuda_compiler)
        found += [f"compiles with {compiler}"] if compiler else []
        missing += lack
    if missing:
        return Finding(target.name, False, " ".join(missing))
    return Finding(target.name, True, "; ".join([*found, _where_it_runs(target)]))


def _where_it_runs(target: CompileTarget) -> str:
    if target.is_for_a_board:
        return "runs on a board (`ksm-hw board`)"
    if target.device == "cpu":
        return "runs here"
    return "runs where such a GPU is"


def _outcome(find: Callable[[], Any]) -> tuple[Any, list[str]]:
    """What a search found, and the message of its failure."""
    try:
        return find(), []
    except UserError as error:
        return None, [str(error)]
