"""Stored files: formats, encryption, storage, links."""
