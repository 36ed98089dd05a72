"""Compiler passes for Relay (TVM 0.19), siblings of those for Relax. They run in Relay's own environment."""
