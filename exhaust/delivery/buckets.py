"""Files into a bucket of the channel's own, by the S3 protocol.

botocore signs, and `http_client` sends: the rules for hosts, and a deadline for each request, are
those of every other delivery.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from exhaust.delivery import http_client
from exhaust.delivery.file_receivers import BLOCK_BYTES, Access, Refused
from exhaust.delivery.http_client import Answer

REQUEST_SECONDS = 60.0  # a part of 8 MiB in it is 140 kB/s
PART_BYTES = 8 * BLOCK_BYTES
MAX_PARTS = 10_000
_CODE_PATTERN = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")
_UPLOAD_PATTERN = re.compile(rb"<UploadId>([^<]{1,1024})</UploadId>")


class BucketReceiver:
    """A bucket, with its name in the path of each address."""

    host_key = ""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._signer = S3SigV4Auth(Credentials(access.user, access.password), "s3", access.region)

    def __enter__(self) -> "BucketReceiver":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass  # each request has a connection of its own

    def put(
        self, path: str, blocks: Iterator[bytes], byte_count: int, content_type: str, attempt: int
    ) -> None:
        part_bytes = max(PART_BYTES, -(-byte_count // MAX_PARTS))
        parts = _join_blocks(blocks, part_bytes)
        if byte_count <= part_bytes:
            self._call("PUT", path, next(parts, b""), content_type=content_type)
            return
        started = self._call("POST", path, query={"uploads": ""}, content_type=content_type)
        match = _UPLOAD_PATTERN.search(started.body)
        if match is None:
            raise Refused("The bucket began no upload; its answer has no UploadId.", started.status)
        upload = {"uploadId": match[1].decode(errors="replace")}
        try:
            etags = [
                self._call("PUT", path, part, {"partNumber": str(number), **upload}).etag
                for number, part in enumerate(parts, 1)
            ]
            self._call("POST", path, _list_parts(etags), upload, "application/xml")
        except BaseException:
            self._abort(path, upload)
            raise

    def _abort(self, path: str, upload: dict[str, str]) -> None:
        # otherwise a rule of the bucket removes the parts
        with suppress(Refused, http_client.Unreachable, http_client.AddressNotAllowed):
            self._call("DELETE", path, query=upload)

    def read(self, path: str) -> bytes:
        return self._call("GET", path).body

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        query: dict[str, str] | None = None,
        content_type: str = "",
    ) -> Answer:
        address = f"{self._access.url.rstrip('/')}/{self._access.bucket}/{quote(path, safe='/~')}"
        if query:
            address += f"?{urlencode(query, quote_via=quote, safe='-_.~')}"
        headers = {"Content-Type": content_type} if content_type else {}
        signed = AWSRequest(method, address, data=body, headers=headers)
        self._signer.add_auth(signed)
        answer = http_client.send(
            method,
            address,
            body,
            dict(signed.headers.items()),
            channel=self._access.channel,
            seconds=REQUEST_SECONDS,
        )
        code = _CODE_PATTERN.search(answer.body) if b"<Error>" in answer.body else None
        if code or not 200 <= answer.status < 300:  # a completed upload may fail with a 200
            reason = f" {code[1].decode()}" if code else ""
            raise Refused(f"The bucket answered {answer.status}{reason}.", answer.status)
        return answer


def _join_blocks(blocks: Iterator[bytes], part_bytes: int) -> Iterator[bytes]:
    """Yields the bytes again in parts of that size; the last one is shorter."""
    waiting = bytearray()
    for block in blocks:
        waiting += block
        while len(waiting) >= part_bytes:
            yield bytes(waiting[:part_bytes])
            del waiting[:part_bytes]
    if waiting:
        yield bytes(waiting)


def _list_parts(etags: list[str]) -> bytes:
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    return f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
