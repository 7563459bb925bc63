"""One suite for every storage; tests that need a real bucket come last."""

import http.client
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit, urlunsplit

import boto3
import pytest
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from django.core.management import CommandError, call_command
from django.test import Client
from moto import mock_aws

from exhaust.files import storage
from exhaust.files.storage import FolderStorage, Storage, StorageError
from exhaust.files.storage.s3 import S3Storage
from exhaust.files.writer import BlockStream
from exhaust.jobs import attempt, transitions
from exhaust.maintenance import retention
from exhaust.models import File, Link
from ingest.privacy import erasure
from tests import s3server
from tests.exhaust.factories import (
    PRIVATE,
    RESPONSE,
    make_answer,
    make_job,
    send_events,
    stored_paths,
)

CSV = "text/csv; charset=utf-8"
MIB = 1024 * 1024
BUCKET = "exhaust-test"


@dataclass
class StorageCase:
    """A storage, and access to its real content."""

    storage: Storage
    list_keys: Callable[[], list[str]]  # every object, draft and unfinished upload
    client: Any = None


def bucket(client: Any) -> Callable[[], list[str]]:
    def list_keys() -> list[str]:
        objects = client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [entry["Key"] for entry in objects] + [f"upload {u['Key']}" for u in uploads]

    return list_keys


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server, for all tests that need one."""
    with s3server.running(tmp_path_factory.mktemp("s3")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def served(s3_endpoint: str) -> Iterator[StorageCase]:
    """The real server behind one client, which takes longer to make than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", s3server.ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3server.SECRET_KEY)
        client = boto3.client(
            "s3",
            endpoint_url=s3_endpoint,
            region_name=s3server.REGION,
            config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
        )
        storage = S3Storage(BUCKET, s3_endpoint, s3_endpoint, s3server.REGION)
        client.create_bucket(Bucket=BUCKET)
    yield StorageCase(storage, bucket(client), client)
    client.close()


@pytest.fixture
def s3(served: StorageCase, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageCase]:
    """The real server with an empty bucket, its keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3server.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3server.SECRET_KEY)
    assert served.list_keys() == []
    yield served
    for name in served.list_keys():
        served.client.delete_object(Bucket=BUCKET, Key=name)


@pytest.fixture(scope="session")
def mocked() -> StorageCase:
    """boto3 with moto behind it, which checks no signatures."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
        client = boto3.client("s3", region_name="us-east-1")
        return StorageCase(S3Storage(BUCKET, "", "", "us-east-1"), bucket(client), client)


@pytest.fixture
def moto(mocked: StorageCase) -> Iterator[StorageCase]:
    with mock_aws():
        mocked.client.create_bucket(Bucket=BUCKET)
        yield mocked


@pytest.fixture
def folder(tmp_path: Path) -> StorageCase:
    root = tmp_path / "place"
    return StorageCase(FolderStorage(root), lambda: stored_paths(root) if root.exists() else [])


@pytest.fixture(params=["folder", "moto", pytest.param("s3", marks=pytest.mark.s3)])
def storage_case(request: pytest.FixtureRequest) -> StorageCase:
    case: StorageCase = request.getfixturevalue(request.param)
    return case


def stream(*blocks: bytes) -> Any:
    """Returns a stream that cannot be rewound, as an attempt passes it."""
    return BlockStream(iter(blocks))


def content(place: StorageCase, key: str) -> bytes:
    opened = place.storage.open(key)
    try:
        return opened.read()
    finally:
        opened.close()


# Every storage --------------------------------------------------------------------------------


def test_put_open_size_delete(storage_case: StorageCase) -> None:
    # given a stored file
    storage_case.storage.put("response/1/1-ab.csv", stream(b"a,b\n", "नमस्ते,2\n".encode()), CSV)

    # when / then its content is unchanged
    expected = "a,b\nनमस्ते,2\n".encode()
    assert content(storage_case, "response/1/1-ab.csv") == expected
    assert storage_case.storage.size("response/1/1-ab.csv") == len(expected)
    assert storage_case.list_keys() == ["response/1/1-ab.csv"]

    # and once deleted it is not there
    storage_case.storage.delete("response/1/1-ab.csv")
    assert storage_case.list_keys() == []
    with pytest.raises(FileNotFoundError):
        storage_case.storage.open("response/1/1-ab.csv")


