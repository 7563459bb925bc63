"""What has to be true of a job after its fault, and what a reader may have seen meanwhile."""

import hashlib
import http.client
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, ResponseStreamingError

from benchmarks.fault_place import BUCKET, Place

ENDS = {"SUCCESS", "FAILED", "CANCELLED"}
FIRST, LAST = date(2025, 1, 1), date(2025, 1, 30)


def config(conversation: str) -> dict[str, str]:
    return {
        "conversationId": conversation,
        "startDate": FIRST.isoformat(),
        "endDate": LAST.isoformat(),
    }


# The oracle ---------------------------------------------------------------------------------------


class Oracle:
    """The right bytes of a job, by the portable writer: rows below its watermark, in Python."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], tuple[str, int]] = {}

    def of(self, job: Any) -> tuple[str, int]:
        """SHA-256 and rows."""
        from exhaust.datasets.response import RESPONSE
        from exhaust.datasets.selection import Selection, days
        from exhaust.files import writer
        from ingest.models import Conversation, StoredEvent

        found = Conversation.objects.get(
            channel=job.channel_id, identifier=job.config["conversationId"]
        )
        # rows are only added: as many below the watermark are the same ones
        rows = StoredEvent.objects.filter(conversation=found.pk, xid__lt=job.watermark).count()
        with self._lock:
            if known := self._known.get((found.pk, rows)):
                return known
        selection = Selection(
            job.channel_id, found.pk, found.identifier, found.name, *days(FIRST, LAST, "UTC"),
            job.watermark,
        )  # fmt: skip
        digest, progress = hashlib.sha256(), writer.Progress()
        for block in writer.blocks(RESPONSE, selection, progress, portable=True):
            digest.update(block)
        made = digest.hexdigest(), progress.rows
        with self._lock:
            self._known[found.pk, rows] = made
        return made


# The store, past the service ----------------------------------------------------------------------


class Store:
    """Keys, bytes and unfinished uploads, straight from the bucket or the folder."""

    def __init__(self, place: Place) -> None:
        self._bucket = place.bucket
        self._files = place.var / "files"

    def keys(self, prefix: str) -> list[str]:
        """Whole files: whoever knows a key can have them."""
        if self._bucket is None:
            return [key for key in self._found(prefix) if "/.part-" not in key]
        pages = self._bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def begun(self, prefix: str) -> list[str]:
        """Unfinished uploads and drafts."""
        if self._bucket is None:
            return [key for key in self._found(prefix) if "/.part-" in key]
        pages = self._bucket.get_paginator("list_multipart_uploads").paginate(
            Bucket=BUCKET, Prefix=prefix
        )
        return [one["Key"] for page in pages for one in page.get("Uploads", ())]

    def _found(self, prefix: str) -> list[str]:
        folder: Path = self._files / prefix
        return [str(one.relative_to(self._files)) for one in folder.rglob("*") if one.is_file()]

    def digest(self, key: str) -> str | None:
        """SHA-256 of what lies there; None for nothing."""
        try:
            if self._bucket is None:
                return hashlib.sha256((self._files / key).read_bytes()).hexdigest()
            body = self._bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except FileNotFoundError:
            return None
        except self._missing:
            return None
        except (ClientError, ResponseStreamingError):
            if self._goes(key):
                return None  # an attempt's that was never published, deleted while it was read
            raise
        return hashlib.sha256(body).hexdigest()

    def _goes(self, key: str) -> bool:
        """Whether a deletion is under way: Swift takes a file's segments before its name."""
        until = time.monotonic() + 10
        while key in self.keys(key.rpartition("/")[0] + "/"):
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    @property
    def _missing(self) -> tuple[type[Exception], ...]:
        return (self._bucket.exceptions.NoSuchKey,) if self._bucket is not None else ()


# The reader ---------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a reader saw of a job."""

    keys: dict[str, str] = field(default_factory=dict)  # key, SHA-256
    statuses: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # SHA-256
    wrong: list[str] = field(default_factory=list)


