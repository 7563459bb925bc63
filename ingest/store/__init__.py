"""Writes batches: events, participants, rejected events."""
