"""`exhaust download`: a file checked whole under its name, or a draft to continue with."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import KEY, Command, on_terminal
from tests.cli.stub import Answer, Request, Stub, serving
from tests.cli.test_client import enveloped, failed, job

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HALF = len(CONTENT) // 2 + 7


def file_of(content: bytes = CONTENT, name: str = "april.csv", **overrides: Any) -> dict[str, Any]:
    return {
        "name": name, "rows": 3, "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "deleted": False, **overrides,
    }  # fmt: skip


class Bucket:
    """Serves a file behind links, after the answers that come first."""

    def __init__(self, *first: Answer, ranges: bool = True, content: bytes = CONTENT) -> None:
        self.first = list(first)
        self.ranges = ranges
        self.content = content

    def __call__(self, request: Request) -> Answer:
        if self.first:
            return self.first.pop(0)
        requested = request.headers.get("Range")
        if requested is None or not self.ranges:
            return Answer(body=self.content)
        start = int(requested.removeprefix("bytes=").removesuffix("-"))
        content_range = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return Answer(206, self.content[start:], {"Content-Range": content_range})


def fetch(
    command: Command, bucket: Stub, folder: Path, *files: dict[str, Any], more: tuple[str, ...] = ()
) -> Any:
    """Runs the command against an API with links to the bucket."""
    calls: list[int] = []

    def api(_: Request) -> Answer:
        calls.append(1)  # each call returns other links
        links = [f"{bucket.url}/{number}?read={len(calls)}" for number, _ in enumerate(files)]
        return enveloped(job(files=list(files), downloadUrls=links))

    with serving(api) as stub:
        return command(stub.url, "download", "april", "ABC", "-o", str(folder), *more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_link_gets_no_key(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert (completed.code, completed.out) == (0, f"{tmp_path}/april.csv\n")
    assert (tmp_path / "april.csv").read_bytes() == CONTENT
    assert names(tmp_path) == ["april.csv"]
    assert KEY not in json.dumps([each.headers for each in bucket.requests])
    assert "Authorization" not in bucket.requests[0].headers


def test_redirected_link_gets_no_key(command: Command, tmp_path: Path):
    with (
        serving(Bucket()) as bucket,
        serving(lambda each: Answer(302, b"", {"Location": bucket.url + each.path})) as server,
    ):
        assert fetch(command, server, tmp_path, file_of()).code == 0
    assert "Authorization" not in bucket.requests[0].headers | server.requests[0].headers


def test_same_file_is_not_downloaded_twice(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        fetch(command, bucket, tmp_path, file_of())
        fetch(command, bucket, tmp_path, file_of())
        assert len(bucket.requests) == 1
        (tmp_path / "april.csv").write_bytes(CONTENT[::-1])  # another file of that size
        fetch(command, bucket, tmp_path, file_of())
    assert len(bucket.requests) == 2
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_broken_connection_is_continued(command: Command, tmp_path: Path):
    with serving(Bucket(Answer(body=CONTENT, cut=HALF))) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert completed.code == 0
    assert bucket.requests[1].headers["Range"] == f"bytes={HALF}-"
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_without_ranges_it_restarts(command: Command, tmp_path: Path):
    with serving(Bucket(Answer(body=CONTENT, cut=HALF), ranges=False)) as bucket:
        assert fetch(command, bucket, tmp_path, file_of()).code == 0
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_next_run_continues(command: Command, tmp_path: Path):
    # given a server that sends half and then stalls
    broken = [Answer(body=CONTENT, cut=HALF), *[failed(503)] * 7]
    with serving(Bucket(*broken)) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
        assert (completed.code, names(tmp_path)) == (5, ["april.csv.part"])
        assert "continues" in completed.err
        del bucket.requests[:]

        # when the command runs again
        completed = fetch(command, bucket, tmp_path, file_of())

    # then only the rest was sent
    assert (completed.code, len(bucket.requests)) == (0, 1)
    assert bucket.requests[0].headers["Range"] == f"bytes={HALF}-"
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("draft", [b"other bytes", CONTENT[::-1], CONTENT + b"more", b""])
def test_draft_of_another_file(command: Command, tmp_path: Path, draft: bytes):
    (tmp_path / "april.csv.part").write_bytes(draft)
    with serving(Bucket()) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert (completed.code, names(tmp_path)) == (0, ["april.csv"])
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [CONTENT[::-1], CONTENT + b"more"])
def test_wrong_sha256_gets_no_name(command: Command, tmp_path: Path, wrong: bytes):
    (tmp_path / "april.csv").write_bytes(b"the file of yesterday")
    with serving(Bucket(content=wrong)) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert (completed.code, "SHA-256" in completed.err) == (1, True)
    assert (tmp_path / "april.csv").read_bytes() == b"the file of yesterday"
    assert names(tmp_path) == ["april.csv"]


@pytest.mark.parametrize("status", [403, 410])
def test_expired_link_is_renewed(command: Command, tmp_path: Path, status: int):
    # given a link that expires during the download
    with serving(Bucket(Answer(body=CONTENT, cut=HALF), failed(status))) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert completed.code == 0
    assert [each.path for each in bucket.requests] == ["/0?read=1", "/0?read=1", "/0?read=2"]
    assert bucket.requests[2].headers["Range"] == f"bytes={HALF}-"


def test_forbidden_link_ends(command: Command, tmp_path: Path):
    with serving(lambda _: failed(403, "no")) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert (completed.code, names(tmp_path)) == (3, [])


def test_link_retry_after_is_obeyed(command: Command, tmp_path: Path):
    with serving(Bucket(failed(429, Retry_After="11"))) as bucket:
        assert fetch(command, bucket, tmp_path, file_of()).waits == [11]


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_link_is_retried(command: Command, tmp_path: Path, status: int):
    with serving(Bucket(failed(status))) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of())
    assert (completed.code, len(completed.waits), len(bucket.requests)) == (0, 1, 2)


def test_all_parts_are_downloaded(command: Command, tmp_path: Path):
    parts = [file_of(name="a.csv"), file_of(name="b.csv")]
    with serving(Bucket()) as bucket:
        completed = fetch(command, bucket, tmp_path / "new", *parts, more=("--json",))
        assert names(tmp_path / "new") == ["a.csv", "b.csv"]
        assert [each["sha256"] for each in json.loads(completed.out)] == [parts[0]["sha256"]] * 2
        (tmp_path / "one.csv").write_bytes(b"")
        assert fetch(command, bucket, tmp_path / "one.csv", *parts).code == 2


def test_output_names_one_file(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        (tmp_path / "mine.csv").write_bytes(b"old")
        completed = fetch(command, bucket, tmp_path / "mine.csv", file_of())
        assert (completed.code, (tmp_path / "mine.csv").read_bytes()) == (0, CONTENT)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../up.csv", "_._up.csv"), ("/etc/x", "_etc_x"), (".bashrc", "_bashrc"),
        ("a\x1b.csv", "a_.csv"), ("", "_"), ("a\\b", "a_b"), ("x" * 300 + ".csv", None),
    ],
)  # fmt: skip
def test_name_stays_in_folder(command: Command, tmp_path: Path, name: str, safe: str | None):
    with serving(Bucket()) as bucket:
        completed = fetch(command, bucket, tmp_path, file_of(name=name))
    assert completed.code == 0
    (saved,) = names(tmp_path)
    assert saved == (safe or "x" * 196 + ".csv")


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        (job(status="FAILED", statusMessage="too many rows"), 1, "too many rows"),
        (job(status="PROCESSING"), 1, "--watch"),
        (job(files=[file_of(deleted=True)]), 4, "submit a new request"),
    ],
)
def test_request_without_files(
    command: Command, tmp_path: Path, result: dict[str, Any], code: int, message: str
):
    with serving(lambda _: enveloped(result)) as stub:
        completed = command(stub.url, "download", "april", "ABC", "-o", str(tmp_path))
    assert (completed.code, message in completed.err) == (code, True)


def test_download_shows_progress_bar(tmp_path: Path):
    with serving(Bucket()) as bucket:
        answer = enveloped(job(files=[file_of()], downloadUrls=[bucket.url]))
        with serving(lambda _: answer) as stub:
            arguments = ("download", "april", "ABC", "-o", str(tmp_path))
            terminal, printed = on_terminal(stub.url, *arguments, stdout=subprocess.PIPE)
    assert "1.0/1.0 MB" in terminal.decode()
    assert printed == f"{tmp_path}/april.csv\n"
