"""Counting the instructions of an inference: QEMU's user mode with the plugin `count.c`, and the emulated board."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arm64_loops.peer_wheels import PEERS, wheel_folder
from peers.catalogue import Engine
from peers.places import BENCHMARKS, REPOSITORY

BOARD = REPOSITORY / "build" / "emulated-board"
_HERE = Path(__file__).parent
_COUNT = re.compile(r"^instructions (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class EmulatedCore:
    """A core that QEMU emulates.

    Attributes:
        title: for people.
        cpu: its name for QEMU.
        target: whose code it runs.
        variant, part, revision: of an Arm core, by which engines choose their loops.
    """

    title: str
    cpu: str
    target: str
    variant: int
    part: int
    revision: int


CORES = (
    EmulatedCore("Cortex-A72", "cortex-a72", "rpi4", 0, 0xD08, 3),
    EmulatedCore("Cortex-A76", "cortex-a76", "rpi5", 4, 0xD0B, 1),
)


@dataclass(frozen=True)
class Count:
    """What an engine needs for an inference.

    Attributes:
        instructions: of the second inference.
        error_of_logits: of the first: the largest difference, by the largest of PyTorch's.
    """

    instructions: int
    error_of_logits: float


def build_plugin(folder: Path) -> Path:
    """Compiles the plugin into a folder.

    Raises:
        subprocess.CalledProcessError: there is no compiler.
    """
    plugin = folder / "count.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", plugin, _HERE / "count.c"], check=True)
    return plugin


def make_root(core: EmulatedCore, folder: Path) -> Path:
    """The emulated board's files, with a /proc/cpuinfo and a /sys that tell of one such core.

    Those of this machine tell of its own cores: ONNX Runtime crashes on reading that, and LiteRT takes the loops of an
    unknown core.

    Raises:
        RuntimeError: there is no emulated board.
    """
    if not (BOARD / "python").exists():
        raise RuntimeError("There is no emulated arm64 board; `make emulated-board` makes it (as root).")
    root = folder / core.cpu
    cores = root / "sys/devices/system/cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present"):
        (cores / name).write_text("0\n")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(
        "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {core.variant:#x}\nCPU part\t: {core.part:#x}\nCPU revision\t: {core.revision}\n\n"
    )
    for part in (BOARD / "rootfs").resolve().iterdir():
        (root / part.name).symlink_to(part)
    return root


def count_marks(program: Sequence[str], core: EmulatedCore, root: Path, plugin: Path) -> tuple[list[int], str]:
    """Runs a Python program on the emulated board: the instructions before each getppid, and what it printed.

    Args:
        program: what Python is given.
        core: that is emulated.
        root: as `make_root` gives it.
        plugin: as `build_plugin` gives it.

    Raises:
        RuntimeError: the program failed; the message has its last words.
    """
    emulator = ["qemu-aarch64", "-cpu", core.cpu, "-plugin", str(plugin), "-L", str(root)]
    # What is counted is to be the same in each run.
    variables = {"PYTHONHASHSEED": "0", "BOARD_PYTHON": str(BOARD / "python"), "PYTHONPATH": str(BOARD / "site")}
    done = subprocess.run(
        [*emulator, str(root / "usr/bin/python3.11"), *program],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(program)} failed on {core.title} ({done.returncode}): {done.stderr[-400:]}")
    return [int(count) for count in _COUNT.findall(done.stderr)], done.stdout


def count_inference(engine: Engine, core: EmulatedCore, variant: str, folder: Path, root: Path, plugin: Path) -> Count:
    """Counts the second inference of an engine on one thread.

    Args:
        engine: of the peers benchmark.
        variant, folder: of the engine's files, as its module's `load` takes them.
        core, root, plugin: as `count_marks` takes them.

    Raises:
        RuntimeError: the engine failed; the message has its last words.
    """
    wheels = [str(wheel_folder(peer)) for peer in PEERS if peer.environment == engine.environment]
    program = [str(_HERE / "infer.py"), engine.module, variant, str(folder), str(BENCHMARKS), str(REPOSITORY), *wheels]
    (_, instructions), printed = count_marks(program, core, root, plugin)
    return Count(instructions, float(printed))
