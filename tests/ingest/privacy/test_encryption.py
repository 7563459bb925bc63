from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken
from django.core.management import CommandError, call_command

from ingest.management.commands.reseal import sealed
from ingest.models import Participant
from ingest.privacy.encryption import reseal, seal, unseal
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import RECEIVED_AT

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


@pytest.mark.django_db
def test_what_an_old_key_sealed_is_sealed_with_the_first(settings: Any):
    # given a phone and a refused event under an old key
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.ENCRYPTION_KEYS = [old]
    channel = make_channel()
    for device, phone in (("d-1", seal(PHONE)), ("d-2", None)):
        Participant.objects.create(
            channel=channel, device_id=device, sealed_phone=phone, updated_at=RECEIVED_AT
        )

    # when a new one is put in front, and all is sealed anew
    settings.ENCRYPTION_KEYS = [new, old]
    call_command("reseal", "--dry-run")
    before = Participant.objects.get(device_id="d-1").sealed_phone
    with pytest.raises(InvalidToken):
        Fernet(new).decrypt(bytes(before))
    call_command("reseal")

    # then the old one can go
    settings.ENCRYPTION_KEYS = [new]
    assert unseal(Participant.objects.get(device_id="d-1").sealed_phone) == PHONE
    call_command("reseal", "--dry-run")
    settings.ENCRYPTION_KEYS = [old]
    with pytest.raises(CommandError, match="opens 1 not"):
        call_command("reseal")


def test_every_column_that_is_sealed_is_sealed_anew():
    assert {f"{model.__name__}.{column}" for model, column in sealed()} == {
        "CallbackSecret.sealed", "Channel.sealed_secret", "Erasure.sealed_device",
        "Job.sealed_key", "Link.sealed_token", "Participant.sealed_phone", "Rejected.sealed",
        "Sink.sealed_password", "Sink.sealed_secret",
    }  # fmt: skip
