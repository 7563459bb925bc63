"""Device ids as keyed hashes: one per channel, the same in both files, the same on both ways."""

import csv
import hashlib
import hmac
import io
from typing import Any

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.selection import selected
from exhaust.files import writer
from exhaust.files.formats import FORMATS
from ingest.models import Channel
from ingest.privacy import device_hash
from tests.conftest import make_channel
from tests.exhaust.factories import CONFIG, PRIVATE, RESPONSE, answer, send

pytestmark = pytest.mark.django_db(transaction=True)
STRANGE = ["device-1", "=1+1", "-", "", "पता", "\U0001f600", 'quote"d, and more', "x" * 255]


def told(number: int, device: str) -> dict[str, Any]:
    said = answer(number)
    said["context"]["did"] = device
    said["actor"] = {}
    return said


def devices(dataset: str, channel: str = "ORG_001", **how: Any) -> list[str]:
    content = made(dataset, channel, **how)
    return [row["Device ID"] for row in csv.DictReader(io.StringIO(content.decode()))]


def made(dataset: str, channel: str = "ORG_001", form: str = "csv", **how: Any) -> bytes:
    chosen = selected(dataset, make_channel(channel).pk, CONFIG, 2**40)
    progress = writer.Progress()
    return b"".join(writer.blocks(DATASETS[dataset], chosen, progress, FORMATS[form], **how))


def hashing(channel: str = "ORG_001") -> None:
    make_channel(channel)
    Channel.objects.filter(identifier=channel).update(hash_device_ids=True)


def test_both_files_hold_the_same_hash() -> None:
    # given people with strange ids, and files that show them
    send(*(told(number, device) for number, device in enumerate(STRANGE)))
    assert b"device-1" in made(RESPONSE)
    assert b"device-1" in made(PRIVATE)

    # when the channel has them hashed
    hashing()

    # then the two files still join, and an independent HMAC agrees
    key = device_hash.key_for(make_channel().pk, "device")
    expected = [
        hmac.new(key, device.encode(), hashlib.sha256).hexdigest()[:32] if device else ""
        for device in STRANGE
    ]
    assert devices(RESPONSE) == expected
    assert devices(PRIVATE) == [name for name in expected if name]
    for dataset in (RESPONSE, PRIVATE):
        assert b"device-1" not in made(dataset)


@pytest.mark.parametrize("form", FORMATS)
def test_the_database_hashes_as_python_does(form: str) -> None:
    send(*(told(number, device) for number, device in enumerate(STRANGE)))
    hashing()
    assert made(RESPONSE, form=form) == made(RESPONSE, form=form, portable=True)
    assert devices(RESPONSE) == devices(RESPONSE, portable=True)


def test_channels_do_not_join() -> None:
    for channel in ("ORG_001", "ORG_002"):
        send(told(1, "device-1"), channel=channel)
        hashing(channel)
    ours, theirs = devices(RESPONSE), devices(RESPONSE, "ORG_002")
    assert len({*ours, *theirs}) == 2
    assert len(ours[0]) == 32


def test_the_secret_is_sealed_and_stays() -> None:
    channel = make_channel()
    secret = device_hash.secret(channel.pk)
    assert len(secret) == 32
    assert device_hash.secret(channel.pk) == secret
    assert secret not in bytes(Channel.objects.get().sealed_secret or b"")
    assert device_hash.key_for(channel.pk, "device") != device_hash.key_for(channel.pk, "erasure")
    hashing()
    chosen = selected(RESPONSE, channel.pk, CONFIG, 1)
    assert chosen.device_key
    assert repr(chosen.device_key) not in repr(chosen)
