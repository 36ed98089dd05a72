"""Schedule rules for CPUs: one operator a file."""
