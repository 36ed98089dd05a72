"""Kernels that are written as TIR, and not made from operators."""
