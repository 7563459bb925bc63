"""What every test may ask for; plain functions with overrides."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from django.db import connection
from django.test import Client

from exhaust import storage
from ingest import access
from ingest.models import Channel

pytest_plugins = ("tests.service",)

# CI says the same of the same commit; elsewhere each run looks somewhere new
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test whose server is not there says so and is skipped."""
    from django.conf import settings

    servers = {
        "postgresql": "postgresql" in settings.DATABASES["default"]["ENGINE"],
        "redis": settings.CELERY_BROKER_URL.startswith("redis"),
        "s3": find_spec("swift") is not None,
    }
    remedies = {
        "postgresql": "needs DATABASE_URL=postgresql://…",
        "redis": "needs CELERY_BROKER_URL=redis://…",
        "s3": "needs the s3local extra: pip install '.[s3local]'",
    }
    for item in items:
        for name, there in servers.items():
            if item.get_closest_marker(name) and not there:
                item.add_marker(pytest.mark.skip(reason=remedies[name]))


@pytest.fixture(autouse=True)
def files(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A folder of the test's own in place of the installation's storage."""
    settings.FILES_DIR = tmp_path / "files"
    settings.S3_BUCKET = ""
    storage.default.cache_clear()
    yield settings.FILES_DIR
    storage.default.cache_clear()


@pytest.fixture
def on_postgresql() -> bool:
    return connection.vendor == "postgresql"


def make_channel(identifier: str = "ORG_001") -> Channel:
    return Channel.objects.get_or_create(identifier=identifier)[0]


def make_key(*scopes: str, channels: tuple[str, ...] = ("ORG_001",), **overrides: Any) -> str:
    """The text of a new key."""
    made = [make_channel(identifier) for identifier in channels]
    return access.create_key("test", scopes or ("ingest",), made, **overrides)[1]


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


@pytest.fixture
def sender(db: None) -> Client:
    """A client whose key may send into ORG_001."""
    return Client(headers=bearer(make_key("ingest")))


@pytest.fixture
def asker(db: None) -> Client:
    """A client whose key may ask for both exhausts of ORG_001."""
    return Client(headers=bearer(make_key("export:response", "export:private")))
