"""Running artifacts: load, switch, run."""
