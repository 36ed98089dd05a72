"""Masks, task packs and bundles: what they are, and the files that hold them."""
