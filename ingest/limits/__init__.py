"""How often callers may call, and how many at once; `ingest.adapters.body_limits` bounds a body."""
