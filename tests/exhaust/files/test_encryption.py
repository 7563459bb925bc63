"""Encrypted files: other programs open them, and none is plain where it must not be."""

import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyrage
import pytest
import pyzipper
from django.core.exceptions import ValidationError
from django.test import Client

from exhaust.files import encryption, storage
from exhaust.files.encryption import FileEncryption
from exhaust.files.formats import FORMATS
from exhaust.jobs import attempt, schedules, transitions
from exhaust.jobs import submit as submissions
from exhaust.models import File, Job, Schedule, Transition
from ingest.events import RequestError
from ingest.models import AuditEvent, Channel
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import (
    CONFIG,
    PRIVATE,
    RESPONSE,
    make_answer,
    make_submission,
    send_events,
)  # fmt: skip

KEY = "canary Tr0ub4dor&3"
IDENTITY = pyrage.x25519.Identity.generate()
RECIPIENT = str(IDENTITY.to_public())
AT = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quiet(enqueued_tasks: list[str]) -> None:
    """No broker."""


def make(**overrides: Any) -> Job:
    config = {**CONFIG, "type": overrides.get("dataset", RESPONSE)}
    return submissions.submit(make_submission(config=config, **overrides))


def run(job: Job) -> Job:
    Job.objects.filter(pk=job.pk).update(due_at=job.submitted_at)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    attempt.run(claimed)
    job.refresh_from_db()
    return job


def stored(file: File) -> bytes:
    with storage.get_storage().open(file.key) as opened:
        return opened.read()


def unzipped(content: bytes, key: str = KEY) -> tuple[str, bytes]:
    """Returns the one member, read by another implementation."""
    with pyzipper.AESZipFile(io.BytesIO(content)) as opened:
        (member,) = opened.infolist()
        assert member.wz_aes_strength == 3  # 256 bits
        assert member.wz_aes_version == 2  # AE-2, which reveals no checksum of the plain text
        assert member.CRC == 0
        return member.filename, opened.read(member, pwd=key.encode())


def policy(**fields: Any) -> Channel:
    channel = make_channel()
    for name, value in fields.items():
        setattr(channel, name, value)
    channel.full_clean()
    channel.save()
    return channel


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("encryption", ["password", "publickey"])
def test_other_tools_open_encrypted_file(form: str, encryption: str) -> None:
    # given the plain file
    send_events(make_answer(1, "plain words"), make_answer(2))
    policy(recipient=RECIPIENT)
    plain = stored(run(make(output_format=form, tag="plain")).files.get())

    # when the same is requested encrypted
    encryption_fields = (
        {"encryption_key": KEY} if encryption == "password" else {"encryption": encryption}
    )
    job = run(make(output_format=form, tag="encrypted", **encryption_fields))

    # then its metadata match
    assert job.status == "SUCCESS"
    file = job.files.get()
    content = stored(file)
    suffix = {"password": "zip", "publickey": "age"}[encryption]
    plain_suffix = FORMATS[form].suffix
    assert file.name.endswith(f"_response_{job.submitted_at:%Y%m%d}.{plain_suffix}.{suffix}")
    assert file.key.endswith(f".{plain_suffix}.{suffix}")
    assert file.format == f"{plain_suffix}.{suffix}"
    assert file.content_type == (
        "application/zip" if suffix == "zip" else "application/octet-stream"
    )
    assert (file.row_count, file.byte_count) == (2, len(content))
    assert file.sha256 == hashlib.sha256(content).hexdigest()
    assert b"plain words" not in content

    # and another program finds the plain file in it
    if suffix == "zip":
        name, decrypted = unzipped(content)
        assert name == f"exhaust.{plain_suffix}"
        with zipfile.ZipFile(io.BytesIO(content)) as opened, pytest.raises(RuntimeError):
            opened.read(name)
        with pytest.raises(RuntimeError, match="Bad password"):
            unzipped(content, "another password")
    else:
        decrypted = pyrage.decrypt(content, [IDENTITY])
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(content, [pyrage.x25519.Identity.generate()])
    assert decrypted == plain


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("encryption", ["password", "publickey"])
def test_parts_and_manifest_are_encrypted(encryption: str, settings: Any) -> None:
    settings.EXHAUST_PART_BYTES = 1
    send_events(*map(make_answer, range(3)))
    policy(recipient=RECIPIENT)
    job = run(
        make(
            **({"encryption_key": KEY} if encryption == "password" else {"encryption": encryption})
        )
    )
    files = list(job.files.order_by("part"))
    assert len(files) == 4
    for file in files:
        content = stored(file)
        if encryption == "password":
            assert file.name.endswith(".zip")
            opened = unzipped(content)[1]
        else:
            assert file.name.endswith(".age")
            opened = pyrage.decrypt(content, [IDENTITY])
    manifest_fields = json.loads(opened)
    assert [part["name"] for part in manifest_fields["parts"]] == [file.name for file in files[:3]]
    assert [part["sha256"] for part in manifest_fields["parts"]] == [
        file.sha256 for file in files[:3]
    ]


