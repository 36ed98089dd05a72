"""What device code for NVIDIA GPUs a library carries, read with NVIDIA's cuobjdump; no GPU needed."""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError
from ksm_hw.runtime.cuda import toolkit_file

# The header of a fat binary: magic number, version, bytes of the header, bytes of what follows.
# Source: fatbinary_section.h and cuda_runtime's fatBinaryHeader of CUDA's toolkit.
_HEADER = struct.Struct("<IHHQ")
_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, _HEADER.size)
_KERNEL = re.compile(
    r"Function (?P<name>\S+):\s+REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:(?P<local>\d+)"
)


@dataclass(frozen=True)
class KernelCode:
    """A kernel's machine code for one architecture.

    Attributes:
        name: of the kernel.
        registers: of each thread.
        shared_bytes: shared memory of each block.
        local_bytes: memory of each thread outside its registers: what was spilled, and arrays that found no room.
    """

    name: str
    registers: int
    shared_bytes: int
    local_bytes: int


@dataclass(frozen=True)
class DeviceCode:
    """The device code of a library.

    Attributes:
        kernels: of each architecture that has machine code, such as `sm_80`.
        ptx: architectures of the PTX, which a driver translates for them and for newer ones.
    """

    kernels: dict[str, tuple[KernelCode, ...]]
    ptx: tuple[str, ...]


def read_device_code(library: Path) -> DeviceCode:
    """Reads the device code of a library, such as an artifact's `model.so`, of whatever CPU.

    Raises:
        UserError: the library carries none, or there is no cuobjdump.
    """
    program = toolkit_file("bin/cuobjdump")
    if program is None:
        raise UserError("Reading device code takes NVIDIA's cuobjdump. Install it: pip install 'ksm-hw[cuda]'")
    kernels: dict[str, tuple[KernelCode, ...]] = {}
    ptx: list[str] = []
    for binary in _fat_binaries(library.read_bytes()):
        for kind, architecture, text in _sections(program, binary):
            if kind == "ptx":
                ptx.append(architecture)
            else:
                kernels[architecture] = kernels.get(architecture, ()) + _kernels(text)
    if not kernels and not ptx:
        raise UserError(f"{library} carries no device code for NVIDIA GPUs. Compile it with `--target cuda-sm_80`.")
    return DeviceCode(kernels, tuple(ptx))


def _fat_binaries(content: bytes) -> Iterator[bytes]:
    start = content.find(_MAGIC)
    while start >= 0:
        *_, size = _HEADER.unpack_from(content, start)
        yield content[start : start + _HEADER.size + size]
        start = content.find(_MAGIC, start + _HEADER.size)


def _sections(program: Path, binary: bytes) -> Iterator[tuple[str, str, str]]:
    """For each part of a fat binary `elf` or `ptx`, its architecture, and cuobjdump's text about it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.fatbin"
        path.write_bytes(binary)
        done = subprocess.run([program, "-res-usage", path], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise UserError(f"{program} cannot read the device code: {done.stderr.strip()}")
    for part in re.split(r"^Fatbin (?=elf|ptx)", done.stdout, flags=re.MULTILINE)[1:]:
        architecture = re.search(r"^arch = (\S+)", part, re.MULTILINE)
        assert architecture is not None
        yield part[:3], architecture[1], part


def _kernels(text: str) -> tuple[KernelCode, ...]:
    return tuple(
        KernelCode(
            found["name"], int(found["registers"]), int(found["shared"]), int(found["stack"]) + int(found["local"])
        )
        for found in _KERNEL.finditer(text)
    )
