"""Encrypts columns at rest: phones, secrets, and the bytes of rejected events."""

from functools import lru_cache

from cryptography.fernet import Fernet, MultiFernet
from django.conf import settings


@lru_cache(maxsize=1)
def _build_keys(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def _load_keys() -> MultiFernet:
    return _build_keys(tuple(settings.EXHAUST_ENCRYPTION_KEYS))


def encrypt(plain: bytes) -> bytes:
    """Returns the bytes encrypted under the first of `EXHAUST_ENCRYPTION_KEYS`."""
    return _load_keys().encrypt(plain)


def decrypt(ciphertext: bytes | memoryview) -> bytes:
    """Returns the plain bytes. Raises `cryptography.fernet.InvalidToken` when no key fits."""
    return _load_keys().decrypt(bytes(ciphertext))


def reencrypt(ciphertext: bytes | memoryview) -> bytes:
    """Returns the ciphertext under the first key, so that you can drop an older one."""
    return _load_keys().rotate(bytes(ciphertext))
