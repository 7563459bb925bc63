"""Checks a job after its fault, and what a reader saw meanwhile."""

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError, ResponseStreamingError

from tools.faults.installation import BUCKET, Installation

FINAL_STATUSES = {"SUCCESS", "FAILED", "CANCELLED"}
FIRST_DAY, LAST_DAY = date(2025, 1, 1), date(2025, 1, 30)


def dataset_config(conversation: str) -> dict[str, str]:
    return {
        "conversationId": conversation,
        "startDate": FIRST_DAY.isoformat(),
        "endDate": LAST_DAY.isoformat(),
    }


# Oracle ------------------------------------------------------------------------------------------


class Oracle:
    """The right bytes of a job, from the portable writer and the rows below its watermark."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: dict[tuple[int, int], tuple[str, int]] = {}

    def expected(self, job: Any) -> tuple[str, int]:
        """Returns the SHA-256 and the row count that the job must have."""
        from exhaust.datasets.response import RESPONSE
        from exhaust.datasets.selection import Selection, day_range
        from exhaust.files import writer
        from ingest.models import Conversation, StoredEvent

        conversation = Conversation.objects.get(
            channel=job.channel_id, identifier=job.config["conversationId"]
        )
        # rows are only added, so the same count below the watermark means the same rows
        rows = StoredEvent.objects.filter(
            conversation=conversation.pk, xid__lt=job.watermark
        ).count()
        with self._lock:
            if known := self._cache.get((conversation.pk, rows)):
                return known
        selection = Selection(
            job.channel_id,
            conversation.pk,
            conversation.identifier,
            conversation.name,
            *day_range(FIRST_DAY, LAST_DAY, "UTC"),
            job.watermark,
        )
        digest, progress = hashlib.sha256(), writer.Progress()
        for block in writer.iter_blocks(RESPONSE, selection, progress, portable=True):
            digest.update(block)
        expected = digest.hexdigest(), progress.rows
        with self._lock:
            self._cache[conversation.pk, rows] = expected
        return expected


# Storage ------------------------------------------------------------------------------------------


class Store:
    """Keys, bytes and unfinished uploads, read directly from the bucket or the folder."""

    def __init__(self, installation: Installation) -> None:
        self._bucket = installation.bucket
        self._files = installation.data / "files"

    def list_keys(self, prefix: str) -> list[str]:
        """Returns the keys of complete files."""
        if self._bucket is None:
            return [key for key in self._list_files(prefix) if "/.part-" not in key]
        pages = self._bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for page in pages for one in page.get("Contents", ())]

    def list_unfinished(self, prefix: str) -> list[str]:
        """Returns the keys of unfinished uploads and drafts."""
        if self._bucket is None:
            return [key for key in self._list_files(prefix) if "/.part-" in key]
        pages = self._bucket.get_paginator("list_multipart_uploads").paginate(
            Bucket=BUCKET, Prefix=prefix
        )
        return [one["Key"] for page in pages for one in page.get("Uploads", ())]

    def _list_files(self, prefix: str) -> list[str]:
        folder: Path = self._files / prefix
        return [str(one.relative_to(self._files)) for one in folder.rglob("*") if one.is_file()]

    def read(self, key: str) -> bytes:
        """Returns the bytes of an object in the folder."""
        return (self._files / key).read_bytes()

    def digest(self, key: str) -> str | None:
        """Returns the SHA-256 of an object, or None if there is none."""
        try:
            if self._bucket is None:
                return hashlib.sha256(self.read(key)).hexdigest()
            body = self._bucket.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except FileNotFoundError:
            return None
        except self._missing_errors:
            return None
        except (ClientError, ResponseStreamingError):
            if self._is_being_deleted(key):
                return None  # of an unpublished attempt, deleted during the read
            raise
        return hashlib.sha256(body).hexdigest()

    def _is_being_deleted(self, key: str) -> bool:
        """Returns whether the object is being deleted; Swift deletes segments before the name."""
        deadline = time.monotonic() + 10
        while key in self.list_keys(key.rpartition("/")[0] + "/"):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    @property
    def _missing_errors(self) -> tuple[type[Exception], ...]:
        return (self._bucket.exceptions.NoSuchKey,) if self._bucket is not None else ()


# Reader ------------------------------------------------------------------------------------------


@dataclass
class Observations:
    """The keys, statuses and downloads of a job that a reader saw."""

    keys: dict[str, str] = field(default_factory=dict)  # key, SHA-256
    statuses: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)  # SHA-256
    wrong_answers: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


class Reader(threading.Thread):
    """Polls the API, follows its links, and reads every key that it can find."""

    def __init__(self, installation: Installation, key: str) -> None:
        super().__init__(daemon=True, name="reader")
        self._store, self._port, self._key = Store(installation), installation.web_port, key
        self.watched: dict[int, tuple[str, str, str]] = {}  # job: channel, tag, request id
        self.ended: deque[int] = deque()  # jobs to look at next
        self.observations: dict[int, Observations] = {}
        self.check_count = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            for job in list(self.watched):
                self._look_at(job)
                while self.ended:  # its run waits for this look
                    self._look_at(self.ended.popleft())
                time.sleep(0.02)

    def _look_at(self, job: int) -> None:
        if (address := self.watched.get(job)) is None:
            return
        observations = self.observations.setdefault(job, Observations())
        try:
            self._check_keys(job, observations)
            with suppress(  # killed
                ConnectionError, http.client.HTTPException, urllib.error.URLError
            ):
                self._poll_api(address, observations)
        except Exception as error:
            if not self.stopped.is_set():
                observations.violations.append(f"reader: {type(error).__name__}: {error}")
        self.check_count += 1

    def _check_keys(self, job: int, observations: Observations) -> None:
        for key in self._store.list_keys(f"response/{job}/"):
            if key not in observations.keys and (digest := self._store.digest(key)):
                observations.keys[key] = digest

    def _poll_api(self, address: tuple[str, str, str], observations: Observations) -> None:
        channel, tag, request_id = address
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)) as web:
            web.request(
                "GET", f"/dataset/v1/request/read/{tag}?requestId={request_id}",
                headers={"Authorization": f"Bearer {self._key}", "X-Channel-ID": channel},
            )  # fmt: skip
            answer = web.getresponse()
            body = answer.read()
        if answer.status != 200:
            if answer.status != 503:  # which an outage may cause
                observations.wrong_answers.append(answer.status)
            return
        job = json.loads(body)["result"]
        if not observations.statuses or observations.statuses[-1] != job["status"]:
            observations.statuses.append(job["status"])
        if bool(job["downloadUrls"]) != (job["status"] == "SUCCESS"):
            observations.violations.append(f"{job['status']} with {len(job['downloadUrls'])} links")
        if job["downloadUrls"] and not observations.downloads:
            try:
                with urllib.request.urlopen(job["downloadUrls"][0], timeout=60) as download:
                    observations.downloads.append(hashlib.sha256(download.read()).hexdigest())
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    observations.wrong_answers.append(error.code)


# After a fault ------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """The result of a run; `violations` are (kind, detail)."""

    outcome: str = ""
    attempts: int = 0
    is_swept: bool = False
    transitions: list[tuple[str, int, float]] = field(default_factory=list)
    violations: list[tuple[str, str]] = field(default_factory=list)  # see `VIOLATIONS`


def check_job(
    pk: int,
    store: Store,
    oracle: Oracle,
    observations: Observations,
    may_end: Callable[[str], bool],
) -> Verdict:
    """Checks a finished job against all guarantees; `may_end` allows another end than SUCCESS."""
    from exhaust.models import Job

    job = Job.objects.get(pk=pk)
    transitions = [
        (one.status, one.attempt, one.changed_at.timestamp())
        for one in job.transitions.order_by("pk")
    ]
    files = list(job.files.all())
    verdict = Verdict(job.status, job.attempt, transitions=transitions)
    report = verdict.violations.append
    final_statuses = [status for status, *_ in transitions if status in FINAL_STATUSES]
    if len(final_statuses) != 1:
        report(("twice" if final_statuses else "lost", f"ends: {final_statuses}"))
    claims = [attempt for status, attempt, _ in transitions if status == "PROCESSING"]
    if claims != list(range(1, job.attempt + 1)):
        report(("twice", f"claims: {claims}"))
    right, rows = oracle.expected(job) if job.watermark is not None else ("", 0)
    match job.status:
        case "SUCCESS":
            if len(files) != 1:
                report(("twice" if files else "lost", f"{len(files)} files"))
            for file in files:
                digest = store.digest(file.key)
                if digest is None:
                    report(("lost", f"no object under {file.key}"))
                elif not digest == file.sha256 == right or file.row_count != rows:
                    report(("half", f"{file.key}: {file.row_count} rows for {rows}"))
        case "FAILED" | "CANCELLED" if may_end(job.status):
            if files or not job.status_message.endswith("."):
                report(("twice", f"{job.status} with {len(files)} files: {job.status_message!r}"))
        case status:
            report(("lost", f"{status} after {job.attempt} attempts: {job.status_message}"))
    for key, digest in observations.keys.items():
        if digest != right:
            report(("half", f"a reader got something else under {key}"))
    for digest in observations.downloads:
        if not files or digest != files[0].sha256:
            report(("half", "a download is not the file"))
    wrong_turns = [
        step for step in pairwise(observations.statuses) if step[0] in FINAL_STATUSES
    ]  # no status follows a final one
    for violation in dict.fromkeys(
        [*observations.violations, *(f"{old} then {new}" for old, new in wrong_turns)]
    ):
        report(("half", violation))
    for code in observations.wrong_answers:
        report(("error" if code >= 500 else "not met", f"the API said {code}"))
    verdict.is_swept = _sweep_job(pk, store, {file.key for file in files}, report)
    return verdict


def _sweep_job(
    pk: int, store: Store, named: set[str], report: Callable[[tuple[str, str]], None]
) -> bool:
    """Returns whether only a sweep removed the last orphan of the job."""
    from exhaust.files import orphans

    if not _list_orphans(pk, store, named):
        return False
    orphans.remove_for_jobs(pk)
    for orphan in _list_orphans(pk, store, named):
        report(("left over", orphan))
    return True


def _list_orphans(pk: int, store: Store, named: set[str]) -> list[str]:
    prefix = f"response/{pk}/"
    return [
        *(f"object {key}" for key in store.list_keys(prefix) if key not in named),
        *(f"upload {key}" for key in store.list_unfinished(prefix)),
    ]
