"""Loops of arm64 libraries by the tables of llvm-mca: what `benchmarks/arm64_loops.py` prints."""