class Reader(threading.Thread):
    """Somebody who polls the API, follows its links, and gets every key that he can find."""

    def __init__(self, place: Place, key: str) -> None:
        super().__init__(daemon=True, name="reader")
        self._store, self._port, self._key = Store(place), place.web_port, key
        self.watched: dict[int, tuple[str, str, str]] = {}  # job: channel, tag, request id
        self.seen: dict[int, Seen] = {}
        self.looks = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for job, address in list(self.watched.items()):
                seen = self.seen.setdefault(job, Seen())
                try:
                    self._look_for_keys(job, seen)
                    self._ask(address, seen)
                except Exception as error:
                    if not self.over.is_set():
                        seen.wrong.append(f"reader: {type(error).__name__}: {error}")
                self.looks += 1
                time.sleep(0.02)

    def _look_for_keys(self, job: int, seen: Seen) -> None:
        for key in self._store.keys(f"response/{job}/"):
            if key not in seen.keys and (digest := self._store.digest(key)):
                seen.keys[key] = digest

    def _ask(self, address: tuple[str, str, str], seen: Seen) -> None:
        channel, tag, request_id = address
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as web:
            web.request(
                "GET", f"/dataset/v1/request/read/{tag}?requestId={request_id}",
                headers={"Authorization": f"Bearer {self._key}", "X-Channel-ID": channel},
            )  # fmt: skip
            answer = web.getresponse()
            body = answer.read()
        if answer.status != 200:
            # a database whose connections were all cut may cost a reader an answer, never a lie
            if answer.status < 500:
                seen.wrong.append(f"the API said {answer.status}")
            return
        told = json.loads(body)["result"]
        if not seen.statuses or seen.statuses[-1] != told["status"]:
            seen.statuses.append(told["status"])
        if bool(told["downloadUrls"]) != (told["status"] == "SUCCESS"):
            seen.wrong.append(f"{told['status']} with {len(told['downloadUrls'])} links")
        if told["downloadUrls"] and not seen.downloads:
            with urllib.request.urlopen(told["downloadUrls"][0], timeout=60) as download:
                seen.downloads.append(hashlib.sha256(download.read()).hexdigest())


# After a fault ------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What came of a run; `wrong` are the violations, by kind."""

    outcome: str = ""
    attempts: int = 0
    swept: bool = False
    moves: list[tuple[str, int, float]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)  # lost, twice, half, left over


def check(
    pk: int, store: Store, oracle: Oracle, seen: Seen, may_fail: Callable[[], bool]
) -> Verdict:
    """Everything the promises say of an ended job."""
    from exhaust.models import Job

    job = Job.objects.get(pk=pk)
    moves = [
        (one.status, one.attempt, one.at.timestamp()) for one in job.transitions.order_by("pk")
    ]
    files = list(job.files.all())
    verdict = Verdict(job.status, job.attempt, moves=moves)
    told = verdict.wrong.append
    ends = [status for status, *_ in moves if status in ENDS]
    if len(ends) != 1:
        told(("twice" if ends else "lost", f"ends: {ends}"))
    claims = [attempt for status, attempt, _ in moves if status == "PROCESSING"]
    if claims != list(range(1, job.attempt + 1)):
        told(("twice", f"claims: {claims}"))
    right, rows = oracle.of(job) if job.watermark is not None else ("", 0)
    match job.status:
        case "SUCCESS":
            if len(files) != 1:
                told(("twice" if files else "lost", f"{len(files)} files"))
            for file in files:
                digest = store.digest(file.key)
                if digest is None:
                    told(("lost", f"no object under {file.key}"))
                elif not digest == file.sha256 == right or file.row_count != rows:
                    told(("half", f"{file.key}: {file.row_count} rows for {rows}"))
        case "FAILED" if may_fail():
            if files or not job.status_message.endswith("."):
                told(("twice", f"failed, with {len(files)} files: {job.status_message!r}"))
        case status:
            told(("lost", f"{status} after {job.attempt} attempts: {job.status_message}"))
    for key, digest in seen.keys.items():
        if digest != right:
            told(("half", f"a reader got something else under {key}"))
    for digest in seen.downloads:
        if not files or digest != files[0].sha256:
            told(("half", "a download is not the file"))
    wrong_turns = [
        turn for turn in pairwise(seen.statuses) if turn[0] in ENDS
    ]  # an end is the last thing that is told
    for what in dict.fromkeys([*seen.wrong, *(f"{old} then {new}" for old, new in wrong_turns)]):
        told(("half", what))
    verdict.swept = _swept(pk, store, {file.key for file in files}, told)
    return verdict


def _swept(pk: int, store: Store, named: set[str], told: Callable[[tuple[str, str]], None]) -> bool:
    """Whether it took a sweep to leave nothing but the file."""
    from exhaust.files import orphans

    if not _left(pk, store, named):
        return False
    orphans.remove_of(pk)
    for what in _left(pk, store, named):
        told(("left over", what))
    return True


def _left(pk: int, store: Store, named: set[str]) -> list[str]:
    prefix = f"response/{pk}/"
    return [
        *(f"object {key}" for key in store.keys(prefix) if key not in named),
        *(f"upload {key}" for key in store.begun(prefix)),
    ]
