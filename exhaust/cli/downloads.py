"""`exhaust download`: a job's files, each whole and checked before it has its name."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError

from exhaust.cli import asking
from exhaust.cli.client import (
    AGAIN,
    LONGEST_ASKED,
    Exit,
    Failure,
    Server,
    backoff,
    cause,
    note,
    plain,
    pool_for,
    retry_after,
    sentence,
)

_STEP = 256 * 1024
_EXPIRED = {403, 410}  # a bucket says the one of a link that ended, we the other


def download(
    server: Server, tag: str, request_id: str, output: str, quiet: bool
) -> list[dict[str, Any]]:
    """All files of a job: path, bytes, SHA-256 and rows of each.

    `output` is a folder, or, where there is one file, its name. Raises `Failure`, `OSError`.
    """
    job = asking.read(server, tag, request_id)
    files = _files(job, tag)
    folder = Path(output)
    alone = len(files) == 1 and not output.endswith("/") and not folder.is_dir()
    if not alone:
        folder.mkdir(parents=True, exist_ok=True)
    made = []
    for index, (file, link) in enumerate(files):
        path = folder if alone else folder / _name(file["name"])

        def newer(index: int = index) -> str:
            """The link as it is now: asked for anew once it has expired."""
            return _files(asking.read(server, tag, request_id), tag)[index][1]

        _fetch(path, file, link, newer, server.tries, quiet)
        made.append(
            {
                "path": str(path),
                "bytes": file["bytes"],
                "sha256": file["sha256"],
                "rows": file["rows"],
            }
        )
    return made


def _files(job: dict[str, Any], tag: str) -> list[tuple[dict[str, Any], str]]:
    asking.require_success(job, tag)
    files = [file for file in job["files"] if not file["deleted"]]
    if not files or len(files) != len(job["downloadUrls"]):
        raise Failure(
            Exit.NOT_FOUND, "The request's file was deleted at the end of its life; submit anew."
        )
    return list(zip(files, job["downloadUrls"], strict=True))


def _name(name: str) -> str:
    """A file's name that stays in the folder. Raises `Failure`."""
    if not name or name.startswith(".") or set(name) & {"/", "\\", "\0"} or plain(name) != name:
        raise Failure(
            Exit.FAILED, "The server names a file in a way that is not safe here; use -o."
        )
    return name


def _fetch(
    path: Path, file: dict[str, Any], link: str, newer: Callable[[], str], tries: int, quiet: bool
) -> None:
    """One file under its name, when all of it is there and is what the server says it is."""
    size, promised = file["bytes"], file["sha256"]
    if path.exists() and _hashed(path, size) == promised:
        if not quiet:
            note(f"  {path} is there already, and the same")
        return
    draft = path.with_name(f"{path.name}.part")
    failures = 0
    anew = False
    while True:
        there = draft.stat().st_size if draft.exists() else 0
        if there >= size and draft.exists():
            if _hashed(draft, size) == promised:
                break
            draft.unlink()  # of another attempt, or damaged: only from nothing can it be right
            if anew:
                raise Failure(Exit.FAILED, f"{path.name}: the bytes are not those of its SHA-256.")
            anew, there = True, 0
        if there and not quiet:
            note(f"  {draft} has {there:,} of {size:,} bytes; going on")
        try:
            _append(draft, link, there, size)
            failures = 0
        except _Broken as broken:
            grown = draft.stat().st_size if draft.exists() else 0
            failures = 1 if grown > there else failures + 1
            if failures >= tries or not broken.again:
                raise Failure(
                    broken.code, f"{path.name}: {broken}; the same command goes on at {draft}."
                ) from None
            if broken.expired:
                link = newer()
                if failures == 1:
                    continue
            wait = backoff(failures) if broken.wait is None else broken.wait
            if not quiet:
                note(f"  {broken}; trying again in {wait:.0f} s")
            time.sleep(wait)
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.replace(path)
    if not quiet:
        note(
            f"  {path}: {file['rows']:,} rows, {size:,} bytes, SHA-256 {promised[:16]}… as promised"
        )


class _Broken(Exception):
    """A transfer that ended early."""

    def __init__(
        self,
        sentence: str,
        *,
        again: bool = True,
        expired: bool = False,
        wait: float | None = None,
        code: Exit = Exit.UNREACHABLE,
    ) -> None:
        super().__init__(sentence)
        self.again = again
        self.expired = expired
        self.wait = wait
        self.code = code


def _append(draft: Path, link: str, there: int, size: int) -> None:
    """What the link gives behind `there`, into the draft. Raises `_Broken`.

    The link is the right, and may lead to another host: no key goes with it.
    """
    headers = {"User-Agent": "exhaust-cli", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        answer = pool_for(link).request(
            "GET",
            link,
            headers=headers,
            preload_content=False,
            decode_content=False,
            retries=urllib3.Retry(
                connect=0, read=0, status=0, other=0, redirect=5, respect_retry_after_header=False
            ),
        )
    except HTTPError as error:
        raise _Broken(f"the link does not answer ({cause(error)})") from None
    try:
        _require(answer)
        # a server that gives all of it, or starts elsewhere, makes us begin again
        started = str(answer.headers.get("Content-Range", "")).startswith(f"bytes {there}-")
        with draft.open("ab" if answer.status == 206 and started else "wb") as target:
            if answer.status == 206 and not started:
                raise _Broken("the server gave another part than asked")
            written = target.tell()
            while chunk := answer.read1(_STEP):  # what is there; `stream` loses it on a break
                target.write(chunk)
                target.flush()  # a kill loses nothing that came
                written += len(chunk)
                if written > size:
                    break  # not this file; its SHA-256 will say so
        if written < size:
            raise _Broken(f"the connection ended after {written:,} of {size:,} bytes")
    except HTTPError as error:
        raise _Broken(f"the connection broke ({cause(error)})") from None
    finally:
        answer.close()


def _require(answer: Any) -> None:
    """Raises `_Broken` unless the answer brings bytes."""
    status = answer.status
    if status in {200, 206}:
        return
    said = sentence(answer.read(2000)) or f"the link answers {status}"
    if status == 416:
        raise _Broken("the server has no such part of the file", again=False, code=Exit.FAILED)
    if status in AGAIN or status == 500:
        asked = retry_after(answer.headers.get("Retry-After", ""))
        again = asked is None or asked <= LONGEST_ASKED
        raise _Broken(f"{status}: {said}", again=again, wait=asked)
    if status in _EXPIRED:
        raise _Broken(said, expired=True, code=Exit.DENIED)
    raise _Broken(said, again=False, code=Exit.NOT_FOUND if status == 404 else Exit.FAILED)


def _hashed(path: Path, size: int) -> str:
    """The SHA-256 of a file of that size; "" for one of another."""
    if path.stat().st_size != size:
        return ""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
