"""Counting instructions on an emulated core, and the table of what was counted."""

import sys
from pathlib import Path

from board_processes import needs_emulated_board

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from arm64_instructions.counting import CORES, Count, build_plugin, count_marks, make_root
from arm64_instructions.tables import counts_as_json, markdown
from peers.catalogue import ENGINES

# Between two marks a loop of two instructions that runs a million times, in machine code.
PROGRAM = """
import ctypes, mmap, os, struct

page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(struct.pack("<3I", 0xF1000400, 0x54FFFFE1, 0xD65F03C0))  # subs x0, x0, #1; b.ne to it; ret
loop = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
loop(1)
os.getppid()
loop(1_000_000)
os.getppid()
print(open("/proc/cpuinfo").read().count("0xd08"))
"""


@needs_emulated_board
def test_instructions_between_two_marks(tmp_path: Path) -> None:
    root, plugin = make_root(CORES[0], tmp_path), build_plugin(tmp_path)
    (_, instructions), printed = count_marks(["-c", PROGRAM], CORES[0], root, plugin)
    assert 2_000_000 < instructions < 2_020_000  # With the call from Python.
    assert printed == "1\n", "the program sees another core than is emulated"


def test_ours_is_compared_with_the_best_peer() -> None:
    engines = {engine.name: engine for engine in ENGINES}
    found = {"ksm-hw": Count(90_000_000, 1e-6), "litert": Count(120_000_000, 2e-6), "onnxruntime": Count(10**8, 0)}
    counts = {("resnet18", CORES[1]): [(engines[name], count) for name, count in found.items()]}
    page = markdown(counts, "wheel==1", "command")
    assert "| resnet18 | Cortex-A76 | 90.0 | 120.0 | 100.0 | 0.90 | 2e-06 |" in page
    (row,) = counts_as_json(counts)
    assert row["core"]["cpu"] == "cortex-a76" and row["engines"]["litert"]["instructions"] == 120_000_000
