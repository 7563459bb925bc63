"""Requests for datasets: submit, preview, status, list, cancel, retry."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from exhaust.cli.client import Exit, Failure, Server, note, plain

ENDS = {"SUCCESS", "FAILED", "CANCELLED"}
_API = "/dataset/v1/request"
_JSON = {"Content-Type": "application/json"}

Job = dict[str, Any]


def ask(server: Server, operation: str, request: dict[str, Any]) -> Any:
    """`submit` or `preview`: the answer's result."""
    body = json.dumps({"request": request}).encode()
    headers = server.headers() | _JSON
    return server.call("POST", f"{_API}/{operation}", body=body, headers=headers).said()["result"]


def read(server: Server, tag: str, request_id: str) -> Job:
    return _of_one(server, "GET", "read", tag, request_id)


def cancel(server: Server, tag: str, request_id: str) -> Job:
    return _of_one(server, "POST", "cancel", tag, request_id)


def retry(server: Server, tag: str, request_id: str) -> Job:
    return _of_one(server, "POST", "retry", tag, request_id, again=False)  # twice is a 409


def _of_one(
    server: Server, method: str, operation: str, tag: str, request_id: str, again: bool = True
) -> Job:
    path = f"{_API}/{operation}/{quote(tag, safe='')}"
    answer = server.call(method, path, fields={"requestId": request_id}, again=again)
    job: Job = answer.said()["result"]
    return job


def listed(server: Server, tag: str, limit: int) -> list[Job]:
    """A tag's newest jobs, page by page."""
    jobs: list[Job] = []
    cursor = None
    while len(jobs) < limit:
        fields = {"limit": str(min(limit - len(jobs), 1000))}
        if cursor:
            fields["cursor"] = cursor
        path = f"{_API}/list/{quote(tag, safe='')}"
        result = server.call("GET", path, fields=fields).said()["result"]
        jobs += result["jobs"]
        cursor = result["nextCursor"]
        if not cursor:
            break
    return jobs


def watch(server: Server, tag: str, request_id: str, *, show: bool = True) -> Job:
    """The job once it has ended, its progress shown meanwhile."""
    progress = Progress()
    while True:
        job = read(server, tag, request_id)
        if show:
            progress(job)
        if job["status"] in ENDS:
            if show:
                progress.end()
            return job
        time.sleep(progress.pause())


class Progress:
    """A bar on a terminal, a line for each change elsewhere; on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._first: tuple[float, int] | None = None
        self._last = ""
        self._bar = sys.stderr.isatty()

    def __call__(self, job: Job) -> None:
        line = self._line(job)
        if self._bar:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        elif line != self._last:
            note(line)
        self._last = line

    def end(self) -> None:
        if self._bar:
            sys.stderr.write("\n")

    def pause(self) -> float:
        """Seconds until the next look: soon at first, then seldom."""
        return min(5.0, max(0.5, (self._clock() - self._began) / 10))

    def _line(self, job: Job) -> str:
        progress = job["progress"]
        percent = progress["percent"]
        full = percent // 4
        bar = f"[{'█' * full}{'·' * (25 - full)}] {percent:3d} %" if self._bar else f"{percent} %"
        words = [f"{job['status']:<10}", bar, f"{progress['rows']:,} rows"]
        if job["status"] not in ENDS:
            words.append(plain(progress["phase"]))
            if progress["queuePosition"]:
                words.append(f"place {progress['queuePosition']} in the queue")
            if self._bar and (left := self._left(progress)) is not None:
                words.append(f"about {left} left")
        return "  ".join(words)

    def _left(self, progress: dict[str, Any]) -> str | None:
        """How long it may go on, at the pace since we look."""
        rows, expected = progress["rows"], progress["estimatedRows"]
        if not rows or not expected or rows >= expected:
            return None
        now = self._clock()
        if self._first is None:
            self._first = (now, rows)
        then, before = self._first
        if now - then < 1 or rows == before:
            return None
        seconds = int((expected - rows) * (now - then) / (rows - before))
        return f"{seconds // 60} min" if seconds >= 120 else f"{seconds} s"


def ended(job: Job) -> Exit:
    """What a job's status is as an exit code."""
    return Exit.FAILED if job["status"] in {"FAILED", "CANCELLED"} else Exit.OK


def require_success(job: Job, tag: str) -> None:
    """Raises `Failure` with what to do when there is no file."""
    status, request_id = job["status"], job["requestId"]
    if status == "SUCCESS":
        return
    if status in ENDS:
        said = f": {plain(job['statusMessage'])}" if job["statusMessage"] else ""
        raise Failure(
            Exit.FAILED, f"The request is {status}{said}. `exhaust retry {tag} {request_id}` again."
        )
    raise Failure(
        Exit.FAILED,
        f"The request is {status}; `exhaust status {tag} {request_id} --watch` waits for its end.",
    )


def line(job: Job) -> str:
    """A job in one line."""
    files = [file for file in job["files"] if not file["deleted"]]
    rows = sum(file["rows"] for file in files) if files else job["progress"]["rows"]
    words = [
        job["requestId"],
        f"{job['status']:<10}",
        plain(job["dataset"]),
        moment(job["jobStats"]["dtJobSubmitted"]),
        f"{rows:,} rows",
    ]
    if files:
        words.append(f"{sum(file['bytes'] for file in files):,} bytes")
    if job["statusMessage"]:
        words.append(plain(job["statusMessage"]))
    return "  ".join(words)


def shown(preview: dict[str, Any]) -> str:
    """A preview for people: the estimate, the columns, some masked rows."""
    estimate = preview["estimate"]
    rows = "unknown" if estimate["rows"] is None else f"{estimate['rows']:,}"
    size = "unknown" if estimate["bytes"] is None else f"{estimate['bytes']:,}"
    about = "" if estimate["counted"] else "about "
    lines = [f"{about}{rows} rows, about {size} bytes as CSV"]
    if preview["message"]:
        lines.append(plain(preview["message"]))
    lines += [
        f"  {plain(column['header'])} ({plain(column['kind'])}"
        f"{', personal' if column['personal'] else ''}): {plain(column['description'])}"
        for column in preview["columns"]
    ]
    for row in preview["rows"]:
        cells = ("" if cell is None else plain(cell) for cell in row.values())
        lines.append(" | ".join(cells))
    return "\n".join(lines)


def moment(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
