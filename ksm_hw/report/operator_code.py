"""A look inside one operator of an artifact: what it costs, how it is scheduled, and the loops of its machine code."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ksm_hw.artifact.manifest import LIBRARY, Manifest, OperatorEntry, read_manifest
from ksm_hw.errors import UserError
from ksm_hw.report.innermost_loops import Loop, innermost_loops
from ksm_hw.report.operator_names import extents, operator_name
from ksm_hw.toolchains.disassembly import CHECKS, Instruction, disassemble, loops_function
from ksm_hw.toolchains.linker import architecture_of

_NEAR = 3  # Names in a message.


@dataclass(frozen=True)
class OperatorCode:
    """An operator and its machine code.

    Attributes:
        symbol: in the library; `name` what it does, such as `conv2d 3×3 s2 + add + relu`.
        entry: of the manifest; None for what an inference does not call, as the rewriting of weights.
        architecture: of the machine code, as `platform.machine` names it.
        instructions: how many; None for a GPU, whose kernels are not read.
        loops: the innermost, those with most multiply-adds first.
    """

    symbol: str
    name: str
    entry: OperatorEntry | None
    architecture: str
    instructions: int | None
    loops: tuple[Loop, ...]


def operator_code(artifact: Path, name: str) -> OperatorCode:
    """Looks inside an operator. Nothing runs: the artifact may be for another machine.

    Args:
        artifact: folder that `ksm-hw compile` wrote.
        name: a symbol of the library, or what `ksm-hw profile` calls the operator.

    Raises:
        UserError: the artifact is missing or damaged, or went through Relay; there is no such operator, or several are
            called so; or no disassembler is here.
    """
    manifest = read_manifest(artifact)
    if manifest.ir != "relax":
        raise UserError(f"{artifact} was compiled through Relay, whose operators are not told apart. Use --ir relax.")
    architecture = architecture_of(manifest.cpu)
    functions: dict[str, tuple[Instruction, ...]] = {}
    if manifest.device == "cpu":
        functions = disassemble(artifact / LIBRARY, architecture)
    symbol = _symbol(name, manifest, [found.removeprefix(CHECKS) for found in functions if found.startswith(CHECKS)])
    function = functions.get(loops_function(symbol, functions), ())
    entry = manifest.operators.get(symbol)
    return OperatorCode(
        symbol=symbol,
        name=operator_name(symbol, entry.shapes if entry is not None else ()),
        entry=entry,
        architecture=architecture,
        instructions=len(function) if manifest.device == "cpu" else None,
        loops=tuple(innermost_loops(function)),
    )


def operator_code_as_json(code: OperatorCode) -> dict[str, Any]:
    """The same as dictionaries, lists, numbers and texts alone; each instruction is a text."""
    entry = code.entry
    return {
        "symbol": code.symbol,
        "name": code.name,
        "flops": None if entry is None else entry.flops,
        "bytes": None if entry is None else entry.bytes,
        "shapes": None if entry is None else [list(shape) for shape in entry.shapes],
        "schedule": None if entry is None else entry.schedule,
        "architecture": code.architecture,
        "instructions": code.instructions,
        "loops": [
            {
                "address": loop.instructions[0].address,
                "multiply_adds": loop.multiply_adds,
                "instructions": [str(instruction) for instruction in loop.instructions],
            }
            for loop in code.loops
        ],
    }


def _symbol(name: str, manifest: Manifest, others: Collection[str]) -> str:
    """The symbol of an operator by whichever name; `others` are symbols that the manifest may not have."""
    symbols = {*manifest.operators, *others}
    if name in symbols:
        return name
    named: dict[str, list[str]] = {}
    for symbol, entry in manifest.operators.items():
        named.setdefault(operator_name(symbol, entry.shapes), []).append(symbol)
    if name not in named:
        known = [*named, *sorted(symbols - named.keys())]
        near = difflib.get_close_matches(name, known, n=_NEAR) or [other for other in known if name in other][:_NEAR]
        hint = f"Near it: {', '.join(near)}." if near else "`ksm-hw profile` lists those of an inference."
        raise UserError(f"No operator named '{name}'. {hint}")
    symbol, *more = named[name]
    if more:
        results = (f"{each} ({extents(manifest.operators[each].shapes[-1])})" for each in (symbol, *more))
        raise UserError(f"Several operators are called '{name}'. Give the symbol of one: {', '.join(results)}.")
    return symbol
