"""What a process can learn of the machine that it runs on: its CPU, memory, and what it uses of both."""

import ctypes
import os
import platform
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ksm_hw.errors import UserError

# Linux tells an ARM program of the CPU's instructions in two words of bits, by the names of /proc/cpuinfo. The words
# are asked for, and not that file, because an emulator's /proc/cpuinfo is that of the machine below.
# Source: Linux, arch/arm64/include/uapi/asm/hwcap.h; AT_HWCAP and AT_HWCAP2 of getauxval(3).
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_HWCAP_BITS = {"asimd": 1, "fphp": 9, "asimdhp": 10, "asimddp": 20, "sve": 22}
_HWCAP2_BITS = {"sve2": 1, "i8mm": 13, "bf16": 14}


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        cpu: model; `architecture` as Python names it, `system` the kernel.
        cores: that this process may use.
        memory_bytes: of the machine.
        load: how many processes wanted a core in the last minute; 0 is a quiet machine.
    """

    cpu: str
    architecture: str
    system: str
    cores: int
    memory_bytes: int
    load: float


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import psutil

    return Machine(
        cpu=_cpu_model(),
        architecture=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        cores=available_cores(),
        memory_bytes=psutil.virtual_memory().total,
        load=os.getloadavg()[0],
    )


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_features() -> frozenset[str] | None:
    """The CPU's instructions by their names in /proc/cpuinfo; None where this system does not tell."""
    if platform.machine() == "aarch64":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        words = (getauxval(_AT_HWCAP), _HWCAP_BITS), (getauxval(_AT_HWCAP2), _HWCAP2_BITS)
        return frozenset(name for word, bits in words for name, bit in bits.items() if word >> bit & 1)
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return None
    line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return frozenset(line.split())


def check_cpu_features(needed: Collection[str], compiled_for: str) -> None:
    """Finds code that this CPU cannot run before it does, for then the process would die of an illegal instruction.

    Args:
        needed: instructions that the code may use, by their names in /proc/cpuinfo.
        compiled_for: the CPU that the code was compiled for.

    Raises:
        UserError: the CPU lacks one of them.
    """
    features = cpu_features()
    missing = sorted(set(needed) - features) if features is not None else []
    if missing:
        raise UserError(
            f"The artifact was compiled for {compiled_for} and uses {', '.join(missing)}, which this CPU "
            f"({platform.machine()}) lacks. Compile it on or for this machine."
        )


def _cpu_model() -> str:
    """The processor's name; an ARM board names itself in the device tree and its processor nowhere."""
    cpuinfo, board = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    if board.exists():
        return board.read_text().strip("\0\n ")
    if cpuinfo.exists() and platform.machine() == "x86_64":
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def process_peak_bytes() -> int:
    """Most memory that this process held resident so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its peak counts the parent's memory from before the program was started.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
