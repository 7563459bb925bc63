"""The `exhaust` command: a terminal for whoever sends events and asks for datasets.

It speaks HTTP only, and knows nothing of Django or of the database.
"""
