"""What `cuda_machine.py` measures on an NVIDIA GPU: networks by ksm-hw and by PyTorch, in turns."""
