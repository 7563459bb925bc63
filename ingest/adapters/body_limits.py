"""How large a request's body may be, and how many events it may hold.

A source that takes less says so in its `http.py`. `ingest.limits` bounds how often callers send.
"""

MAX_BODY_BYTES = 8 * 1024 * 1024  # of a body, as sent and decompressed
MAX_UNPACKED_BYTES = 16 * 1024 * 1024  # of gzip, where a source takes more than that
MAX_RATIO = 100  # of what gzip unpacks to beyond `MAX_BODY_BYTES`; batches of events reach 30
MAX_EVENTS = 10_000  # of a batch, whatever its source
MAX_DEPTH = 100  # levels of JSON
MAX_PARTS = 1_000_000  # commas and lines: each part costs memory
MAX_DIGITS = 309  # of a number: those of a 64-bit float before the point
