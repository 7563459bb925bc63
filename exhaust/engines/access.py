"""Reads and writes objects by addresses that expire, without a key to the storage.

It knows neither Django nor a database.
"""

import os
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import urllib3

from exhaust.archive.range_file import RangeFile

Grant = tuple[str, dict[str, str]]  # an address, and the headers that are to be sent

_DRAFT_PREFIX = ".part-"  # of `FolderStorage`
_RETRIES = urllib3.Retry(
    total=4,
    backoff_factor=0.3,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)


class AccessError(Exception):
    """The storage did not answer, or refused."""


@cache
def _open_pool() -> urllib3.PoolManager:
    timeout = urllib3.Timeout(connect=5, read=30)
    return urllib3.PoolManager(timeout=timeout, retries=_RETRIES, blocksize=1024 * 1024)


def open_file(grant: Grant, byte_count: int) -> RangeFile:
    """Returns the object as a file. Reading raises `FileNotFoundError` and `AccessError`."""
    return RangeFile(partial(_read_range, grant), byte_count)


def _read_range(grant: Grant, start: int, size: int) -> bytes:
    url, headers = grant
    if path := _find_path(url):
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    byte_range = {"Range": f"bytes={start}-{start + size - 1}"}
    answer = _send("GET", url, headers | byte_range)
    if answer.status == 404:
        raise FileNotFoundError(urlsplit(url).path)
    if answer.status != 206 or len(answer.data) != size:
        raise AccessError(_describe(answer, url))
    data: bytes = answer.data
    return data


def write_file(grant: Grant, content: IO[bytes], byte_count: int) -> None:
    """Stores the content whole or not at all. Raises `AccessError`."""
    url, headers = grant
    if path := _find_path(url):
        _write_path(path, content, byte_count)
        return
    length = {"Content-Length": str(byte_count)}
    answer = _send("PUT", url, headers | length, content)
    if answer.status not in (200, 201):
        raise AccessError(_describe(answer, url))


def _find_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _write_path(path: Path, content: IO[bytes], byte_count: int) -> None:
    """Several may write it at once: all write the same bytes."""
    draft = path.with_name(f"{_DRAFT_PREFIX}{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT, 0o666), "wb") as target:
        while block := content.read(1024 * 1024):
            target.write(block)
        target.truncate(byte_count)
        target.flush()
        os.fsync(target.fileno())
    with suppress(FileNotFoundError):  # another one was first
        draft.rename(path)


def _send(method: str, url: str, headers: dict[str, str], body: Any = None) -> Any:
    try:
        return _open_pool().request(method, url, headers=headers, body=body)
    except urllib3.exceptions.HTTPError as error:
        # its text has the address, which is a key to the object
        raise AccessError(f"{method} failed: {type(error).__name__}") from None


def _describe(answer: Any, url: str) -> str:
    code = answer.data[:2000].decode(errors="replace").partition("<Code>")[2].partition("<")[0]
    return f"{urlsplit(url).path}: status {answer.status} {code}".strip()
