"""Checkpoints of published methods, as their own scripts write them, into task packs: a file a method."""
