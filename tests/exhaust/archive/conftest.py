"""An archive in a folder, and in a bucket that keeps versions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from moto import mock_aws

from tests.exhaust.factories import stored_paths

BUCKET = "exhaust-archive"


@dataclass
class Archive:
    """The archive of a test, and access to all that its storage holds."""

    url: str
    list_contents: Callable[[], dict[str, bytes]]  # every object, draft and version, by a name

    def list_keys(self) -> set[str]:
        return {name.partition("?")[0] for name in self.list_contents()}


@pytest.fixture
def archive(tmp_path: Path, settings: Any) -> Archive:
    root = tmp_path / "archive"
    settings.EXHAUST_ARCHIVE_URL = str(root)
    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0

    def list_contents() -> dict[str, bytes]:
        return {path: (root / path).read_bytes() for path in stored_paths(root)}

    return Archive(str(root), list_contents)


@pytest.fixture
def versioned(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """A bucket by moto that keeps each version of each object."""
    settings.EXHAUST_ARCHIVE_AFTER_DAYS = 0
    settings.EXHAUST_ARCHIVE_URL = f"s3://{BUCKET}/{uuid4().hex}/past"
    prefix = settings.EXHAUST_ARCHIVE_URL.partition(f"{BUCKET}/")[2] + "/"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "made-up")
    with mock_aws():
        client: Any = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        versioning = {"Status": "Enabled"}
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=versioning)

        def list_contents() -> dict[str, bytes]:
            listed = client.list_object_versions(Bucket=BUCKET)
            return {
                f"{each['Key'].removeprefix(prefix)}?{each['VersionId']}": client.get_object(
                    Bucket=BUCKET, Key=each["Key"], VersionId=each["VersionId"]
                )["Body"].read()
                for each in listed.get("Versions", ())
            } | {f"{each['Key']}?deleted": b"" for each in listed.get("DeleteMarkers", ())}

        yield Archive(settings.EXHAUST_ARCHIVE_URL, list_contents)


@pytest.fixture(params=["folder", "bucket"])
def each_archive(request: pytest.FixtureRequest) -> Archive:
    name = "archive" if request.param == "folder" else "versioned"
    found: Archive = request.getfixturevalue(name)
    return found


@pytest.fixture
def armed(tmp_path: Path, settings: Any) -> Path:
    """A folder that arms failpoints of this process."""
    folder = tmp_path / "armed"
    folder.mkdir()
    settings.FAILPOINTS = str(folder)
    return folder