def test_missing_key_raises(storage_case: StorageCase) -> None:
    # given a neighbour that must stay
    storage_case.storage.put("a/1.csv", stream(b"x"), CSV)

    # when / then
    with pytest.raises(FileNotFoundError):
        storage_case.storage.open("a/2.csv")
    with pytest.raises(FileNotFoundError):
        storage_case.storage.size("a/2.csv")
    storage_case.storage.delete("a/2.csv")
    storage_case.storage.delete("never/there.csv")
    assert storage_case.list_keys() == ["a/1.csv"]


def test_empty_stream_is_an_empty_file(storage_case: StorageCase) -> None:
    storage_case.storage.put("a.csv", stream(), CSV)

    assert storage_case.storage.size("a.csv") == 0
    assert content(storage_case, "a.csv") == b""
    assert storage_case.list_keys() == ["a.csv"]


def test_second_put_replaces(storage_case: StorageCase) -> None:
    storage_case.storage.put("a.csv", stream(b"first and longer"), CSV)
    storage_case.storage.put("a.csv", stream(b"second"), CSV)

    assert content(storage_case, "a.csv") == b"second"
    assert storage_case.list_keys() == ["a.csv"]


def test_large_file_uses_multipart(storage_case: StorageCase) -> None:
    # given 20 MiB and a bit, no block of which is like another
    blocks = [bytes([number]) * MIB for number in range(20)] + [b"the end"]

    # when
    counted_stream = stream(*blocks)
    storage_case.storage.put("long.csv", counted_stream, CSV)

    # then all of it is there, in its order
    assert storage_case.storage.size("long.csv") == counted_stream.byte_count == 20 * MIB + 7
    assert content(storage_case, "long.csv") == b"".join(blocks)
    assert storage_case.list_keys() == ["long.csv"]
    if storage_case.client is not None:
        tag = storage_case.client.head_object(Bucket=BUCKET, Key="long.csv")["ETag"]
        assert tag.strip('"').endswith("-3")  # three parts


def test_read_range(storage_case: StorageCase) -> None:
    storage_case.storage.put("a.csv", stream(b"0123456789"), CSV)

    assert storage_case.storage.read_range("a.csv", 0, 4) == b"0123"
    assert storage_case.storage.read_range("a.csv", 8, 40) == b"89"
    with pytest.raises(FileNotFoundError):
        storage_case.storage.read_range("b.csv", 0, 4)


def test_purge_leaves_neighbours(storage_case: StorageCase) -> None:
    for key in ("a/1.csv", "a/1.csv.gz", "b/1.csv"):
        storage_case.storage.put(key, stream(b"x"), CSV)
    start_upload(storage_case, "a/1.csv")

    storage_case.storage.purge("a/1.csv")
    storage_case.storage.purge("a/never.csv")

    assert sorted(storage_case.list_keys()) == ["a/1.csv.gz", "b/1.csv"]
    assert list(storage_case.storage.list_versions("a/")) == ["a/1.csv.gz"]


def start_upload(place: StorageCase, key: str) -> None:
    """Leaves an upload as a process that is killed in the middle of a file."""
    if place.client is None:
        with pytest.raises(_ProcessKilled):
            place.storage.put(key, _upload_until_killed(place), CSV)
    else:
        upload = place.client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        place.client.upload_part(
            Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"x" * 5 * MIB
        )


class _ProcessKilled(BaseException):
    pass


def _upload_until_killed(place: StorageCase) -> Any:
    """Returns a stream whose reader dies without cleaning up."""

    def blocks() -> Iterator[bytes]:
        yield b"x" * 2 * MIB
        place.storage.remove_draft = lambda _draft: None  # type: ignore[attr-defined]
        raise _ProcessKilled

    return BlockStream(blocks())


