"""The pages in Hindi and Arabic: no text stays English, and the catalogues are complete."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from gettext import GNUTranslations
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth.models import User
from django.db import DatabaseError, transaction
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import URLResolver, get_resolver, resolve
from django.utils import translation

from exhaust.console.sentences import translate_sentence
from exhaust.datasets import DATASETS
from exhaust.files import links
from exhaust.management.commands.makemessages import list_sentences
from exhaust.models import Link
from ingest.http import pages
from ingest.models import UserSettings
from ingest.privacy.encryption import encrypt
from tests.authorization.test_account import PASSWORD, add_app
from tests.authorization.test_passkeys import Phone, read_options
from tests.exhaust.console import rich_channel
from tests.exhaust.console.rich_channel import RIGHTS
from tests.exhaust.console.test_console import C
from tests.exhaust.console.test_pages import PAGE_ACCESS, page_url

ROOT = Path(__file__).parents[3]
LANGUAGES = [code for code, _ in settings.LANGUAGES if code != "en"]
CATALOGUES = [
    f"{package}/locale/{language}/LC_MESSAGES"
    for package in ("exhaust", "ingest")
    for language in LANGUAGES
]
ENGLISH = "exhaust/locale/en/LC_MESSAGES"  # in place of the libraries' own

needs_gettext = pytest.mark.skipif(
    shutil.which("msgfmt") is None, reason="needs gettext: apt-get install gettext"
)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Today's texts of the code, merged into a copy of the catalogues."""
    copy = tmp_path_factory.mktemp("texts")
    for package in ("exhaust", "ingest"):
        leave_out = shutil.ignore_patterns("static", "__pycache__", "*.mo")
        shutil.copytree(ROOT / package, copy / package, ignore=leave_out)
    languages = [word for code in LANGUAGES for word in ("-l", code)]
    options = ("--no-location", "--no-wrap", *languages)
    subprocess.run(
        [sys.executable, ROOT / "manage.py", "makemessages", *options], cwd=copy, check=True
    )
    return copy