# Keys -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_password_is_never_stored_plain(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    # given a request that carries a key
    caplog.set_level(logging.DEBUG)
    send_events(make_answer(1))
    client = Client(headers=bearer(make_key("export:response")))
    body = {
        "request": {
            "tag": "t", "dataset": RESPONSE, "datasetConfig": CONFIG, "encryptionKey": KEY,
        }
    }  # fmt: skip
    submit = "/dataset/v1/request/submit"
    answers = [client.post(submit, body, content_type="application/json").content.decode()]
    assert json.loads(answers[0])["result"]["encryption"] == "password"
    job = Job.objects.get()
    assert job.encrypted_key is not None
    assert KEY not in repr(make_submission(encryption_key=KEY))

    # when it is made and read
    waiting = everything()
    run(job)
    answers.append(
        client.get(f"/dataset/v1/request/read/t?requestId={job.request_id}").content.decode()
    )
    answers.append(client.get("/dataset/v1/request/list/t").content.decode())
    refused = json.loads(json.dumps(body).replace(KEY, "canary"))
    answers.append(client.post(submit, refused, content_type="application/json").content.decode())

    # then no answer, log or row holds it
    assert job.status == "SUCCESS"
    assert job.encrypted_key is None
    for text in (*answers, waiting, everything(), caplog.text, *capfd.readouterr()):
        assert "canary" not in text


def everything() -> str:
    texts: list[str] = []
    for model in (Job, Transition, File, AuditEvent, Schedule):
        texts += [str(row) for row in model.objects.values()]
    return "\n".join(texts)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_password_is_wiped_at_job_end(ending: str) -> None:
    # given a job that ended without a file
    send_events(make_answer(1))
    job = make(encryption_key=KEY)
    if ending == "cancelled":
        submissions.cancel(job, "somebody")
    else:
        claimed = transitions.claim(job.pk)
        assert claimed is not None
        assert transitions.fail(claimed, "no", permanent=True)
    job.refresh_from_db()
    assert job.encrypted_key is None

    # when it is retried without the key, then the error says so
    with pytest.raises(RequestError, match="encryptionKey was deleted") as refused:
        submissions.retry(job)
    assert refused.value.status == 409

    # when it is sent again with it, then it is the same job, and encrypted
    same_job = make(encryption_key=KEY)
    assert same_job.pk == job.pk
    assert unzipped(stored(run(same_job).files.get()))[0] == "exhaust.csv"

    # and another key is another request
    assert make(encryption_key=KEY + "!").pk != job.pk


@pytest.mark.django_db(transaction=True)
def test_password_survives_failed_attempt() -> None:
    send_events(make_answer(1))
    job = make(encryption_key=KEY)
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert transitions.fail(claimed, "once more")
    job = run(job)
    assert (job.status, job.attempt) == ("SUCCESS", 2)
    assert unzipped(stored(job.files.get()))


