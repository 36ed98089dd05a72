"""A look inside an operator, in the terminal."""

from rich.console import Console
from rich.text import Text

from ksm_hw.report.innermost_loops import Loop
from ksm_hw.report.operator_code import OperatorCode
from ksm_hw.report.operator_names import extents


def print_operator_code(console: Console, code: OperatorCode, loops: int) -> None:
    """Prints an operator, with at most so many of its innermost loops."""
    console.print(Text.assemble((code.symbol, "bold"), f": {code.name}"), soft_wrap=True)
    for name, value in _facts(code):
        console.print(f"  {name}: {value}", soft_wrap=True)
    for number, loop in enumerate(code.loops[:loops], 1):
        _print_loop(console, f"loop {number} of {len(code.loops)}", loop)


def _facts(code: OperatorCode) -> list[tuple[str, str]]:
    facts = []
    if code.entry is None:
        facts.append(("cost and schedule", "not in the manifest, which has the operators of an inference"))
    else:
        *arguments, result = map(extents, code.entry.shapes)
        facts += [
            ("tensors", f"{', '.join(arguments)} → {result}"),
            ("one call", f"{code.entry.flops / 1e6:.2f} MFLOP, {code.entry.bytes / 1e6:.2f} MB"),
            ("schedule", code.entry.schedule or "no rule matched"),
        ]
    if code.instructions is None:
        facts.append(("machine code", "of the GPU's kernels, which is not shown"))
    else:
        loops = "1 innermost loop" if len(code.loops) == 1 else f"{len(code.loops)} innermost loops"
        facts.append(("machine code", f"{code.architecture}, {code.instructions} instructions, {loops}"))
    return facts


def _print_loop(console: Console, title: str, loop: Loop) -> None:
    console.print(f"\n{title}: {len(loop.instructions)} instructions, {loop.multiply_adds} of them multiply-adds")
    for instruction in loop.instructions:
        line = f"  {instruction.address:8x}  {instruction.mnemonic:<14} {instruction.operands}".rstrip()
        console.print(line, soft_wrap=True)
