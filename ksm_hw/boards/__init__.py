"""Boards: finding them, serving them, and sessions that run there or here."""
