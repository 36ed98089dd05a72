"""Artifacts and libraries measured, in this process or in one of their own."""
