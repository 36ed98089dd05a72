"""Instructions of an inference on an emulated arm64 core: what `benchmarks/arm64_instructions.py` counts."""
