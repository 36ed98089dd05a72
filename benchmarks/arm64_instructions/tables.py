"""The counts as JSON and Markdown."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from peers.catalogue import Engine

from arm64_instructions.counting import Count, EmulatedCore

# Network and core, then engines.
Counts = dict[tuple[str, EmulatedCore], list[tuple[Engine, Count]]]

_ABOUT = """Millions of instructions of the second inference of a network, Python's call included: float32, one image of
224 × 224, one thread, the aarch64 wheels of other engines, counted by a plugin of QEMU's user mode. Nothing is timed.
Each engine is told which core it runs on. It is a second witness beside `arm64_loops.md`: fewer instructions are not
fewer cycles, but who takes more of them than the best peer has something to explain. `largest error` is that of logits
beside PyTorch's, of all engines."""
_FINDINGS = Path(__file__).parent / "findings.md"


def counts_as_json(counts: Counts) -> list[dict[str, Any]]:
    """A dictionary for each network and core."""
    return [
        {
            "network": network,
            "core": asdict(core),
            "engines": {engine.name: asdict(count) for engine, count in of_engines},
        }
        for (network, core), of_engines in counts.items()
    ]


def markdown(counts: Counts, wheels: str, command: str) -> str:
    """A page with a line for each network and core."""
    titles = [engine.title for engine, _ in next(iter(counts.values()))]
    heads = ["network", "core", *titles, "ksm-hw by the best peer", "largest error"]
    lines = [f"| {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * (len(heads) - 2)]
    for (network, core), of_engines in counts.items():
        ours = [count.instructions for engine, count in of_engines if engine.ours]
        peers = [count.instructions for engine, count in of_engines if not engine.ours]
        cells = [f"{count.instructions / 1e6:.1f}" for _, count in of_engines]
        cells.append(f"{min(ours) / min(peers):.2f}" if ours and peers else "")
        cells.append(f"{max(count.error_of_logits for _, count in of_engines):.0e}")
        lines.append(f"| {network} | {core.title} | {' | '.join(cells)} |")
    parts = ["# arm64: instructions of an inference", f"`{command}`", _ABOUT, f"Wheels: {wheels}.", "\n".join(lines)]
    return "\n\n".join([*parts, _FINDINGS.read_text()])