def test_list_keys_and_list_unfinished(
    storage_case: StorageCase,
) -> None:
    # given whole files and a draft, in folders of which one name begins with another
    for key in ("response/1/1-ab.csv", "response/1/2-ab.csv", "response/10/1-ab.csv"):
        storage_case.storage.put(key, stream(b"x"), CSV)
    start_upload(storage_case, "response/1/3-ab.csv")

    # when / then
    assert sorted(storage_case.storage.list_keys("response/1/")) == [
        "response/1/1-ab.csv",
        "response/1/2-ab.csv",
    ]
    assert list(storage_case.storage.list_unfinished("response/1/")) == ["response/1/3-ab.csv"]
    assert len(list(storage_case.storage.list_keys("response/"))) == 3
    assert list(storage_case.storage.list_unfinished("response/10/")) == []
    assert list(storage_case.storage.list_keys("private/")) == []
    with pytest.raises(FileNotFoundError):
        storage_case.storage.size("response/1/3-ab.csv")
    storage_case.storage.delete("response/1/3-ab.csv")


def test_abort_unfinished_keeps_whole_file(storage_case: StorageCase) -> None:
    # given a file whose upload was started twice: the first start got no response
    key = "response/1/1-ab.csv"
    start_upload(storage_case, key)
    storage_case.storage.put(key, stream(b"whole"), CSV)

    # when
    storage_case.storage.abort_unfinished(key)

    # then
    assert list(storage_case.storage.list_unfinished("response/1/")) == []
    assert content(storage_case, key) == b"whole"


def test_delete_removes_unfinished_upload(storage_case: StorageCase) -> None:
    # given two drafts, of which one name begins with the other
    start_upload(storage_case, "response/1/1-ab.csv")
    start_upload(storage_case, "response/1/1-ab.csv.other")

    # when
    storage_case.storage.delete("response/1/1-ab.csv")

    # then only that one is deleted
    assert list(storage_case.storage.list_unfinished("response/1/")) == [
        "response/1/1-ab.csv.other"
    ]
    storage_case.storage.delete("response/1/1-ab.csv.other")
    assert storage_case.list_keys() == []


class OurError(Exception):
    """An error of a dataset."""


@pytest.mark.parametrize("before", [0, 1, 9 * MIB])
def test_stream_error_leaves_nothing(storage_case: StorageCase, before: int) -> None:
    # given a stream that breaks off, before or after a part was sent
    def breaks() -> Iterator[bytes]:
        yield b"x" * before
        raise OurError("row 7")

    # when / then the error passes through, and no object is left
    with pytest.raises(OurError, match="row 7"):
        storage_case.storage.put("a/broken.csv", BlockStream(breaks()), CSV)
    assert storage_case.list_keys() == []
    with pytest.raises(FileNotFoundError):
        storage_case.storage.size("a/broken.csv")


def test_failed_second_put_keeps_first(storage_case: StorageCase) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"y" * 9 * MIB
        raise OurError

    storage_case.storage.put("a.csv", stream(b"first"), CSV)
    with pytest.raises(OurError):
        storage_case.storage.put("a.csv", BlockStream(breaks()), CSV)

    assert content(storage_case, "a.csv") == b"first"
    assert storage_case.list_keys() == ["a.csv"]


# Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("bot_response_20220401.csv", "bot_response_20220401.csv"),
        ('a"b.csv', "a_b.csv"),
        ("a\\b.csv", "a_b.csv"),
        ("a\r\nSet-Cookie: x=1.csv", "a__Set-Cookie: x=1.csv"),
        ("a\nb\x00c\x7f.csv", "a_b_c_.csv"),
        ("invoice\u202efdp.csv", "invoice_fdp.csv"),
        ("नमस्ते.csv", "______.csv"),
        ("emoji😀.csv", "emoji_.csv"),
        ("100%41.csv", "100_41.csv"),
        ("a;b,c'd.csv", "a;b,c'd.csv"),
        ("../../etc/passwd", "../../etc/passwd"),
    ],
)
def test_content_disposition_names(name: str, plain: str) -> None:
    # when
    header = storage.content_disposition(name)

    # then it is one line of plain ASCII, with the name in both forms if needed
    assert header.isascii()
    assert header.isprintable()
    message = Message()
    message["Content-Disposition"] = header
    match = re.fullmatch(
        r'attachment; filename="([^"]*)"(; filename\*=UTF-8\'\'([\w.~%-]+))?', header
    )
    assert match is not None
    assert match[1] == plain
    if name == plain:
        assert match[2] is None
        assert message.get_filename() == name
    else:
        assert unquote(match[3]) == name


