"""Middleware, parsers, errors and headers of Django's requests."""
