"""An emulated board with four cores of which two are slowed: what `benchmarks/slowed_cores.py` measures on."""
