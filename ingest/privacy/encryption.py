"""What must not lie open in the database: phones, and the bytes of rejected events."""

from cryptography.fernet import Fernet, MultiFernet
from django.conf import settings


def _keys() -> MultiFernet:
    return MultiFernet([Fernet(key) for key in settings.ENCRYPTION_KEYS])


def seal(plain: bytes) -> bytes:
    """Encrypted under the first of `ENCRYPTION_KEYS`."""
    return _keys().encrypt(plain)


def unseal(sealed: bytes | memoryview) -> bytes:
    """The plain bytes. Raises `cryptography.fernet.InvalidToken` when no key fits."""
    return _keys().decrypt(bytes(sealed))


def reseal(sealed: bytes | memoryview) -> bytes:
    """The same under the first key, so that an older one can be dropped."""
    return _keys().rotate(bytes(sealed))
