"""Links to a bucket give on the event loop what the view gives."""

import asyncio
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.api.redirects import Redirects
from exhaust.files import links
from exhaust.files.storage import folder
from exhaust.models import File, Link
from ingest.collector.exchange import Reply
from ingest.collector.groups import ShareFull, Shares
from ingest.http.security_headers import API_HEADERS
from ingest.models import AuditEvent
from tests.exhaust.factories import make_finished
from tests.loop_requests import make_request

pytestmark = pytest.mark.django_db(transaction=True)  # the loop's thread has a connection
SIGNED = "https://bucket.example/signed"


@pytest.fixture
def link(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Link:
    monkeypatch.setattr(folder.FolderStorage, "sign_url", lambda *_: SIGNED)
    file = File.objects.select_related("job__channel").get(job=make_finished())
    made = links.get_or_create(file)
    assert made is not None
    settings.S3_BUCKET = "bucket"
    return made


def open_link(path: str, **headers: str) -> Reply:
    redirects = Redirects()

    async def respond() -> Reply:
        request = make_request(path, **headers)
        handler = redirects.find_handler(request)
        assert handler is not None
        try:
            return await handler(request)
        finally:
            redirects.close()

    reply: Reply = asyncio.run(respond())
    return reply


STATES = {
    "usable": lambda link: None,
    "expired": lambda link: Link.objects.update(expires_at=timezone.now()),
    "revoked": lambda link: Link.objects.update(revoked_at=timezone.now()),
    "used up": lambda link: Link.objects.update(use_count=link.max_uses),
    "deleted": lambda link: File.objects.update(deleted_at=timezone.now()),
    "withdrawn": lambda link: File.objects.update(withdrawn_at=timezone.now()),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("change", ["", "no name", "another name", "another token", "/api"])
@pytest.mark.parametrize("accept", ["*/*", "text/html,*/*"])
def test_loop_opens_links_as_the_view(state: str, change: str, accept: str, link: Link) -> None:
    path = urlsplit(links.build_url(link)).path
    match change:
        case "no name":
            path = path.rpartition("/")[0]
        case "another name":
            path += "x"
        case "another token":
            path = path.replace("/download/", "/download/x")
        case "/api":
            path = change + path
    STATES[state](link)

    shown = Client(headers={"Accept": accept}).get(path)
    reply = open_link(path, Accept=accept)

    assert (reply.status, reply.body) == (shown.status_code, shown.content)
    assert reply.content_type == shown.headers.get("Content-Type")
    assert reply.headers.items() <= dict(shown.headers).items()
    sent = {**API_HEADERS, **reply.headers}  # as the server adds them
    assert sent["Cache-Control"] == "no-store"
    assert sent["Content-Security-Policy"] == shown["Content-Security-Policy"]
    assert reply.headers.get("Location") == (SIGNED if reply.status == 302 else None)


def test_loop_counts_and_records_uses(link: Link) -> None:
    path = urlsplit(links.build_url(link)).path

    assert [open_link(path).status for _ in range(2)] == [302, 302]

    link.refresh_from_db()
    assert link.use_count == 2
    assert AuditEvent.objects.filter(action="file.downloaded", actor="link").count() == 2


def test_view_keeps_what_is_no_redirect(link: Link, settings: Any) -> None:
    path = urlsplit(links.build_url(link)).path
    redirects = Redirects()

    assert redirects.find_handler(make_request(path, "HEAD")) is None
    assert redirects.find_handler(make_request(path.replace(".csv", "%20.csv"))) is None
    settings.S3_BUCKET = ""
    assert redirects.find_handler(make_request(path)) is None


def test_network_with_many_links_waits(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shares, "add", lambda *_: (_ for _ in ()).throw(ShareFull))

    reply = open_link(urlsplit(links.build_url(link)).path)

    assert reply.status == 503
    assert 1 <= int(reply.headers["Retry-After"]) <= 5