@pytest.mark.django_db(transaction=True)
def test_lost_password_makes_no_plain_file() -> None:
    send_events(make_answer(1))
    job = make(encryption_key=KEY)
    Job.objects.update(encrypted_key=None)
    job = run(job)
    assert job.status == "FAILED"
    assert "send the request again with it" in job.status_message
    assert not File.objects.exists()
    assert list(storage.get_storage().list_keys("response/")) == []


@pytest.mark.django_db
@pytest.mark.parametrize(
    "key",
    [
        "short",
        "x" * 11,
        "123456789012345",
        "q1w2e3r4t5y6",
        "x" * 129,
        "пароль пароль",
        "a\nbcdefghijklmn",
    ],
)
def test_weak_password_is_rejected(key: str) -> None:
    make_channel()
    with pytest.raises(
        RequestError, match=r"request.encryptionKey: Too weak.*12 to 128"
    ) as refused:
        make(encryption_key=key)
    assert refused.value.status == 400
    assert not Job.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["encryptionKey", "EncryptionKey"])
def test_misplaced_password_is_not_stored(name: str) -> None:
    client = Client(headers=bearer(make_key("export:response")))
    body = {"request": {"tag": "t", "dataset": RESPONSE, "datasetConfig": {**CONFIG, name: KEY}}}
    answer = client.post("/dataset/v1/request/submit", body, content_type="application/json")
    assert answer.status_code == 400
    assert "beside datasetConfig" in answer.json()["params"]["errmsg"]
    assert KEY not in answer.content.decode()
    assert not Job.objects.exists()


# Policies ---------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_channel_requires_password() -> None:
    send_events(make_answer(1))
    policy(private_encryption="password")
    assert run(make(dataset=RESPONSE)).files.get().name.endswith(".csv")
    with pytest.raises(RequestError, match=r"request.encryptionKey: The file must be encrypted"):
        make(dataset=PRIVATE)
    assert unzipped(stored(run(make(dataset=PRIVATE, encryption_key=KEY)).files.get()))


@pytest.mark.django_db(transaction=True)
def test_channel_requires_public_key() -> None:
    send_events(make_answer(1))
    policy(private_encryption="publickey", recipient=RECIPIENT)
    job = run(make(dataset=PRIVATE))
    assert (job.status, job.encryption) == ("SUCCESS", "publickey")
    assert pyrage.decrypt(stored(job.files.get()), [IDENTITY]).startswith(b"Conversation ID,")
    with pytest.raises(RequestError, match=r"request.encryptionKey"):
        make(dataset=PRIVATE, encryption_key=KEY)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("job_fields", "later", "message"),
    [
        ({}, {"private_encryption": "password"}, "encryptionKey is no longer"),
        ({"encryption_key": KEY}, {"private_encryption": "publickey"}, "now requires"),
        ({"encryption": "publickey"}, {"recipient": ""}, "no public key any more"),
    ],
)
def test_stricter_channel_rule_fails_job(
    job_fields: dict[str, Any], later: dict[str, Any], message: str
) -> None:
    send_events(make_answer(1))
    policy(recipient=RECIPIENT)
    job = make(dataset=PRIVATE, **job_fields)
    Channel.objects.update(**later)
    job = run(job)
    assert job.status == "FAILED"
    assert message in job.status_message
    assert not File.objects.exists()


@pytest.mark.django_db
def test_channel_recipient_is_validated() -> None:
    with pytest.raises(ValidationError, match="Not a public key of age"):
        policy(recipient="age1qqqq")
    with pytest.raises(ValidationError, match="Required for private files"):
        policy(private_encryption="publickey", recipient="")
    with pytest.raises(RequestError, match=r"request.encryption: This channel has no public key"):
        make(encryption="publickey")


