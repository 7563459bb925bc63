"""An erasure finds rejected events by their words, and decrypts no others."""

import gzip
import json
from typing import Any

import pytest
from django.utils import timezone

from ingest.adapters import ADAPTERS
from ingest.events import Rejection
from ingest.models import Erasure, RejectedEvent, RejectedWord
from ingest.privacy import erasure
from ingest.privacy.encryption import decrypt
from ingest.store import rejections
from tests.conftest import make_channel

pytestmark = pytest.mark.django_db
IDS = (
    "d-1",
    "device-77",
    "asha@example.org",
    "café-device",
    'quo"te-77',
    "47",
    "你好",
    "01:23:45:67",
)


def reject(*raws: bytes, source: str = "telemetry", channel: str = "ORG_001") -> None:
    rejected = [Rejection(number, "bad", "", raw) for number, raw in enumerate(raws)]
    rejections.store_rejections(make_channel(channel).pk, source, timezone.now(), rejected)


@pytest.fixture
def decrypted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What an erasure decrypts, without the id of the erased person."""
    plain: list[bytes] = []

    def watched(ciphertext: bytes) -> bytes:
        plain.append(decrypt(ciphertext))
        return plain[-1]

    monkeypatch.setattr(erasure, "decrypt", watched)
    return plain


def erase(device_id: str) -> int:
    return certify(device_id).counts.get("rejected", 0)


def certify(device_id: str) -> Erasure:
    certificate = erasure.erase(make_channel().pk, device_id, 60)
    assert certificate.finished_at is not None
    return certificate


def kept_texts() -> set[bytes]:
    return {decrypt(row.encrypted_body) for row in RejectedEvent.objects.all()}


def test_erasure_decrypts_no_unrelated_rows(decrypted: list[bytes]):
    others = [b'{"context": {"did": "device-%d"}}' % number for number in range(90)]
    own = [b'{"context": {"did": "device-7"}, "ets": %d}' % number for number in range(3)]
    reject(*others, *own)

    assert erase("device-7") == 4

    assert kept_texts() == {raw for raw in others if b'"device-7"' not in raw}
    assert set(decrypted) == {b"device-7"}
    assert RejectedWord.objects.count() == 89


@pytest.mark.parametrize("device_id", IDS)
@pytest.mark.parametrize("source", ADAPTERS)
def test_erasure_finds_device_fields(source: str, device_id: str, decrypted: list[bytes]):
    for field in sorted(ADAPTERS[source].device_fields):
        for text in (json.dumps(device_id), json.dumps(device_id, ensure_ascii=False)):
            reject(b'{"n": [{"%b": %b}]}' % (field.encode(), text.encode()), source=source)
        reject(b'{"%b": "other"}' % field.encode(), source=source)

    erase(device_id)

    assert {b"other" in text for text in kept_texts()} == {True}
    assert len(kept_texts()) == len(ADAPTERS[source].device_fields)


@pytest.mark.parametrize("device_id", IDS)
def test_erasure_finds_texts_without_fields(device_id: str):
    quoted = json.dumps(device_id, ensure_ascii=False).encode()
    texts = [b'{"x": %b' % quoted, b'{"x": "a' + quoted, b'["too", "many", %b]' % quoted]
    texts += [b"[%b]" % b",".join([*(b'"%d-x"' % number for number in range(20)), quoted])]
    if len(device_id) >= 6 and '"' not in device_id:
        texts += [f"the text of {device_id}, broken".encode()]
    others = [b'["other"]', b'{"y": "other-device"', b"5"]
    reject(*texts, *others)

    assert erase(device_id) == len(texts)
    assert kept_texts() == set(others)


def test_erasure_decrypts_rows_without_words(decrypted: list[bytes]):
    """Rows of before the words were kept."""
    raws = [b'{"did": "device-77"}', b'{"did": "device-7"}', b"at device-77, broken"]
    reject(*raws)
    RejectedWord.objects.all().delete()
    RejectedEvent.objects.update(is_indexed=False)

    assert erase("device-77") == 2

    assert kept_texts() == {raws[1]}
    assert set(raws) <= set(decrypted)


def test_erasure_needs_several_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(erasure, "STEP_ROWS", 2)
    monkeypatch.setattr(erasure, "REJECTED_STEP_ROWS", 2)
    own = [b'{"did": "device-77", "n": %d}' % number for number in range(5)]
    broken = [b'"a" %d device-77 {' % number for number in range(1000, 1005)]
    reject(*own, *broken, *(b"zzzzzz-%d" % number for number in range(5)))
    RejectedEvent.objects.filter(position__gte=7).update(is_indexed=False)

    assert erase("device-77") == 10
    assert RejectedEvent.objects.count() == 5


def test_erasure_keeps_other_channels(decrypted: list[bytes]):
    reject(b'{"did": "device-77"}', channel="ORG_002")

    assert erase("device-77") == 0
    assert not decrypted
    assert RejectedEvent.objects.count() == 1


def test_counted_events_are_not_decrypted(decrypted: list[Any]):
    reject(*(b"%d" % number for number in range(150)))

    assert erase("device-77") == 0
    assert not decrypted


def test_certificate_says_what_was_searched(decrypted: list[bytes]):
    """An id of short parts has no hash of a part, so each free text is decrypted."""
    reject(
        b'{"did": "device-77"}', b'{"did": "01:23:45:67"}', b"at 01:23:45:67 it broke", b"no device"
    )
    RejectedEvent.objects.filter(position=3).update(encrypted_body=b"under a lost key")

    assert certify("01:23:45:67").searched == {
        "files": 0, "rejected": 4, "decrypted": 1, "unreadable": 1,
    }  # fmt: skip
    assert RejectedEvent.objects.count() == 2


def test_erasure_finds_escaped_ids(decrypted: list[bytes]):
    reject(b'{"\\u0064id": "a\\/b\\u002Bc"}', b'{"did": 47.0}', gzip.compress(b'{"did": 4.7e1}'))
    RejectedEvent.objects.filter(position=0).update(is_indexed=False)

    assert (erase("a/b+c"), erase("47")) == (1, 2)
