"""Pushes the feed and sends files to destinations, and calls back when a job ends."""
