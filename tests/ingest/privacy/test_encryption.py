from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import TOTP
from cryptography.fernet import Fernet, InvalidToken
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from ingest.events import Rejection
from ingest.management.commands.reencrypt import encrypted_columns
from ingest.models import Participant
from ingest.privacy.encryption import decrypt, encrypt, reencrypt
from ingest.store.rejections import store_rejections
from tests.conftest import make_channel
from tests.ingest.telemetry_samples import RECEIVED_AT

PHONE = b"+919000000001"


def test_encrypt_hides_and_decrypt_restores():
    sealed = encrypt(PHONE)

    assert b"9000000001" not in sealed
    assert decrypt(sealed) == PHONE
    assert decrypt(memoryview(sealed)) == PHONE


def test_ciphertexts_differ_each_time():
    assert encrypt(PHONE) != encrypt(PHONE)


def test_old_key_decrypts_dropped_key_fails(settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.EXHAUST_ENCRYPTION_KEYS = [old]
    sealed = encrypt(PHONE)

    settings.EXHAUST_ENCRYPTION_KEYS = [new, old]
    assert decrypt(sealed) == PHONE
    resealed = reencrypt(sealed)

    settings.EXHAUST_ENCRYPTION_KEYS = [new]
    assert decrypt(resealed) == PHONE
    with pytest.raises(InvalidToken):
        decrypt(sealed)


def test_first_key_encrypts(settings: Any):
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.EXHAUST_ENCRYPTION_KEYS = [new, old]
    sealed = encrypt(PHONE)

    settings.EXHAUST_ENCRYPTION_KEYS = [old]

    with pytest.raises(InvalidToken):
        decrypt(sealed)


def test_changed_byte_is_detected():
    sealed = bytearray(encrypt(PHONE))
    sealed[40] ^= 1

    with pytest.raises(InvalidToken):
        decrypt(bytes(sealed))


@pytest.mark.django_db
def test_reencrypt_uses_first_key(settings: Any):
    # given a phone and a refused event under an old key
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.EXHAUST_ENCRYPTION_KEYS = [old]
    channel = make_channel()
    for device, phone in (("d-1", encrypt(PHONE)), ("d-2", None)):
        Participant.objects.create(
            channel=channel, device_id=device, encrypted_phone=phone, updated_at=RECEIVED_AT
        )

    # and events that are only counted
    rejected = [Rejection(number, "bad", "", b"%d" % number) for number in range(150)]
    store_rejections(channel.pk, "telemetry", RECEIVED_AT, rejected)

    # and a user's app and recovery codes
    user = get_user_model().objects.create_user("asha")
    TOTP.activate(user, "JBSWY3DPEHPK3PXP")
    codes = RecoveryCodes.activate(user).get_unused_codes()

    # when a new one is put in front, and all is sealed anew
    settings.EXHAUST_ENCRYPTION_KEYS = [new, old]
    call_command("reencrypt", "--dry-run")
    before = Participant.objects.get(device_id="d-1").encrypted_phone
    with pytest.raises(InvalidToken):
        Fernet(new).decrypt(bytes(before))
    call_command("reencrypt")

    # then the old one can go
    settings.EXHAUST_ENCRYPTION_KEYS = [new]
    assert decrypt(Participant.objects.get(device_id="d-1").encrypted_phone) == PHONE
    app, recovery = Authenticator.objects.order_by("pk")
    assert decrypt(app.data["secret"].encode()) == b"JBSWY3DPEHPK3PXP"
    assert RecoveryCodes(recovery).get_unused_codes() == codes
    call_command("reencrypt", "--dry-run")
    settings.EXHAUST_ENCRYPTION_KEYS = [old]
    with pytest.raises(CommandError, match="3 values cannot be decrypted"):
        call_command("reencrypt")


def test_reencrypt_covers_every_column():
    assert {f"{model.__name__}.{column}" for model, column in encrypted_columns()} == {
        "CallbackSecret.encrypted_secret", "Channel.encrypted_secret",
        "ChatWebhook.encrypted_url",
        "Erasure.encrypted_device_id", "Job.encrypted_key", "Link.encrypted_token",
        "Participant.encrypted_phone", "RejectedEvent.encrypted_body",
        "Destination.encrypted_password", "Destination.encrypted_private_key",
        "Destination.encrypted_secret",
    }  # fmt: skip
