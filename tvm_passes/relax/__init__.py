"""Passes over Relax, the IR of the main path."""
