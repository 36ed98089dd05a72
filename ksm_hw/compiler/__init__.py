"""From a bundle to an artifact: lower, fold, build."""
