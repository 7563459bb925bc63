"""Pushes events to destinations, and calls back when a job ends."""
