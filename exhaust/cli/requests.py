"""Requests for datasets: submit, preview, status, list, cancel, retry."""

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from exhaust.cli.client import CommandFailed, ExitCode, Server, read_json
from exhaust.cli.terminal import format_count, open_progress, print_note, printable

FINAL_STATUSES = {"SUCCESS", "FAILED", "CANCELLED"}
JOB_HEADERS = ("Request ID", "Status", "Dataset", "Submitted", "Rows", "Bytes", "Message")
_PATH = "/dataset/v1/request"

Job = dict[str, Any]


def submit(server: Server, request: dict[str, Any]) -> Job:
    """Returns the submitted job. Raises `CommandFailed`, as all calls below."""
    # a second call would make a second new job
    job: Job = _post(server, "submit", request, is_repeatable=not request.get("forceNew"))
    return job


def list_notes(job: Job) -> list[str]:
    """Returns sentences about a submitted job: fields that were not read, a file of before."""
    notes = [f"Warning: {printable(warning)}" for warning in job.get("warnings", ())]
    if job.get("existing"):
        as_of, rows = job.get("asOf"), job.get("newRows")
        until = f", with the events until {_format_time(as_of)}" if as_of else ""
        since = f"; {format_count(rows, 'row')} arrived since" if rows is not None else ""
        notes.append(f"The same request exists already{until}{since}. --force-new makes a new one.")
    return notes


def preview(server: Server, request: dict[str, Any]) -> dict[str, Any]:
    """Returns the estimate, the columns and some masked rows; no job is queued."""
    result: dict[str, Any] = _post(server, "preview", request)
    return result


def _post(
    server: Server, operation: str, request: dict[str, Any], is_repeatable: bool = True
) -> Any:
    body = json.dumps({"request": request}).encode()
    headers = server.key_headers() | {"Content-Type": "application/json"}
    response = server.call(
        "POST", f"{_PATH}/{operation}", body=body, headers=headers, is_repeatable=is_repeatable
    )
    return read_json(response)["result"]


def fetch_job(server: Server, tag: str, request_id: str, wait_seconds: int = 0) -> Job:
    """Returns a job as it is now, or once its status is another one."""
    return _call_one(server, "GET", "read", tag, request_id, wait_seconds=wait_seconds)


def cancel(server: Server, tag: str, request_id: str) -> Job:
    """Stops a job that has not ended; returns it."""
    return _call_one(server, "POST", "cancel", tag, request_id)


def retry(server: Server, tag: str, request_id: str) -> Job:
    """Runs a FAILED or CANCELLED job again; returns it."""
    # a second call would be a 409
    return _call_one(server, "POST", "retry", tag, request_id, is_repeatable=False)


def _call_one(
    server: Server,
    method: str,
    operation: str,
    tag: str,
    request_id: str,
    is_repeatable: bool = True,
    wait_seconds: int = 0,
) -> Job:
    query = {"requestId": request_id} | ({"wait": str(wait_seconds)} if wait_seconds else {})
    response = server.call(
        method,
        f"{_PATH}/{operation}/{quote(tag, safe='')}",
        query=query,
        is_repeatable=is_repeatable,
    )
    job: Job = read_json(response)["result"]
    return job


def list_jobs(server: Server, tag: str, limit: int) -> list[Job]:
    """Returns a tag's newest jobs, read page by page."""
    jobs: list[Job] = []
    cursor = None
    while len(jobs) < limit:
        query = {"limit": str(min(limit - len(jobs), 1000))}
        if cursor:
            query["cursor"] = cursor
        response = server.call("GET", f"{_PATH}/list/{quote(tag, safe='')}", query=query)
        result = read_json(response)["result"]
        jobs += result["jobs"]
        cursor = result["nextCursor"]
        if not cursor:
            break
    return jobs


def watch(server: Server, tag: str, request_id: str) -> Job:
    """Shows a job's progress on standard error; returns the job when it has ended."""
    progress = JobProgress(server.quiet)
    with progress.display:
        job = fetch_job(server, tag, request_id)
        progress.show(job)
        while job["status"] not in FINAL_STATUSES:
            seconds, asked_at, status = progress.poll_seconds(), time.monotonic(), job["status"]
            job = fetch_job(server, tag, request_id, seconds)
            progress.show(job)
            if job["status"] == status:  # a server that cannot wait answers at once
                time.sleep(max(0.0, asked_at + seconds - time.monotonic()))
        return job


