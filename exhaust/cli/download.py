"""`exhaust download`: a request's files, each checked whole before it gets its name."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from exhaust.cli import requests
from exhaust.cli.client import (
    MAX_RETRY_AFTER_SECONDS,
    RETRIABLE_STATUSES,
    CommandFailed,
    ExitCode,
    Server,
    backoff_seconds,
    describe,
    error_detail,
    open_client,
    retry_after_seconds,
)
from exhaust.cli.names import make_safe_name
from exhaust.cli.terminal import format_count, open_progress, print_note

_EXPIRED_STATUSES = {403, 410}  # of a bucket's link and of the server's own


def download(server: Server, tag: str, request_id: str, output: str) -> list[dict[str, Any]]:
    """Downloads all files of a request; returns path, bytes, SHA-256 and rows of each.

    `output` is a folder, or the name of a request's one file. Raises `CommandFailed`, `OSError`.
    """
    job = requests.fetch_job(server, tag, request_id)
    files = _list_files(job, tag)
    target = Path(output)
    is_one_file = len(files) == 1 and not output.endswith("/") and not target.is_dir()
    if not is_one_file:
        target.mkdir(parents=True, exist_ok=True)
    downloaded = []
    with open_client(follow_redirects=True) as client:
        for index, (file, link) in enumerate(files):
            path = target if is_one_file else target / make_safe_name(file["name"])

            def renew_link(index: int = index) -> str:
                """Returns a link that has not expired."""
                return _list_files(requests.fetch_job(server, tag, request_id), tag)[index][1]

            _download_file(client, path, file, link, renew_link, server)
            downloaded.append(
                {
                    "path": str(path),
                    "bytes": file["bytes"],
                    "sha256": file["sha256"],
                    "rows": file["rows"],
                }
            )
    return downloaded


def _list_files(job: dict[str, Any], tag: str) -> list[tuple[dict[str, Any], str]]:
    """Returns each file with its link. Raises `CommandFailed` where there is none."""
    requests.require_success(job, tag)
    files = [file for file in job["files"] if not file["deleted"]]
    if not files or len(files) != len(job["downloadUrls"]):
        raise CommandFailed(
            ExitCode.NOT_FOUND, "The request's file was deleted by retention; submit a new request."
        )
    return list(zip(files, job["downloadUrls"], strict=True))


def _download_file(
    client: httpx.Client,
    path: Path,
    file: dict[str, Any],
    link: str,
    renew_link: Callable[[], str],
    server: Server,
) -> None:
    """Downloads one file, and names it when its size and SHA-256 are right."""
    size, sha256 = file["bytes"], file["sha256"]
    if path.exists() and _hash_file(path, size) == sha256:
        _note(server, f"  {path} is already here, with the right SHA-256")
        return
    draft = path.with_name(f"{path.name}.part")
    failures = 0
    has_restarted = False
    while True:
        start = draft.stat().st_size if draft.exists() else 0
        if start >= size and draft.exists():
            if _hash_file(draft, size) == sha256:
                break
            draft.unlink()  # another file's, or damaged
            if has_restarted:
                raise CommandFailed(
                    ExitCode.FAILED, f"{path.name}: the downloaded bytes do not have its SHA-256."
                )
            has_restarted, start = True, 0
        if start:
            _note(server, f"  {draft} has {start:,} of {size:,} bytes; continuing")
        try:
            _append(client, draft, link, start, size, server.quiet)
            failures = 0
        except _TransferFailed as error:
            has_grown = draft.exists() and draft.stat().st_size > start
            failures = 1 if has_grown else failures + 1
            if failures >= server.max_attempts or not error.is_retriable:
                raise CommandFailed(
                    error.exit_code,
                    f"{path.name}: {error}; the same command continues with {draft}.",
                ) from None
            if error.is_expired:
                link = renew_link()
                if failures == 1:
                    continue
            wait = backoff_seconds(failures) if error.retry_after is None else error.retry_after
            _note(server, f"  {error}; trying again in {wait:.0f} s")
            time.sleep(wait)
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(path)
    counts = f"{format_count(file['rows'], 'row')}, {format_count(size, 'byte')}"
    _note(server, f"  {path}: {counts}, SHA-256 {sha256[:16]}… right")


def _note(server: Server, line: str) -> None:
    if not server.quiet:
        print_note(line)


class _TransferFailed(Exception):
    """A transfer that ended early; `retry_after` is in seconds."""

    def __init__(
        self,
        message: str,
        *,
        is_retriable: bool = True,
        is_expired: bool = False,
        retry_after: float | None = None,
        exit_code: ExitCode = ExitCode.UNAVAILABLE,
    ) -> None:
        super().__init__(message)
        self.is_retriable = is_retriable
        self.is_expired = is_expired
        self.retry_after = retry_after
        self.exit_code = exit_code


def _append(
    client: httpx.Client, draft: Path, link: str, start: int, size: int, quiet: bool
) -> None:
    """Appends to the draft the bytes from `start` on. Raises `_TransferFailed`.

    A link needs no key and may lead to another host, so none is sent.
    """
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    progress = open_progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        quiet=quiet,
    )
    try:
        with client.stream("GET", link, headers=headers) as response, progress:
            _check_status(response)
            # a server that sends all of it, or another part, makes the draft start again
            content_range = response.headers.get("Content-Range", "")
            is_continued = response.status_code == 206 and content_range.startswith(
                f"bytes {start}-"
            )
            with draft.open("ab" if is_continued else "wb") as target:
                if response.status_code == 206 and not is_continued:
                    raise _TransferFailed("the server sent another part of the file")
                written = target.tell()
                task = progress.add_task(draft.name, total=size, completed=written)
                for chunk in response.iter_raw():  # with a chunk size it would lose a broken end
                    target.write(chunk)
                    target.flush()  # a kill loses nothing that arrived
                    written += len(chunk)
                    progress.update(task, completed=written)
                    if written > size:
                        break  # another file; its SHA-256 shows it
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _TransferFailed(f"the download was interrupted ({describe(error)})") from None
    if written < size:
        raise _TransferFailed(f"the connection ended after {written:,} of {size:,} bytes")


def _check_status(response: httpx.Response) -> None:
    """Raises `_TransferFailed` unless the answer brings the file's bytes."""
    status = response.status_code
    if status in {200, 206}:
        return
    detail = error_detail(_read_start(response)) or f"the link answers {status}"
    if status == 416:
        raise _TransferFailed(
            "the server has no such part of the file",
            is_retriable=False,
            exit_code=ExitCode.FAILED,
        )
    if status in RETRIABLE_STATUSES:
        seconds = retry_after_seconds(response.headers.get("Retry-After", ""))
        raise _TransferFailed(
            f"{status}: {detail}",
            is_retriable=seconds is None or seconds <= MAX_RETRY_AFTER_SECONDS,
            retry_after=seconds,
        )
    if status in _EXPIRED_STATUSES:
        raise _TransferFailed(detail, is_expired=True, exit_code=ExitCode.DENIED)
    exit_code = ExitCode.NOT_FOUND if status == 404 else ExitCode.FAILED
    raise _TransferFailed(detail, is_retriable=False, exit_code=exit_code)


def _read_start(response: httpx.Response, limit: int = 2000) -> bytes:
    """Returns the first bytes of an error's body, which may be of any length."""
    start = b""
    for chunk in response.iter_raw():
        start += chunk
        if len(start) >= limit:
            break
    return start[:limit]


def _hash_file(path: Path, size: int) -> str:
    """Returns the SHA-256 of a file of that size; "" for another size."""
    if path.stat().st_size != size:
        return ""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
