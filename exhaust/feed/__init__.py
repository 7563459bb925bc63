"""Reads stored events in their order: pages, cursors, documents."""
