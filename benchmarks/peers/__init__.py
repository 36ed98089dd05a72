"""The benchmark of ksm-hw against other inference engines; `benchmarks/peers.py` is its command."""