class JobProgress:
    """A bar on a terminal; elsewhere a line for each change."""

    def __init__(self, quiet: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.display = open_progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %", markup=False),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            quiet=quiet,
        )
        self._task = self.display.add_task("", total=100, detail="")
        self._prints_lines = not quiet and not sys.stderr.isatty()
        self._clock = clock
        self._started = clock()
        self._last_line = ""

    def show(self, job: Job) -> None:
        """Shows a job as it is now."""
        percent, detail = job["progress"]["percent"], _describe_progress(job)
        status = printable(job["status"])
        self.display.update(
            self._task, description=status, completed=percent, detail=detail, refresh=True
        )
        line = f"{status:<10}  {percent} %  {detail}"
        if self._prints_lines and line != self._last_line:
            print_note(line)
        self._last_line = line

    def poll_seconds(self) -> int:
        """Returns the seconds until the next look: 1 at first, up to 5 later."""
        return min(5, max(1, int(self._clock() - self._started) // 10))


def _describe_progress(job: Job) -> str:
    progress = job["progress"]
    parts = [format_count(progress["rows"], "row")]
    if job["status"] not in FINAL_STATUSES:
        parts.append(printable(progress["phase"]))
        if progress["queuePosition"]:
            parts.append(f"number {progress['queuePosition']} in the queue")
    return "  ".join(parts)


def exit_code_of(job: Job) -> ExitCode:
    """Returns `FAILED` for a job that failed or was cancelled, else `OK`."""
    return ExitCode.FAILED if job["status"] in {"FAILED", "CANCELLED"} else ExitCode.OK


def require_success(job: Job, tag: str) -> None:
    """Raises `CommandFailed`, with the next step, for a job that has made no file."""
    status, request_id = printable(job["status"]), printable(job["requestId"])
    if status == "SUCCESS":
        return
    if status in FINAL_STATUSES:
        reason = f": {printable(job['statusMessage'])}" if job["statusMessage"] else ""
        next_step = f"`exhaust retry {tag} {request_id}` runs it again."
        message = f"The request is {status}{reason}. {next_step}"
    else:
        next_step = f"`exhaust status {tag} {request_id} --watch` waits for it."
        message = f"The request is {status}. {next_step}"
    raise CommandFailed(ExitCode.FAILED, message)


def format_job(job: Job) -> str:
    """Returns a job as one line of text."""
    request_id, status, dataset, submitted, rows, size, message = job_cells(job)
    cells = [request_id, f"{status:<10}", dataset, submitted]
    cells += [f"{rows} row{'' if rows == '1' else 's'}"]
    cells += [f"{size} byte{'' if size == '1' else 's'}"] if size else []
    cells += [message] if message else []
    return "  ".join(cells)


def job_cells(job: Job) -> tuple[str, ...]:
    """Returns a job's cells, one for each of `JOB_HEADERS`; "" where there is none."""
    files = [file for file in job["files"] if not file["deleted"]]
    rows = sum(file["rows"] for file in files) if files else job["progress"]["rows"]
    return (
        printable(job["requestId"]),
        printable(job["status"]),
        printable(job["dataset"]),
        _format_time(job["jobStats"]["dtJobSubmitted"]),
        f"{rows:,}",
        f"{sum(file['bytes'] for file in files):,}" if files else "",
        " ".join(filter(None, (printable(job["statusMessage"] or ""), _describe_delivery(job)))),
    )


def _describe_delivery(job: Job) -> str:
    """Returns where the files go and whether they are there; "" for nowhere."""
    if (delivery := job.get("delivery")) is None:
        return ""
    outcome = f"{delivery['destination']}: {delivery['status']} {delivery['path']}".strip()
    return printable(f"{outcome} {delivery['error']}".strip())


def format_estimate(preview: dict[str, Any]) -> str:
    """Returns a preview's size in a line, with the server's message below it if there is one."""
    estimate = preview["estimate"]
    rows, size = (
        f"unknown {noun}s" if count is None else format_count(count, noun)
        for noun, count in (("row", estimate["rows"]), ("byte", estimate["bytes"]))
    )
    about = "" if estimate["counted"] else "about "
    line = f"{about}{rows}, about {size} as CSV"
    return f"{line}\n{printable(preview['message'])}" if preview["message"] else line


def column_cells(preview: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns header, kind, "personal" or "", and description of each column."""
    return [
        (
            printable(column["header"]),
            printable(column["kind"]),
            "personal" if column["personal"] else "",
            printable(column["description"]),
        )
        for column in preview["columns"]
    ]


def sample_cells(preview: dict[str, Any]) -> list[list[str]]:
    """Returns the cells of each sample row, "" for none."""
    return [
        ["" if cell is None else printable(cell) for cell in row.values()]
        for row in preview["rows"]
    ]


def _format_time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "-"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
