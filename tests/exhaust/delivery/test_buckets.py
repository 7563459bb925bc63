"""Files into a real S3 server that checks signatures, and into scripted ones that fail."""

import hashlib
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from exhaust.delivery import buckets, kinds
from exhaust.delivery.file_receivers import Access, Refused
from exhaust.delivery.http_client import AddressNotAllowed, NoAnswer, Unreachable
from tests import s3server
from tests.exhaust.receiver import (
    Receiver,
    Silent,
    open_listener,
    reset_connection,
    respond_with,
)

BUCKET = "theirs"
PATH = "2026-11-30/Übung & more/part-0001.csv"
MEBIBYTE = 1024 * 1024


@pytest.fixture(autouse=True)
def local_servers(settings: Any) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a real server with an empty bucket."""
    with open_listener() as free:
        port = free.getsockname()[1]
    with s3server.running(tmp_path_factory.mktemp("s3"), port) as url:
        client = boto3.client(
            "s3",
            endpoint_url=url,
            region_name=s3server.REGION,
            aws_access_key_id=s3server.ACCESS_KEY,
            aws_secret_access_key=s3server.SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )
        client.create_bucket(Bucket=BUCKET)
        yield client


def make_access(url: str, **overrides: Any) -> Access:
    values = {
        "kind": "s3", "channel": "ORG_001", "url": url, "bucket": BUCKET,
        "region": s3server.REGION, "user": s3server.ACCESS_KEY, "password": s3server.SECRET_KEY,
        "private_key": "", "host_key": "", **overrides,
    }  # fmt: skip
    return Access(**values)


def put(access: Access, size: int = 5, path: str = PATH) -> None:
    blocks = (bytes([number % 251]) * min(MEBIBYTE, size - start)
              for number, start in enumerate(range(0, size, MEBIBYTE)))  # fmt: skip
    with kinds.connect(access) as receiver:
        receiver.put(path, blocks, size, "text/csv", 1)


def fetch(s3: Any, path: str = PATH) -> Any:
    return s3.get_object(Bucket=BUCKET, Key=path)


@pytest.mark.s3
@pytest.mark.parametrize("size", [0, 5, 8 * MEBIBYTE])
def test_small_file_is_one_request(s3: Any, size: int) -> None:
    put(make_access(s3.meta.endpoint_url), size)
    stored = fetch(s3)
    assert (stored["ContentLength"], stored["ContentType"]) == (size, "text/csv")
    assert len(stored["Body"].read()) == size


@pytest.mark.s3
def test_large_file_comes_in_parts(s3: Any) -> None:
    size = 20 * MEBIBYTE + 7
    put(make_access(s3.meta.endpoint_url), size)
    put(make_access(s3.meta.endpoint_url), size)  # again, in place of the one before
    content = fetch(s3)["Body"].read()
    expected = b"".join(bytes([number]) * MEBIBYTE for number in range(20)) + b"\x14" * 7
    assert hashlib.sha256(content).digest() == hashlib.sha256(expected).digest()
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)


@pytest.mark.s3
def test_failed_upload_is_aborted(s3: Any) -> None:
    def break_off() -> Iterator[bytes]:
        yield b"x" * 9 * MEBIBYTE
        raise OSError("our storage broke")

    path = "never.csv"
    with (
        kinds.connect(make_access(s3.meta.endpoint_url)) as receiver,
        pytest.raises(OSError, match="our storage"),
    ):
        receiver.put(path, break_off(), 20 * MEBIBYTE, "text/csv", 1)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=BUCKET)
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix=path)["KeyCount"] == 0


@pytest.mark.s3
def test_bucket_is_read_and_cleared(s3: Any) -> None:
    with kinds.connect(make_access(s3.meta.endpoint_url)) as receiver:
        receiver.put("test.txt", iter([b"hello"]), 5, "text/plain", 1)
        assert receiver.read("test.txt") == b"hello"
        receiver.delete("test.txt")
        with pytest.raises(Refused, match="404 NoSuchKey"):
            receiver.read("test.txt")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"password": "other"}, "403 SignatureDoesNotMatch"),
        ({"bucket": "no-such-bucket"}, "404 NoSuchBucket"),
    ],
)
def test_refusal_is_named(s3: Any, overrides: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        put(make_access(s3.meta.endpoint_url, **overrides))


def test_full_bucket_is_refused() -> None:
    body = b"<Error><Code>QuotaExceeded</Code><Message>a secret of theirs</Message></Error>"
    with (
        Receiver([respond_with(403, body)]) as full,
        pytest.raises(Refused, match=r"^The bucket answered 403 QuotaExceeded\.$") as error,
    ):
        put(make_access(f"http://127.0.0.1:{full.port}"))
    assert error.value.status == 403
    assert full.received[0].line == f"PUT /{BUCKET}/{QUOTED_PATH} HTTP/1.1"
    assert s3server.SECRET_KEY not in str(full.received[0].headers)


QUOTED_PATH = "2026-11-30/%C3%9Cbung%20%26%20more/part-0001.csv"


def test_failed_completion_is_no_success() -> None:
    """S3 may answer 200 before it knows, and tell the error in the body."""
    error = b"<?xml version='1.0'?>\n\n<Error><Code>InternalError</Code></Error>"
    answers = {
        "POST /theirs/x?uploads": respond_with(200, b"<UploadId>a/b+c</UploadId>"),
        "PUT": respond_with(200, ETag='"e"'),
        "POST": respond_with(200, error),
        "DELETE": respond_with(204),
    }
    server = Receiver(
        choose_behaviour=lambda got: next(
            answer for start, answer in answers.items() if got.line.startswith(start)
        )
    )
    with server, pytest.raises(Refused, match="200 InternalError"):
        put(make_access(f"http://127.0.0.1:{server.port}"), 9 * MEBIBYTE, "x")
    methods = [received.line.partition(" ")[0] for received in server.received]
    assert methods == ["POST", "PUT", "PUT", "POST", "DELETE"]
    assert b'<PartNumber>2</PartNumber><ETag>"e"</ETag>' in server.received[3].body
    assert "uploadId=a%2Fb%2Bc" in server.received[4].line


def test_hung_refused_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "REQUEST_SECONDS", 0.5)
    with Receiver([Silent(), reset_connection]) as server:
        access = make_access(f"http://127.0.0.1:{server.port}")
        started_at = time.monotonic()
        with pytest.raises(NoAnswer):
            put(access)
        assert time.monotonic() - started_at < 5
        with pytest.raises(Unreachable, match="broke"):
            put(access)
    with pytest.raises(Unreachable, match="refused"):
        put(access)


@pytest.mark.parametrize("status", [301, 307])
def test_redirect_is_not_followed(status: int) -> None:
    with (
        Receiver([respond_with(status, Location="http://169.254.169.254/")]) as server,
        pytest.raises(Refused, match=str(status)),
    ):
        put(make_access(f"http://127.0.0.1:{server.port}"))
    assert server.connections == 1


def test_metadata_service_stays_closed() -> None:
    with pytest.raises(AddressNotAllowed):
        put(make_access("http://169.254.169.254"))


def test_parts_stay_below_ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "PART_BYTES", 10)
    monkeypatch.setattr(buckets, "MAX_PARTS", 4)
    start = respond_with(200, b"<UploadId>u</UploadId>")
    with Receiver([start, respond_with(200, ETag='"e"')]) as server:
        put(make_access(f"http://127.0.0.1:{server.port}"), 101, "x")
    sizes = [len(received.body) for received in server.received if "partNumber" in received.line]
    assert sizes == [26, 26, 26, 23]
