"""The loops of other engines: their aarch64 wheels, downloaded, unpacked, and disassembled here."""

import collections
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from peers.catalogue import ENVIRONMENTS

from arm64_loops.cores import Core
from arm64_loops.llvm_mca import CostedLoop, cost_loops, products_of
from ksm_hw.toolchains.disassembly import Instruction, disassembler_command, read_instruction

WHEELS = Path(__file__).resolve().parents[2] / "build" / "arm64_peers"
_PLATFORMS = [f"manylinux{name}_aarch64" for name in ("_2_28", "_2_27", "2014")]
_LONGEST, _LEAST = 600, 8  # Instructions of a loop, and products of one that is looked at.
_SYMBOL = re.compile(r"[0-9a-f]+ <(?P<name>.+)>:$")
_BRANCH = re.compile(r"\t(b\.\w+|cbn?z|tbn?z)\s.*?(0x)?(?P<address>[0-9a-f]+) <")
_LEAVES = re.compile(r"(b|bl|blr|br|ret)(\.\w+)?|cbn?z|tbn?z")
_INTEGER_PRODUCT = re.compile(r"[su]+(dot|mmla)|[su]mlal2?")
_BY_LANE = re.compile(r"\.s\[\d\]$")


@dataclass(frozen=True)
class Peer:
    """An engine: its name, the environment of the peers benchmark that pins its wheel, the package, and its library."""

    title: str
    environment: str
    package: str
    library: str


PEERS = (
    Peer("ONNX Runtime", "onnxruntime", "onnxruntime", "onnxruntime/capi/onnxruntime_pybind11_state*.so"),
    Peer("LiteRT", "litert", "ai-edge-litert", "ai_edge_litert/libpywrap_litert_common.so"),
    Peer("ncnn", "ncnn", "ncnn", "ncnn/ncnn*.so"),
)


@dataclass(frozen=True)
class PeerLoop:
    """A loop of an engine: the symbol before it, where it is in the library, and whether it multiplies by lanes.

    By lanes: matrix products and convolutions. Whole registers by whole registers: depthwise convolutions.
    """

    symbol: str
    address: int
    by_lane: bool
    cost: CostedLoop


def peer_loops(peer: Peer, core: Core) -> list[PeerLoop]:
    """The innermost loops of an engine's library that multiply and add float32.

    Raises:
        subprocess.CalledProcessError: the wheel cannot be had, or the library not be read.
    """
    found = library_loops(next(wheel_folder(peer).glob(peer.library)))
    costs = cost_loops([loop for _, loop in found], core)
    return [
        PeerLoop(symbol, loop[0].address, multiplies_by_lane(loop), cost)
        for (symbol, loop), cost in zip(found, costs, strict=True)
    ]


def wheel_folder(peer: Peer) -> Path:
    """The engine's wheel for aarch64, unpacked; it is downloaded once.

    Raises:
        subprocess.CalledProcessError: it cannot be had.
    """
    folder = WHEELS / peer.package
    if not folder.is_dir():
        platforms = [f"--platform={name}" for name in _PLATFORMS]
        WHEELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WHEELS) as name:
            temporary = Path(name)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            command += [*platforms, "--python-version=311", f"--dest={temporary}", requirement_of(peer)]
            subprocess.run(command, check=True)
            (wheel,) = temporary.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(temporary / "unpacked")
            (temporary / "unpacked").rename(folder)
    return folder


def requirement_of(peer: Peer) -> str:
    """The engine's package with its version, as the peers benchmark pins it."""
    return next(one for one in ENVIRONMENTS[peer.environment] if one.startswith(f"{peer.package}=="))


@cache  # Of each core the same, and it takes a minute.
def library_loops(library: Path) -> list[tuple[str, tuple[Instruction, ...]]]:
    """The loops of a library that multiply and add enough, each once, with the symbol before it."""
    return list(dict.fromkeys(_loops(library)))


def _loops(library: Path) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
    """Each loop with the symbol before it. Libraries have millions of instructions, so only those of loops are read."""
    command = [*disassembler_command("aarch64"), "--disassemble", "--no-show-raw-insn", str(library)]
    recent: collections.deque[str] = collections.deque(maxlen=_LONGEST)
    symbol = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if named := _SYMBOL.match(line):
                symbol = named["name"]
                recent.clear()
            elif ":\t" in line:
                recent.append(line)
                if branch := _BRANCH.search(line):
                    # An instruction has four bytes.
                    length = (int(line.partition(":")[0], 16) - int(branch["address"], 16)) // 4 + 1
                    if 1 < length <= len(recent) and (loop := float_loop(list(recent)[-length:])):
                        yield symbol, loop
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def float_loop(lines: list[str]) -> tuple[Instruction, ...] | None:
    """The instructions of lines, if but the last none leaves them, that multiply and add enough, float32 alone."""
    if sum("\tfmla\t" in line or " fmla " in line for line in lines) < _LEAST:
        return None
    loop = tuple(one for line in lines if (one := read_instruction(line)) is not None)
    leaves = any(_LEAVES.fullmatch(one.mnemonic) for one in loop[:-1])
    # Loops of bytes make their sums float32 again behind the products.
    integers = any(_INTEGER_PRODUCT.fullmatch(one.mnemonic) for one in loop)
    return None if leaves or integers or products_of(loop) < _LEAST else loop


def multiplies_by_lane(loop: tuple[Instruction, ...]) -> bool:
    """Whether most of a loop's products are with one value of a register."""
    products = [one.operands for one in loop if one.mnemonic == "fmla"]
    return 2 * sum(bool(_BY_LANE.search(operands)) for operands in products) > len(products)