# A folder -------------------------------------------------------------------------------------


def test_folder_signs_no_urls(folder: StorageCase) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    assert folder.storage.sign_url("a.csv", "a.csv", CSV, until) is None


def test_unwritable_folder_is_storage_error(tmp_path: Path) -> None:
    # given a file where the folder should be
    (tmp_path / "place").write_text("in the way")

    # when / then
    with pytest.raises(StorageError, match="folder: "):
        FolderStorage(tmp_path / "place").put("a/b.csv", stream(b"x"), CSV)
    assert stored_paths(tmp_path) == ["place"]


# A bucket -------------------------------------------------------------------------------------


def test_missing_bucket_is_storage_error(moto: StorageCase) -> None:
    # given
    missing_bucket = S3Storage("no-such-bucket", "", "", "us-east-1")

    # when / then
    with pytest.raises(StorageError, match="NoSuchBucket"):
        missing_bucket.put("a.csv", stream(b"x"), CSV)
    with pytest.raises(StorageError, match="NoSuchBucket"):
        missing_bucket.put("a.csv", stream(b"x" * 9 * MIB), CSV)
    with pytest.raises(StorageError, match="NoSuchBucket"):
        missing_bucket.open("a.csv")
    with pytest.raises(StorageError, match="NoSuchBucket"):
        missing_bucket.delete("a.csv")
    assert moto.list_keys() == []


def test_purge_ends_old_versions(moto: StorageCase) -> None:
    # given a bucket that keeps versions, a file that was replaced, and one that was deleted
    moto.client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for key in ("a/1.csv", "a/1.csv", "a/2.csv", "a/20.csv"):
        moto.storage.put(key, stream(b"of a person"), CSV)
    moto.storage.delete("a/2.csv")

    # when
    assert list(moto.storage.list_keys("a/")) == ["a/1.csv", "a/20.csv"]
    assert sorted(set(moto.storage.list_versions("a/"))) == ["a/1.csv", "a/2.csv", "a/20.csv"]
    for key in ("a/1.csv", "a/2.csv"):
        moto.storage.purge(key)

    # then no version is left, nor a mark of the deletion
    listed = moto.client.list_object_versions(Bucket=BUCKET)
    assert [version["Key"] for version in listed["Versions"]] == ["a/20.csv"]
    assert "DeleteMarkers" not in listed


