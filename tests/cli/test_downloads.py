"""`exhaust download`: whole and checked under its name, or a draft at which it goes on."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import KEY, Command
from tests.cli.stub import Asked, Said, Stub, serving
from tests.cli.test_calls import enveloped, failed, job

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HALF = len(CONTENT) // 2 + 7


def file_of(content: bytes = CONTENT, name: str = "april.csv", **overrides: Any) -> dict[str, Any]:
    return {
        "name": name, "rows": 3, "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "deleted": False, **overrides,
    }  # fmt: skip


class Bucket:
    """Gives a file behind links; the first answers may be otherwise."""

    def __init__(self, *first: Said, ranges: bool = True, content: bytes = CONTENT) -> None:
        self.first = list(first)
        self.ranges = ranges
        self.content = content

    def __call__(self, asked: Asked) -> Said:
        if self.first:
            return self.first.pop(0)
        wanted = asked.headers.get("Range")
        if wanted is None or not self.ranges:
            return Said(body=self.content)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        told = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return Said(206, self.content[start:], {"Content-Range": told})


def fetch(
    command: Command, bucket: Stub, folder: Path, *files: dict[str, Any], more: tuple[str, ...] = ()
) -> Any:
    """Runs the command against an API whose links lead to the bucket."""
    reads: list[int] = []

    def api(_: Asked) -> Said:
        reads.append(1)  # each look at the request gives other links
        links = [f"{bucket.url}/{number}?read={len(reads)}" for number, _ in enumerate(files)]
        return enveloped(job(files=list(files), downloadUrls=links))

    with serving(api) as stub:
        return command(stub.url, "download", "april", "ABC", "-o", str(folder), *more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_without_the_key(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert (done.code, done.out) == (0, f"{tmp_path}/april.csv\n")
    assert (tmp_path / "april.csv").read_bytes() == CONTENT
    assert names(tmp_path) == ["april.csv"]
    assert KEY not in json.dumps([each.headers for each in bucket.asked])
    assert "Authorization" not in bucket.asked[0].headers


def test_a_redirect_of_a_link_is_followed_without_the_key(command: Command, tmp_path: Path):
    with (
        serving(Bucket()) as bucket,
        serving(lambda asked: Said(302, b"", {"Location": bucket.url + asked.path})) as ours,
    ):
        assert fetch(command, ours, tmp_path, file_of()).code == 0
    assert "Authorization" not in bucket.asked[0].headers | ours.asked[0].headers


def test_what_is_there_is_not_fetched_again(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        fetch(command, bucket, tmp_path, file_of())
        fetch(command, bucket, tmp_path, file_of())
        assert len(bucket.asked) == 1
        (tmp_path / "april.csv").write_bytes(CONTENT[::-1])  # another file of that size
        fetch(command, bucket, tmp_path, file_of())
    assert len(bucket.asked) == 2
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_a_connection_that_breaks_goes_on_where_it_was(command: Command, tmp_path: Path):
    with serving(Bucket(Said(body=CONTENT, cut=HALF))) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert done.code == 0
    assert bucket.asked[1].headers["Range"] == f"bytes={HALF}-"
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_without_ranges_it_begins_again(command: Command, tmp_path: Path):
    with serving(Bucket(Said(body=CONTENT, cut=HALF), ranges=False)) as bucket:
        assert fetch(command, bucket, tmp_path, file_of()).code == 0
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


def test_a_run_that_ended_is_gone_on_with_by_the_next(command: Command, tmp_path: Path):
    # given a server that gave half, and then nothing
    broken = [Said(body=CONTENT, cut=HALF), *[failed(503)] * 7]
    with serving(Bucket(*broken)) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
        assert (done.code, names(tmp_path)) == (5, ["april.csv.part"])
        assert "goes on" in done.err
        del bucket.asked[:]

        # when it is asked again
        done = fetch(command, bucket, tmp_path, file_of())

    # then only the rest came
    assert (done.code, len(bucket.asked)) == (0, 1)
    assert bucket.asked[0].headers["Range"] == f"bytes={HALF}-"
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("draft", [b"other bytes", CONTENT[::-1], CONTENT + b"more", b""])
def test_a_draft_of_another_file_spoils_nothing(command: Command, tmp_path: Path, draft: bytes):
    (tmp_path / "april.csv.part").write_bytes(draft)
    with serving(Bucket()) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert (done.code, names(tmp_path)) == (0, ["april.csv"])
    assert (tmp_path / "april.csv").read_bytes() == CONTENT


@pytest.mark.parametrize("wrong", [CONTENT[::-1], CONTENT + b"more"])
def test_bytes_that_were_not_promised_get_no_name(command: Command, tmp_path: Path, wrong: bytes):
    (tmp_path / "april.csv").write_bytes(b"the file of yesterday")
    with serving(Bucket(content=wrong)) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert (done.code, "SHA-256" in done.err) == (1, True)
    assert (tmp_path / "april.csv").read_bytes() == b"the file of yesterday"
    assert names(tmp_path) == ["april.csv"]


@pytest.mark.parametrize("status", [403, 410])
def test_an_expired_link_is_asked_for_anew(command: Command, tmp_path: Path, status: int):
    # given a link that ends on the way
    with serving(Bucket(Said(body=CONTENT, cut=HALF), failed(status))) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert done.code == 0
    assert [each.path for each in bucket.asked] == ["/0?read=1", "/0?read=1", "/0?read=2"]
    assert bucket.asked[2].headers["Range"] == f"bytes={HALF}-"


def test_a_link_that_never_opens_ends(command: Command, tmp_path: Path):
    with serving(lambda _: failed(403, "no")) as bucket:
        done = fetch(command, bucket, tmp_path, file_of())
    assert (done.code, names(tmp_path)) == (3, [])


def test_retry_after_is_obeyed(command: Command, tmp_path: Path):
    with serving(Bucket(failed(429, Retry_After="11"))) as bucket:
        assert fetch(command, bucket, tmp_path, file_of()).slept == [11]


def test_all_parts_come(command: Command, tmp_path: Path):
    parts = [file_of(name="a.csv"), file_of(name="b.csv")]
    with serving(Bucket()) as bucket:
        done = fetch(command, bucket, tmp_path / "new", *parts, more=("--json",))
        assert names(tmp_path / "new") == ["a.csv", "b.csv"]
        assert [each["sha256"] for each in json.loads(done.out)] == [parts[0]["sha256"]] * 2
        (tmp_path / "one.csv").write_bytes(b"")
        assert fetch(command, bucket, tmp_path / "one.csv", *parts).code == 2


def test_one_file_under_the_name_that_is_asked(command: Command, tmp_path: Path):
    with serving(Bucket()) as bucket:
        (tmp_path / "mine.csv").write_bytes(b"old")
        done = fetch(command, bucket, tmp_path / "mine.csv", file_of())
        assert (done.code, (tmp_path / "mine.csv").read_bytes()) == (0, CONTENT)


@pytest.mark.parametrize("name", ["../up.csv", "/etc/x", ".bashrc", "a\x1b.csv", "", "a\\b"])
def test_a_name_never_leaves_the_folder(command: Command, tmp_path: Path, name: str):
    with serving(Bucket()) as bucket:
        done = fetch(command, bucket, tmp_path, file_of(name=name))
    assert (done.code, bucket.asked, names(tmp_path)) == (1, [], [])


@pytest.mark.parametrize(
    ("shown", "code", "words"),
    [
        (job(status="FAILED", statusMessage="too many rows"), 1, "too many rows"),
        (job(status="PROCESSING"), 1, "--watch"),
        (job(files=[file_of(deleted=True)]), 4, "submit anew"),
    ],
)
def test_no_file_yet_or_any_more(
    command: Command, tmp_path: Path, shown: dict[str, Any], code: int, words: str
):
    with serving(lambda _: enveloped(shown)) as stub:
        done = command(stub.url, "download", "april", "ABC", "-o", str(tmp_path))
    assert (done.code, words in done.err) == (code, True)
