from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken

from ingest.sealing import reseal, seal, unseal

PHONE = b"+919000000001"


def test_what_is_sealed_is_not_readable_and_comes_back():
    sealed = seal(PHONE)

    assert b"9000000001" not in sealed
    assert unseal(sealed) == PHONE
    assert unseal(memoryview(sealed)) == PHONE


def test_the_same_is_sealed_differently_each_time():
    assert seal(PHONE) != seal(PHONE)


def test_an_old_key_still_opens_and_a_dropped_one_does_not(settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [old]
    sealed = seal(PHONE)

    settings.ENCRYPTION_KEYS = [new, old]
    assert unseal(sealed) == PHONE
    resealed = reseal(sealed)

    settings.ENCRYPTION_KEYS = [new]
    assert unseal(resealed) == PHONE
    with pytest.raises(InvalidToken):
        unseal(sealed)


def test_the_first_key_seals(settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [new, old]
    sealed = seal(PHONE)

    settings.ENCRYPTION_KEYS = [old]

    with pytest.raises(InvalidToken):
        unseal(sealed)


def test_a_byte_changed_is_noticed():
    sealed = bytearray(seal(PHONE))
    sealed[40] ^= 1

    with pytest.raises(InvalidToken):
        unseal(bytes(sealed))
