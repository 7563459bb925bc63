"""Ids of requests and answers."""

from random import getrandbits


def make_uuid() -> str:
    """Returns a random UUID. It is unique and no secret, and takes a tenth of `uuid4`'s time."""
    digits = f"{getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"