@needs_gettext
@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_each_text_is_translated(extracted: Path, catalogue: str, tmp_path: Path) -> None:
    # given what a translator would be given now
    texts = extracted / catalogue / "django.po"

    # when / then nothing is left to do, placeholders and plurals are right, and no text is unused
    counted = subprocess.run(
        ["msgfmt", "--check", "--statistics", "-o", tmp_path / "django.mo", texts],
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.fullmatch(r"\d+ translated messages\.", counted.stderr.strip()), (
        f"{counted.stderr}\ndocs/contributing.md says how you translate"
    )
    assert "\n#~ " not in texts.read_text()


@needs_gettext
def test_english_replaces_texts_of_libraries(extracted: Path) -> None:
    texts = extracted / CATALOGUES[0] / "django.po"
    compared = subprocess.run(
        ["msgcmp", texts, ROOT / ENGLISH / "django.po"], capture_output=True, text=True, check=False
    )
    lines = compared.stderr.splitlines()
    assert [line for line in lines if "this message is not used" not in line] == []


@needs_gettext
@pytest.mark.parametrize("catalogue", [*CATALOGUES, ENGLISH])
def test_catalogue_is_compiled(catalogue: str, tmp_path: Path) -> None:
    folder = ROOT / catalogue
    subprocess.run(["msgfmt", "-o", tmp_path / "django.mo", folder / "django.po"], check=True)
    assert (tmp_path / "django.mo").read_bytes() == (folder / "django.mo").read_bytes(), (
        "run: python manage.py compilemessages -i .venv"
    )


@pytest.mark.parametrize("catalogue", [*CATALOGUES, ENGLISH])
def test_catalogue_wins_over_libraries(catalogue: str) -> None:
    language = catalogue.split("/")[2]
    with (ROOT / catalogue / "django.mo").open("rb") as file:
        own = GNUTranslations(file)
    texts = re.findall(
        r'^msgid "(.+)"$(?!\nmsgid_plural)',
        (ROOT / catalogue / "django.po").read_text(),
        re.MULTILINE,
    )
    with translation.override(language):
        others = [text for text in texts if translation.gettext(text) != own.gettext(text)]
    assert len(texts) > 50
    assert others == []


# Pages --------------------------------------------------------------------------------------------

# languages, products and formats; commands, headers and fields as a program knows them
NAMES = {
    "English", "Exhaust", "Elasticsearch", "Dynatrace", "DESK", "Skalin", "Clickstream", "Slack",
    "Mattermost", "Excel", "Windows", "Explorer", "WinZip", "Keka", "Parquet", "Python",
    "JavaScript", "Node", "curl", "gzip", "zip", "xlsx", "csv", "jsonl", "parquet", "age", "Cron",
    "cron", "Lines", "lines", "Basic", "Standard", "Webhooks", "bulk", "ssh", "keygen", "telemetry",
    "Operations", "xn",
}  # fmt: skip
HEADERS = {
    column.header for each in DATASETS.values() for column in (*each.columns, *each.legacy_columns)
}
# addresses, names with a sign or a digit, abbreviations, and what is quoted as it is written
_IDENTIFIERS = re.compile(
    r"\w+://\S+|\S*[\d_/@={}]\S*|[\w-]+(?:\.[\w-]+)+|[a-z]+[A-Z]\w*|\b[A-Z]{2,}\b|[\w-]+-exhaust"
    r"|`[^`]*`|'[^']*'|[“«][^”»]*[”»]"
)
_TEXT_ATTRIBUTES = (
    "title", "aria-label", "placeholder", "alt", "data-label", "data-confirm", "data-copied",
    "data-units", "data-name", "data-status", "data-before",
)  # fmt: skip
_UNREAD = {"script", "style", "code", "pre", "textarea"}
_EMPTY = {"br", "hr", "img", "input", "link", "meta"}
_MOST_OF_A_KIND = 9  # pages that differ by their object only


class PageReader(HTMLParser):
    """Collects the texts that people read or hear, and the links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self._skipped: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        is_zone = tag == "select" and values.get("name") in ("zone", "timezone")
        if self._skipped or tag in _UNREAD or values.get("translate") == "no" or is_zone:
            if tag not in _EMPTY:
                self._skipped.append(tag)
            return
        self.texts += [values[name] for name in _TEXT_ATTRIBUTES if values.get(name)]
        if tag == "a" and "download" not in values:
            self.links.append(values.get("href", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._skipped:
            while self._skipped.pop() != tag:  # an option has no end
                pass

    def handle_data(self, data: str) -> None:
        if not self._skipped and data.strip():
            self.texts.append(" ".join(data.split()))


def find_english(texts: list[str]) -> list[str]:
    """Returns the texts that have an English word."""
    return [
        text
        for text in texts
        if text not in HEADERS
        and not set(re.findall("[A-Za-z]{2,}", _IDENTIFIERS.sub(" ", text))) <= NAMES
    ]


class Crawl:
    """Visits pages as a user, and notes their English texts."""

    def __init__(self, client: Client, language: str) -> None:
        self.client, self.language = client, language
        self.seen: Counter[Any] = Counter()
        self.english: dict[str, str] = {}  # by text, where it stands

    def note(self, place: str, *texts: str) -> None:
        for text in find_english(list(texts)):
            self.english.setdefault(text, place)

    def read(self, place: str, answer: Any) -> list[str]:
        """Notes the texts of an answer; returns its links."""
        if not answer.get("Content-Type", "").startswith("text/html"):
            return []
        html = answer.content.decode()
        assert f'lang="{self.language}"' in html or "<html" not in html, place
        page = PageReader(html)
        self.note(place, *page.texts)
        return [urljoin(place, link) for link in page.links]

    def visit(self, *addresses: str) -> None:
        """Visits these pages, and those that they lead to."""
        waiting = list(reversed(addresses))
        while waiting:
            address = waiting.pop()
            parts = urlsplit(address)
            is_file = "/files/" in parts.path
            if is_file or not parts.path.startswith(("/console/", "/account/")):
                continue
            query = parse_qs(parts.query)
            kind = (resolve(parts.path).view_name, *sorted(query), *query.get("tab", ()))
            self.seen[parts.path, kind] += 1
            self.seen[kind] += self.seen[parts.path, kind] == 1
            if self.seen[parts.path, kind] == 1 and self.seen[kind] <= _MOST_OF_A_KIND:
                with undone():
                    waiting += self.read(address, self.client.get(address))

    def post(self, address: str, form: dict[str, Any]) -> None:
        with undone():
            self.read(f"{address} {form}", self.client.post(address, form, follow=True))


@contextmanager
def undone() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def list_pages() -> list[str]:
    """Returns the addresses of the console and of accounts; those of objects by the other tests."""
    resolver: Any = get_resolver()
    addresses = [page_url(name) for name in PAGE_ACCESS]
    for prefix in ("account/", "console/"):
        included = next(each for each in resolver.url_patterns if str(each.pattern) == prefix)
        addresses += _join(f"/{prefix}", included)
    return addresses


def _join(start: str, resolver: Any) -> Iterator[str]:
    for each in resolver.url_patterns:
        route = str(each.pattern)
        if isinstance(each, URLResolver):
            yield from _join(start + route, each)
        elif "<" not in start + route:
            yield start + route


@pytest.fixture(params=LANGUAGES)
def crawl(request: Any, settings: Any, tmp_path: Path) -> Crawl:
    settings.EXHAUST_SENDS_MAIL = True
    settings.EXHAUST_ARCHIVE_URL = str(tmp_path)
    client = rich_channel.fill_channel("u_1")
    user = User.objects.get(username="u_1")
    user.set_password(PASSWORD)
    user.save()
    client.defaults["HTTP_USER_AGENT"] = "B_1"
    client.force_login(user)
    for each in User.objects.all():
        UserSettings.objects.create(user=each, language=request.param)
    return Crawl(client, request.param)


@pytest.mark.django_db
@pytest.mark.sqlite  # no database writes a text
def test_no_page_has_english(crawl: Crawl, mailoutbox: list[Any]) -> None:
    crawl.visit("/console/", *list_pages(), f"{C}/archive?objects=1")
    for right in RIGHTS:
        user = User.objects.get(username=f"only_{right}")
        crawl.client.force_login(user)
        for name in ("start", "exports", "keys", "audit"):
            with undone():
                crawl.read(right, crawl.client.get(page_url(name)))
    crawl.client.force_login(User.objects.get(username="u_1"))
    if crawl.language == LANGUAGES[0]:  # what is marked for one language is for all
        for path, form in rich_channel.iterate_forms():
            crawl.post(f"{C}/{path}", form)
    read_account(crawl)
    read_errors(crawl)
    for mail in mailoutbox:
        crawl.note("e-mail", mail.subject, *mail.body.split("\n"))

    assert mailoutbox
    report = "".join(f"\n{text!r}  {place}" for text, place in sorted(crawl.english.items()))
    assert not report, f"English in a page of {crawl.language}; docs/contributing.md:{report}"


def read_account(crawl: Crawl) -> None:
    """Signs in, fails to, and changes a password and second factors."""
    new = {"password1": "one that is new", "password2": "one that is new"}
    for path, form in (
        ("settings", {"zone": "Mars", "language": "x"}),
        ("settings", {"zone": "UTC", "language": crawl.language}),
        ("password/change", {}),
        ("password/change", {**new, "oldpassword": "wrong"}),
        ("password/change", {"oldpassword": PASSWORD, "password1": "1234", "password2": "1234"}),
        ("password/change", {"oldpassword": PASSWORD, "password1": "u_1u_1", "password2": "x"}),
        ("password/reset", {"email": "x"}),
        ("password/reset", {"email": "u_1@x.example"}),
        ("password/1-wrong", {}),
        ("reauthenticate", {"password": "wrong"}),
        ("2fa/totp/activate/", {"code": "000000"}),
        ("sessions", {"which": "others"}),
        ("notices/ORG_001", {"kind": "export_ready"}),
        ("password/change", {**new, "oldpassword": PASSWORD}),
    ):
        crawl.post(f"/account/{path}", form)
    crawl.client.force_login(User.objects.get(username="u_1"))
    client, phone = crawl.client, Phone()
    add_app(client)
    options = read_options(client.get("/account/2fa/webauthn/add/"), "creation_options")
    key = {"name": "№ 9", "passwordless": "on", "credential": phone.make(options)}
    crawl.read("passkey", client.post("/account/2fa/webauthn/add/", key, follow=True))
    for path in ("", "2fa/", "2fa/webauthn/", "2fa/recovery-codes/", "2fa/recovery-codes/generate/",
                 "2fa/totp/deactivate/", "2fa/reauthenticate/", "reauthenticate"):  # fmt: skip
        crawl.read(f"/account/{path}", client.get(f"/account/{path}", follow=True))
    factor = Authenticator.objects.get(type="webauthn").pk
    for action in ("edit", "remove"):
        page = f"/account/2fa/webauthn/keys/{factor}/{action}/"
        crawl.read(page, client.get(page))
    crawl.read("codes", client.post("/account/2fa/recovery-codes/generate/", follow=True))
    crawl.read("app", client.post("/account/2fa/totp/deactivate/", follow=True))
    stranger = Client(headers={"Accept-Language": crawl.language, "Accept": "text/html"})
    form = {"login": "u_1", "password": PASSWORD}
    crawl.read("second factor", stranger.post("/console/sign-in", form, follow=True))
    crawl.read("wrong code", stranger.post("/account/2fa/authenticate/", {"code": "000000"}))


def read_errors(crawl: Crawl) -> None:
    """Sees what a stranger sees: dead links, wrong passwords, and failures."""
    headers = {"Accept-Language": crawl.language, "Accept": "text/html"}
    stranger = Client(headers=headers)
    for path in ("/nothing", "/console/sign-in", "/account/cancelled", "/account/inactive",
                 "/account/password/1-wrong", "/dataset/v1/download/x"):  # fmt: skip
        crawl.read(path, stranger.get(path, follow=True))
    for link in Link.objects.all():
        if link.is_usable:
            continue
        link.encrypted_token = link.encrypted_token or encrypt(b"x")
        crawl.read("dead link", stranger.get(urlsplit(links.build_url(link)).path))
    unknown_host = Client(headers={**headers, "Host": "x.example"})
    crawl.read("host", unknown_host.get("/console/"))
    old_form = Client(enforce_csrf_checks=True, headers=headers)
    crawl.read("form", old_form.post("/console/sign-in"))
    for _ in range(10):
        answer = stranger.post("/console/sign-in", {"login": "u_1", "password": "wrong"})
        crawl.read("wrong password", answer)
    request = RequestFactory(headers=headers).get("/")
    for error in (DatabaseError(), RuntimeError()):
        try:
            raise error
        except Exception:
            crawl.read("failure", pages.server_error(request))
    with translation.override(crawl.language):
        for template in ("account/signup_closed", "socialaccount/authentication_error"):
            html = render_to_string(f"{template}.html", request=request)
            crawl.note(template, *PageReader(html).texts)


# Sentences ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("sentence", "kept"),
    [
        ("The connection was refused.", ""),
        ("There are more than 1,000 rows; ask for fewer days.", "1,000"),
        ("No answer within 10 seconds. Given up after 9 failures in a row.", "10 9"),
        ("conversationId: This field is required. Save the schedule with a valid value.",
         "conversationId"),
        ("This channel has 1,000 requests waiting; send this one again when some are done.",
         "1,000"),
        ("Too weak to encrypt a file. 12 to 128 letters, digits and signs of ASCII, not only"
         " digits, and no common password.", "12 128 ASCII"),
        ("Storage denies access; an operator mends it as the page Operations says, then you send"
         " the request again.", "Operations"),
    ],
)  # fmt: skip
def test_filled_sentence_is_translated(language: str, sentence: str, kept: str) -> None:
    with translation.override(language):
        translated = translate_sentence(sentence)

    assert set(kept.split()) == set(re.findall("[A-Za-z]{2,}|[0-9,]*[0-9]", translated))


def test_other_text_stays() -> None:
    for language in ("en", *LANGUAGES):
        with translation.override(language):
            for text in ("", "own words of a receiver", "asha", "A receiver's own sentence."):
                assert translate_sentence(text) == text


def test_makemessages_takes_sentences() -> None:
    source = '''
"""A docstring is no text."""
log.info("It is no text either.")
title = _("Marked already.")
raise Failure(f"{name}: There are {len(rows):,} rows, {100 * share:.0f}% of {limit}.")
raise Failure("Write a name." if name else f"config.days: {advice} Write others.")
'''
    assert list_sentences(source) == [
        "There are %(rows)s rows, %(value)s%% of %(limit)s.",
        "Write a name.",
        "%(advice)s Write others.",
    ]
