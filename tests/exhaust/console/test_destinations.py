"""Destinations in the console: the generated secret, deliveries, dead letters."""

import html
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.delivery import webhook
from exhaust.models import DeadLetter, Delivery, Destination
from ingest.models import AuditEvent
from ingest.privacy.encryption import decrypt
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.console.test_pages import destination_form
from tests.exhaust.destinations import make_destination

pytestmark = pytest.mark.django_db
ONE = f"{C}/destinations/one/ours"


@pytest.fixture
def bela() -> Client:
    return sign_in("bela", administer=True, submit_private=True)


def test_unknown_type_shows_the_types(bela: Client) -> None:
    page = read_html(bela.get(f"{C}/destinations/new?kind=pigeon"))
    assert "Where do you want your data?" in page


def test_generated_secret_is_shown_once(bela: Client) -> None:
    assert 'name="generate-signingSecret" value="1" checked' in read_html(
        bela.get(f"{C}/destinations/new?kind=webhook")
    )
    form = {**destination_form(), "generate-signingSecret": "1"}
    page = read_html(bela.post(f"{C}/destinations/new", form))
    secret = re.search(r"whsec_[\w+/=]{44}", page)
    assert secret is not None
    row = Destination.objects.get()
    assert decrypt(row.encrypted_secret).decode() == secret[0]
    assert webhook.is_secret(secret[0])
    for path in ("destinations/one/warehouse", "destinations/one/warehouse/edit"):
        assert secret[0] not in read_html(bela.get(f"{C}/{path}"))
    assert secret[0] not in str(list(AuditEvent.objects.values()))
    # an edit without the box keeps it, one with it makes another
    bela.post(f"{C}/destinations/new", destination_form(changes="warehouse"))
    row.refresh_from_db()
    assert decrypt(row.encrypted_secret).decode() == secret[0]
    bela.post(f"{C}/destinations/new", {**form, "changes": "warehouse"})
    row.refresh_from_db()
    assert decrypt(row.encrypted_secret).decode() != secret[0]


def test_error_makes_no_secret(bela: Client) -> None:
    form = {**destination_form(url=""), "generate-signingSecret": "1"}
    page = read_html(bela.post(f"{C}/destinations/new", form), 400)
    assert "whsec_ and" in page  # the hint
    assert not re.search(r"whsec_[\w+/=]{44}", page)
    assert 'name="generate-signingSecret" value="1" checked' in page


def read_snippet(bela: Client, language: str) -> str:
    make_destination(name="ours", secret=webhook.generate_secret())
    page = bela.get(ONE).content.decode()
    snippet = re.search(rf'<pre[^>]*aria-label="{language}">(.*?)</pre>', page, re.DOTALL)
    assert snippet is not None
    return html.unescape(snippet[1])


SECRET = "whsec_" + "c2VjcmV0" * 4


def sign(body: bytes, age: int = 0) -> dict[str, str]:
    sent_at = timezone.now() - timedelta(seconds=age)
    return webhook.build_signature_headers(
        "msg_1", body, ["whsec_" + "b3RoZXIh" * 4, SECRET], sent_at
    )


def test_python_snippet_verifies(bela: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    exec(read_snippet(bela, "Python"), names)  # noqa: S102 # our own text
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    names["verify"](sign(b"{}"), b"{}")
    for headers, body in ((sign(b"{}"), b"{ }"), (sign(b"{}", age=600), b"{}")):
        with pytest.raises(ValueError, match=r"wrong|old"):
            names["verify"](headers, body)


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript_snippet_verifies(bela: Client, tmp_path: Path) -> None:
    (tmp_path / "verify.mjs").write_text(read_snippet(bela, "JavaScript"))
    results = []
    for headers, body in ((sign(b"{}"), "{}"), (sign(b"{}"), "{ }"), (sign(b"{}", 600), "{}")):
        script = (
            f"import {{verify}} from './verify.mjs'; verify({headers!r}, Buffer.from({body!r}))"
        )
        done = subprocess.run(
            ["node", "--input-type=module", "-e", script], cwd=tmp_path, capture_output=True,
            env={"WEBHOOK_SECRET": SECRET, "PATH": "/usr/bin:/bin:/usr/local/bin"}, check=False,
        )  # fmt: skip
        results.append(done.returncode)
    assert results == [0, 1, 1]


def test_delivery_shows_request_and_answer(bela: Client) -> None:
    row = make_destination(
        name="ours", user="exhaust", password="hush", secret=SECRET,
        url="https://destination.example/hook?key=s3cr3t",
    )  # fmt: skip
    delivery = Delivery.objects.create(
        channel=row.channel, destination=row, status="failing", documents=7, byte_count=2048,
        attempt=2, answer=503, error="Answered 503.", to_xid=12, to_id=34, pending=[1, 2],
    )  # fmt: skip
    assert f"{ONE}/deliveries/{delivery.pk}" in read_html(bela.get(ONE))
    page = read_html(bela.get(f"{ONE}/deliveries/{delivery.pk}"))
    for text in ("PUT destination.example", "HTTP Basic as exhaust", "2.0 kB", "503",
                 "Answered 503.", "2 not delivered yet", "12.34",
                 f"msg_destination{row.pk}_{delivery.pk}"):  # fmt: skip
        assert text in page
    assert "hush" not in page
    assert "s3cr3t" not in page
    other = make_destination(name="other")
    assert (
        bela.get(f"{C}/destinations/one/{other.name}/deliveries/{delivery.pk}").status_code == 404
    )


def make_dead_letter(row: Destination, number: int) -> DeadLetter:
    return DeadLetter.objects.create(
        destination=row, row=number, xid=1, document_id=f"document-{number}", answer=400,
        reason="mapper: cannot parse Asha",
    )  # fmt: skip


def test_one_rejected_document_is_replayed(bela: Client) -> None:
    row = make_destination(name="ours")
    first, second = make_dead_letter(row, 1), make_dead_letter(row, 2)
    page = read_html(bela.get(ONE))
    assert "document-1" in page
    assert "cannot parse Asha" in page
    # its reason may repeat the document
    assert "Asha" not in read_html(sign_in(administer=True).get(ONE))
    page = read_html(bela.post(f"{ONE}/requeue", {"letter": first.pk}, follow=True))
    assert "1 document is sent again." in page
    first.refresh_from_db(), second.refresh_from_db()
    assert first.requeued_at is not None
    assert second.requeued_at is None
    elsewhere = make_dead_letter(make_destination(name="theirs", channel="ORG_002"), 3)
    bela.post(f"{ONE}/requeue", {"letter": elsewhere.pk})
    elsewhere.refresh_from_db()
    assert elsewhere.requeued_at is None


def test_stopped_destinations_come_first(bela: Client) -> None:
    for name in ("a", "b", "c"):
        make_destination(name=name)
    Destination.objects.filter(name="c").update(disabled_reason="Answered 410.")
    listed = read_html(bela.get(f"{C}/destinations"))
    assert re.findall(r'class="name"[^>]*>(\w)<', listed) == ["c", "a", "b"]
