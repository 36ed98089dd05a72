"""Verifying and measuring artifacts, and rendering what was found."""
