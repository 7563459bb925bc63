"""Device ids as keyed hashes: one per channel, the same in both files, the same on both ways."""

import csv
import hashlib
import hmac
import io
from typing import Any

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.resolve import resolve_selection
from exhaust.files import writer
from exhaust.files.formats import FORMATS
from ingest.models import Channel
from ingest.privacy import device_hash
from tests.conftest import make_channel
from tests.exhaust.factories import CONFIG, PRIVATE, RESPONSE, make_answer, send_events

pytestmark = pytest.mark.django_db(transaction=True)
STRANGE = ["device-1", "=1+1", "-", "", "पता", "\U0001f600", 'quote"d, and more', "x" * 255]


def make_event(number: int, device: str) -> dict[str, Any]:
    event = make_answer(number)
    event["context"]["did"] = device
    event["actor"] = {}
    return event


def read_devices(dataset: str, channel: str = "ORG_001", **overrides: Any) -> list[str]:
    content = make_file_bytes(dataset, channel, **overrides)
    return [row["Device ID"] for row in csv.DictReader(io.StringIO(content.decode()))]


def make_file_bytes(
    dataset: str, channel: str = "ORG_001", file_format: str = "csv", **overrides: Any
) -> bytes:
    chosen = resolve_selection(DATASETS[dataset], make_channel(channel).pk, CONFIG, 2**40)
    progress = writer.Progress()
    return b"".join(
        writer.iter_blocks(DATASETS[dataset], chosen, progress, FORMATS[file_format], **overrides)
    )


def enable_hashing(channel: str = "ORG_001") -> None:
    make_channel(channel)
    Channel.objects.filter(identifier=channel).update(hash_device_ids=True)


def test_files_share_device_hash() -> None:
    # given people with strange ids, and files that show them
    send_events(*(make_event(number, device) for number, device in enumerate(STRANGE)))
    assert b"device-1" in make_file_bytes(RESPONSE)
    assert b"device-1" in make_file_bytes(PRIVATE)

    # when the channel has them hashed
    enable_hashing()

    # then the two files still join, and an independent HMAC agrees
    key = device_hash.derive_key(make_channel().pk, "device")
    expected = [
        hmac.new(key, device.encode(), hashlib.sha256).hexdigest()[:32] if device else ""
        for device in STRANGE
    ]
    assert read_devices(RESPONSE) == expected
    assert read_devices(PRIVATE) == [name for name in expected if name]
    for dataset in (RESPONSE, PRIVATE):
        assert b"device-1" not in make_file_bytes(dataset)


@pytest.mark.parametrize("form", FORMATS)
def test_database_hash_matches_python(form: str) -> None:
    send_events(*(make_event(number, device) for number, device in enumerate(STRANGE)))
    enable_hashing()
    assert make_file_bytes(RESPONSE, file_format=form) == make_file_bytes(
        RESPONSE, file_format=form, portable=True
    )
    assert read_devices(RESPONSE) == read_devices(RESPONSE, portable=True)


def test_hash_differs_between_channels() -> None:
    for channel in ("ORG_001", "ORG_002"):
        send_events(make_event(1, "device-1"), channel=channel)
        enable_hashing(channel)
    ours, theirs = read_devices(RESPONSE), read_devices(RESPONSE, "ORG_002")
    assert len({*ours, *theirs}) == 2
    assert len(ours[0]) == 32


def test_hash_key_is_encrypted_and_stable() -> None:
    channel = make_channel()
    secret = device_hash.fetch_channel_secret(channel.pk)
    assert len(secret) == 32
    assert device_hash.fetch_channel_secret(channel.pk) == secret
    assert secret not in bytes(Channel.objects.get().encrypted_secret or b"")
    assert device_hash.derive_key(channel.pk, "device") != device_hash.derive_key(
        channel.pk, "erasure"
    )
    enable_hashing()
    chosen = resolve_selection(DATASETS[RESPONSE], channel.pk, CONFIG, 1)
    assert chosen.device_key
    assert repr(chosen.device_key) not in repr(chosen)
