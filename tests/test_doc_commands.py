"""Every command on the pages runs in page order, or names the reason and the covering test."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

import psycopg
import pytest

from tests import doc_commands
from tests.doc_commands import OPERATIONS, PAGES, QUERY, ROOT, SHELL, SHOWN, Place

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = doc_commands.settle(tmp_path_factory.mktemp("clone"), {})
    yield place
    place.leave()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    for block in doc_commands.blocks(page):
        if block.language in SHOWN:
            continue
        assert block.language in {SHELL, QUERY}, f"{block.name}: what language is this?"
        if block.reason:
            assert (ROOT / block.cover).is_file(), f"{block.name}: {block.cover} is not there"
        else:
            assert block.language == SHELL, f"{block.name}: say which test runs it"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@needs("bash", "curl", "openssl")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if doc_commands.typed(page) and page != OPERATIONS],
    ids=lambda page: page.stem,
)
def test_its_commands_run(page: Path, place: Place) -> None:
    place.run(page)


@pytest.mark.postgresql
@pytest.mark.redis
@pytest.mark.s3
@needs("bash", "curl", "openssl", "pg_dump", "redis-cli", "redis-server", "haproxy")
def test_what_an_operator_does_can_be_done(tmp_path: Path) -> None:
    # given PostgreSQL, Redis and an S3 server, and our services as the compose file starts them
    database = urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/exhaust_{token_hex(6)}")
    port = doc_commands.free_port()  # its own Redis: the page empties it
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    place = doc_commands.settle(
        tmp_path,
        {"docker": f'exec {shlex.quote(sys.executable)} -m tests.compose "$@"'},
        COMPOSE_STATE=str(tmp_path / "compose"),
        COMPOSE_WITHOUT="nightly deliver maintain beat",  # no step here needs them
        COMPOSE_DATABASE=database.geturl(),
        COMPOSE_BROKER=f"redis://127.0.0.1:{port}/0",
        COMPOSE_STORAGE_PORT=str(doc_commands.free_port()),
        COMPOSE_LINKS_PORT=str(doc_commands.free_port()),
        COMPOSE_COLLECTOR_PORT=str(doc_commands.free_port()),
        COMPOSE_WEB_PORT=str(doc_commands.free_port()),
    )
    place.environment["COMPOSE_PORT"] = str(place.ports[8000])

    # when an operator follows the page from its top
    try:
        place.run(OPERATIONS)
    finally:
        for service in ("proxy", "collector", "web", "worker", "nightly", "beat", "s3"):
            place.type(f"docker compose kill {service}")
        redis.terminate()
        redis.wait()
        with psycopg.connect(
            database._replace(path="/postgres").geturl(), autocommit=True
        ) as server:
            server.execute(f'DROP DATABASE IF EXISTS "{database.path[1:]}" WITH (FORCE)')  # type: ignore[call-overload]

    # then no command fails