@pytest.mark.django_db
def test_schedule_takes_no_password() -> None:
    client = Client(headers=bearer(make_key("export:response", "export:private")))
    request = {
        "cron": "0 6 * * *", "dataset": PRIVATE, "conversationId": "b", "window": "yesterday",
        "tag": "d",
    }  # fmt: skip

    def put_schedule(**more: Any) -> Any:
        body = {"request": {**request, **more}}
        return client.put("/dataset/v1/schedule/s", body, content_type="application/json").json()

    assert "No password is kept" in put_schedule(encryptionKey=KEY)["params"]["errmsg"]
    assert "use publickey" in put_schedule(encryption="password")["params"]["errmsg"]
    assert "no public key" in put_schedule(encryption="publickey")["params"]["errmsg"]
    policy(private_encryption="password")
    assert put_schedule()["params"]["errmsg"].startswith("request.encryption: ")
    policy(private_encryption="publickey", recipient=RECIPIENT)
    assert put_schedule(encryption="publickey")["result"]["encryption"] == "publickey"
    schedule = Schedule.objects.get()
    assert schedules.submit_due(schedule.next_at) == 1
    assert Job.objects.get().encryption == "publickey"


# Streams ----------------------------------------------------------------------------------------


def blocks(count: int, size: int = 65536) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number % 251]) * size


@pytest.mark.parametrize(
    "encryption", [FileEncryption("zip", password=KEY), FileEncryption("age", recipient=RECIPIENT)]
)
def test_encryption_streams_blocks(encryption: FileEncryption) -> None:
    # given a long stream, of which we see how far it was read
    read = 0

    def plain() -> Iterator[bytes]:
        nonlocal read
        for block in blocks(64):
            read += 1
            yield hashlib.shake_128(block + bytes([read])).digest(len(block))

    # when / then the output is never far behind the input
    out = 0
    for block in encryption.encrypt_blocks(plain(), "csv", AT):
        out += len(block)
        assert read * 65536 - out < 2 * 1024 * 1024
    assert out > 64 * 65536


@pytest.mark.parametrize(
    "encryption", [FileEncryption("zip", password=KEY), FileEncryption("age", recipient=RECIPIENT)]
)
def test_encryption_raises_stream_error(encryption: FileEncryption) -> None:
    def broken() -> Iterator[bytes]:
        yield from blocks(3)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(encryption.encrypt_blocks(broken(), "csv", AT))


def test_closed_age_stream_leaves_no_thread() -> None:
    stream = FileEncryption("age", recipient=RECIPIENT).encrypt_blocks(blocks(100), "csv", AT)
    next(stream)
    assert any(thread.name == "age" for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name == "age" for thread in threading.enumerate())


def test_invalid_age_recipient_is_an_error() -> None:
    with pytest.raises(encryption.EncryptionUnavailable):
        list(FileEncryption("age", recipient="age1nonsense").encrypt_blocks(blocks(3), "csv", AT))


_PROGRAM = """
import sys, os, resource, django
django.setup()
from datetime import UTC, datetime
from exhaust.files.encryption import FileEncryption
kind, recipient = sys.argv[1:3]
options = {"password": "x" * 12} if kind == "zip" else {"recipient": recipient}
encryption = FileEncryption(kind, **options)
block = os.urandom(65536)
plain = (block for _ in range(int(sys.argv[3]) * 16))
out = sum(map(len, encryption.encrypt_blocks(plain, "parquet", datetime(2026, 1, 1, tzinfo=UTC))))
print(out, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("suffix", ["zip", "age"])
def test_encryption_memory_is_bounded(suffix: str) -> None:
    peaks = []
    for mebibytes in (16, 128):
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM, suffix, RECIPIENT, str(mebibytes)],
            capture_output=True, text=True, check=True, timeout=120,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings"},
        )  # fmt: skip
        out, peak = map(int, ran.stdout.split())
        assert out > mebibytes * 1024 * 1024 * 0.99
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 16 * 1024  # KiB
