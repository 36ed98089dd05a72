"""Schedules measured where they will run, and the records of it."""