def test_purge_sees_versions_that_stay(moto: StorageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    moto.storage.put("a.csv", stream(b"of a person"), CSV)
    monkeypatch.setattr(moto.client, "delete_object", lambda **_: None)
    monkeypatch.setattr(moto.storage, "client", moto.client)

    with pytest.raises(StorageError, match="still there"):
        moto.storage.purge("a.csv")


def test_signed_url_is_v4_and_expires(moto: StorageCase) -> None:
    # when
    until = datetime.now(UTC) + timedelta(seconds=600)
    address = moto.storage.sign_url("response/1/a.csv", "नाम.csv", CSV, until)

    # then
    assert address is not None
    query = parse_qs(urlsplit(address).query)
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert 598 <= int(query["X-Amz-Expires"][0]) <= 600
    assert query["response-content-disposition"] == [storage.content_disposition("नाम.csv")]
    assert query["response-content-type"] == [CSV]


@pytest.mark.parametrize("seconds", [-86_400, -1, 0])
def test_past_expiry_is_not_signed(moto: StorageCase, seconds: int) -> None:
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    assert moto.storage.sign_url("a.csv", "a.csv", CSV, until) is None


def test_signed_url_has_public_host(moto: StorageCase) -> None:
    # given a bucket that callers reach under another name
    inner, outer = "http://127.0.0.1:9", "https://files.example.org"
    place = S3Storage(BUCKET, inner, outer, "us-east-1")

    # when
    address = place.sign_url("a/b.csv", "b.csv", CSV, datetime.now(UTC) + timedelta(hours=1))

    # then
    assert address is not None
    assert address.startswith(f"https://files.example.org/{BUCKET}/a/b.csv?")


def test_expired_credentials_are_renewed() -> None:
    # given a process that signed nothing for longer than its credentials lasted
    now = datetime.now(UTC)
    renewed = {
        "access_key": "ASIANEW", "secret_key": "new", "token": "token",
        "expiry_time": (now + timedelta(hours=6)).isoformat(),
    }  # fmt: skip
    place = S3Storage(BUCKET, "", "", "us-east-1")
    credentials = RefreshableCredentials(
        "ASIAOLD", "old", "token", now - timedelta(minutes=1), lambda: renewed, "test"
    )
    place.client._request_signer._credentials = credentials  # type: ignore[attr-defined]

    # when / then it signs with those that work
    address = place.sign_url("a.csv", "a.csv", CSV, now + timedelta(minutes=2))
    assert address is not None
    assert "X-Amz-Credential=ASIANEW" in address


def test_no_credentials_is_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a process that was given no credentials
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = S3Storage(BUCKET, "", "", "us-east-1")

    # when / then it raises no library's own error
    with pytest.raises(StorageError):
        place.sign_url("a.csv", "a.csv", CSV, datetime.now(UTC) + timedelta(hours=1))


# A real server: signatures count --------------------------------------------------------------


def get(
    address: str, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.netloc, timeout=10)
    try:
        connection.request("GET", f"{url.path}?{url.query}", headers=headers or {})
        answered = connection.getresponse()
        return answered.status, answered.headers, answered.read()
    finally:
        connection.close()


def signed(place: StorageCase, seconds: float = 600, name: str = "bot_response.csv") -> str:
    place.storage.put("response/1/a.csv", stream(b"a,b\n1,2\n"), CSV)
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    address = place.storage.sign_url("response/1/a.csv", name, CSV, until)
    assert address is not None
    return address


def altered(address: str, **changes: str) -> str:
    url = urlsplit(address)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert set(changes) <= set(query)
    return urlunsplit(url._replace(query=urlencode({**query, **changes})))


@pytest.mark.s3
@pytest.mark.parametrize("name", ["bot_response.csv", "नाम.csv", 'a"b\n.csv', "a\u202eb.csv"])
def test_s3_returns_file_under_its_name(s3: StorageCase, name: str) -> None:
    # when
    status, headers, content = get(signed(s3, name=name))

    # then
    assert (status, content) == (200, b"a,b\n1,2\n")
    assert headers["Content-Disposition"] == storage.content_disposition(name)
    assert headers["Content-Type"] == CSV


@pytest.mark.s3
def test_s3_rejects_altered_url(s3: StorageCase) -> None:
    # given a link that works
    address = signed(s3)
    assert get(altered(address))[0] == 200
    signature = parse_qs(urlsplit(address).query)["X-Amz-Signature"][0]
    other = ("0" if signature[0] != "0" else "1") + signature[1:]

    # when / then
    for changed in (
        altered(address, **{"X-Amz-Signature": other}),
        altered(address, **{"X-Amz-Expires": "604800"}),
        altered(address, **{"response-content-disposition": "inline"}),
        altered(address, **{"X-Amz-Date": "20220101T000000Z"}),
        address.replace("/a.csv?", "/b.csv?"),
    ):
        status, _, content = get(changed)
        assert status == 403
        assert b"1,2" not in content


@pytest.mark.s3
def test_s3_rejects_expired_url(s3: StorageCase, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a link of two seconds
    address = signed(s3, seconds=2.5)
    assert get(address)[0] == 200

    # when they are over
    until = time.monotonic() + 8
    while (status := get(address)[0]) == 200 and time.monotonic() < until:
        time.sleep(0.2)

    # then
    assert status == 403


@pytest.mark.s3
def test_s3_rejects_unsigned_url(s3: StorageCase) -> None:
    assert get(signed(s3).partition("?")[0])[0] in {400, 401, 403}


@pytest.fixture
def in_s3(s3: StorageCase, s3_endpoint: str, settings: Any, files: Path) -> StorageCase:
    """The installation's own storage is the real server."""
    settings.S3_BUCKET = BUCKET
    settings.S3_ENDPOINT_URL = settings.S3_PUBLIC_ENDPOINT_URL = s3_endpoint
    settings.S3_REGION = s3server.REGION
    storage.get_storage.cache_clear()
    return s3


@pytest.mark.s3
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("dataset", [RESPONSE, PRIVATE])
def test_job_in_s3(dataset: str, in_s3: StorageCase, asker: Client, files: Path) -> None:
    # given a job over three answers
    send_events(make_answer(1), make_answer(2), make_answer(3))
    job = transitions.claim(make_job(dataset=dataset).pk)
    assert job is not None

    # when it runs and its requester reads it
    assert attempt.run(job)
    read = "/dataset/v1/request/read/daily"
    result = asker.get(read, {"requestId": job.request_id}).json()["result"]

    # then the link is our own, and ends in the file's name
    file = File.objects.get()
    assert in_s3.list_keys() == [file.key]
    assert not files.exists()
    (address,) = result["downloadUrls"]
    assert address.startswith("http://127.0.0.1:8000/dataset/v1/download/")
    assert address.endswith(f"/{file.name}")
    path = address.removeprefix("http://127.0.0.1:8000")

    # and HEAD tells of the file what the bucket then sends
    head = Client().head(path)
    answered = Client().get(path)
    assert answered.status_code == 302
    assert (answered["Cache-Control"], answered["Referrer-Policy"]) == ("no-store", "no-referrer")
    hop = answered["Location"]
    assert hop.startswith(f"{in_s3.client.meta.endpoint_url}/{BUCKET}/{file.key}?")
    assert 115 <= int(parse_qs(urlsplit(hop).query)["X-Amz-Expires"][0]) <= 120
    status, headers, content = get(hop)
    assert status == 200
    assert len(content) == result["files"][0]["bytes"] == file.byte_count
    assert content.count(b"\n") == 4
    for name in ("Content-Length", "Content-Type", "Content-Disposition", "Accept-Ranges"):
        assert head[name] == headers[name]
    assert get(hop, headers={"Range": "bytes=0-2"})[::2] == (206, content[:3])
    assert Link.objects.get().use_count == 1

    # and it stays the same at every poll
    second_result = asker.get(read, {"requestId": job.request_id}).json()["result"]
    assert second_result["downloadUrls"] == result["downloadUrls"]
    assert second_result["expiresAt"] == result["expiresAt"]


@pytest.mark.s3
@pytest.mark.django_db(transaction=True)
def test_lost_lease_leaves_no_s3_object(
    in_s3: StorageCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an attempt that is superseded after its upload
    send_events(make_answer(1))
    job = transitions.claim(make_job().pk)
    assert job is not None
    original_put = S3Storage.put

    def overtaken(self: Any, key: str, stream: Any, content_type: str) -> None:
        original_put(self, key, stream, content_type)
        assert in_s3.list_keys() == [key]
        type(job).objects.filter(pk=job.pk).update(attempt=2)

    monkeypatch.setattr(S3Storage, "put", overtaken)

    # when / then
    assert not attempt.run(job)
    assert in_s3.list_keys() == []
    assert File.objects.count() == 0


@pytest.mark.s3
def test_s3_body_is_read_in_steps(s3: StorageCase) -> None:
    s3.storage.put("a.csv", io.BytesIO(b"0123456789"), CSV)
    opened = s3.storage.open("a.csv")
    try:
        assert (opened.read(4), opened.read(4), opened.read(4)) == (b"0123", b"4567", b"89")
    finally:
        opened.close()


def test_documented_policy_suffices(moto: StorageCase) -> None:
    # given the policy of the page, and the actions that S3 asks for each operation
    page = Path("docs/operations.md").read_text().partition("### Permissions of the bucket")[2]
    policy = json.loads(page.partition("```json\n")[2].partition("```")[0])
    allowed = {action for part in policy["Statement"] for action in part["Action"]}
    actions = {
        "HeadBucket": "s3:ListBucket", "ListObjectsV2": "s3:ListBucket",
        "ListMultipartUploads": "s3:ListBucketMultipartUploads",
        "PutObject": "s3:PutObject", "CreateMultipartUpload": "s3:PutObject",
        "UploadPart": "s3:PutObject", "CompleteMultipartUpload": "s3:PutObject",
        "AbortMultipartUpload": "s3:AbortMultipartUpload", "DeleteObject": "s3:DeleteObject",
        "HeadObject": "s3:GetObject", "GetObject": "s3:GetObject",
    }  # fmt: skip
    used = set()
    place: Any = moto.storage
    for client in (place.client, place._prober):
        client.meta.events.register(
            "before-call.s3", lambda model, **_: used.add(model.name), unique_id="policy"
        )

    # when every method is called
    place.probe()
    assert not place.prepare()
    for size in (10, 9 * MIB):
        place.put("private/1/1-a.csv", io.BytesIO(b"x" * size), CSV)
    start_upload(moto, "private/1/1-a.csv")
    assert place.size("private/1/1-a.csv") == 9 * MIB
    content(moto, "private/1/1-a.csv")
    assert len(list(place.list_keys("private/"))) == len(list(place.list_unfinished("private/")))
    place.delete("private/1/1-a.csv")

    # then the policy allows it, and no more
    assert {actions[operation] for operation in used} == allowed


@pytest.mark.parametrize("size", [10, 9 * MIB], ids=["whole", "in parts"])
def test_private_files_use_own_kms_key(moto: StorageCase, size: int) -> None:
    # given a storage with a key of AWS KMS
    key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    kms_storage = S3Storage(BUCKET, "", "", "us-east-1", key)
    kms_storage.client = moto.storage.client  # type: ignore[attr-defined]

    # when / then
    for name, encryption in (("private/1/1-a.csv", ("aws:kms", key)), ("response/1/1-a.csv", None)):
        kms_storage.put(name, io.BytesIO(b"x" * size), CSV)
        head = moto.client.head_object(Bucket=BUCKET, Key=name)
        assert head["ContentLength"] == size
        if encryption:
            assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == encryption
        else:
            assert "SSEKMSKeyId" not in head


@pytest.mark.s3
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("dataset", [RESPONSE, PRIVATE])
def test_erasure_ends_bucket_links(in_s3: StorageCase, asker: Client, dataset: str) -> None:
    # given an address of the bucket that works
    send_events(make_answer(1), make_answer(2))
    job = transitions.claim(make_job(dataset=dataset).pk)
    assert job is not None
    assert attempt.run(job)
    read = "/dataset/v1/request/read/daily"
    result = asker.get(read, {"requestId": job.request_id}).json()["result"]
    (address,) = result["downloadUrls"]
    path = address.removeprefix("http://127.0.0.1:8000")
    address = Client().get(path)["Location"]
    assert get(address)[0] == 200

    # when a person in the file is erased, and the sweep runs
    erasure.erase(job.channel_id, "device-1", 5)
    assert retention.delete_withdrawn_files() == 1

    # then the signature is valid and the object is deleted
    assert get(address)[0] == 404
    assert in_s3.list_keys() == []


@pytest.mark.s3
def test_copy_folder_to_bucket(in_s3: StorageCase, tmp_path: Path, capsys: Any) -> None:
    # given an installation's folder, with a draft that is still being written
    old = FolderStorage(tmp_path / "old")
    for key in ("response/1/1-a.csv", "private/2/1-b.csv.gz", "private/2/1-c.json"):
        old.put(key, io.BytesIO(key.encode()), CSV)
    (tmp_path / "old" / "response" / "1" / ".part-2-d.csv").touch()

    # when it is copied twice
    for _ in range(2):
        call_command("create_bucket", "--from", str(tmp_path / "old"))

    # then each lies under its name once, and is of its kind
    assert capsys.readouterr().out.splitlines()[1::2] == [
        "3 files copied, 0 skipped", "0 files copied, 3 skipped",
    ]  # fmt: skip
    assert in_s3.storage.open("private/2/1-b.csv.gz").read() == b"private/2/1-b.csv.gz"
    assert {
        key: in_s3.client.head_object(Bucket=BUCKET, Key=key)["ContentType"]
        for key in in_s3.list_keys()
    } == {
        "response/1/1-a.csv": CSV,
        "private/2/1-b.csv.gz": "application/gzip",
        "private/2/1-c.json": "application/json",
    }  # fmt: skip
    with pytest.raises(CommandError, match=r"--from: the folder .* does not exist"):
        call_command("create_bucket", "--from", str(tmp_path / "nothing"))
