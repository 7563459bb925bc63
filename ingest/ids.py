"""Ids of requests and answers, and hashed ones of devices. It knows no Django."""

import hashlib
import hmac
from random import getrandbits


def make_uuid() -> str:
    """Returns a random UUID. It is unique and no secret, and takes a tenth of `uuid4`'s time."""
    digits = f"{getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def hash_device(key: bytes, device_id: str) -> str:
    """Returns the 32 hexadecimal digits that stand for a device in a channel's files."""
    return hmac.digest(key, device_id.encode(), hashlib.sha256)[:16].hex()
