"""Backbones, and the PyTorch module of a task over one: the reference for every check."""
