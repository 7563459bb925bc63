"""A user's own language and time zone, and the pages that follow them."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import translation

from ingest.auth import preferences
from ingest.models import UserSettings
from tests.conftest import bearer, make_key
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import make_finished

pytestmark = pytest.mark.django_db
SETTINGS = "/account/settings"


@pytest.fixture
def asha() -> Client:
    return sign_in(submit_response=True)


def choose(client: Client, **chosen: str) -> Any:
    return client.post(SETTINGS, chosen)


def test_times_are_in_own_zone(asha: Client) -> None:
    job = make_finished(b"a\n", completed_at=datetime(2026, 3, 3, 20, 0, tzinfo=UTC))
    page = f"{C}/exports/{job.tag}/{job.request_id}"
    assert "data-zone" not in read_html(asha.get(page))

    assert choose(asha, zone="Asia/Calcutta", language="")["Location"] == "/account/"

    text = read_html(asha.get(page))
    assert 'data-zone="Asia/Kolkata"' in text
    assert " IST</time>" in text
    assert UserSettings.objects.get().zone == "Asia/Kolkata"
    assert preferences.get_zone() == UTC


def test_forms_begin_with_own_zone() -> None:
    client = sign_in(submit_response=True, administer=True)
    pages = [f"{C}/exports/new", f"{C}/schedules/new"]
    for page in pages:
        assert "<option selected>UTC</option>" in read_html(client.get(page))

    choose(client, zone="Asia/Kolkata", language="")

    for page in pages:
        text = read_html(client.get(page))
        assert "<option selected>Asia/Kolkata</option>" in text
        assert "data-detect-zone" not in text


def test_own_language_wins_over_browser(asha: Client) -> None:
    hindi = {"Accept-Language": "hi,en;q=0.5"}
    page = asha.get(f"{C}/exports", headers=hindi)
    assert '<html lang="hi"' in read_html(page)
    assert page["Content-Language"] == "hi"

    choose(asha, zone="", language="ar")

    assert '<html lang="ar" dir="rtl"' in read_html(asha.get(f"{C}/exports", headers=hindi))
    assert '<html lang="en"' in read_html(Client().get("/console/sign-in"))
    assert translation.get_language() == "en"


@pytest.mark.parametrize("field", ["zone", "language"])
@pytest.mark.parametrize("value", ["nowhere", "../UTC", "x" * 5000, "localtime", "UTC\0"])
def test_unknown_setting_is_an_error(asha: Client, field: str, value: str) -> None:
    text = read_html(choose(asha, **{"zone": "", "language": "", field: value}), 400)
    assert f'href="#f-{field}"' in text
    assert not UserSettings.objects.exists()


def test_settings_are_one_own_row(asha: Client) -> None:
    for language in ("hi", "en", ""):
        choose(asha, zone="UTC", language=language)
    assert UserSettings.objects.get().user.username == "asha"
    assert asha.get(SETTINGS).status_code == 405
    assert Client().post(SETTINGS).status_code == 302
    User.objects.all().delete()
    assert not UserSettings.objects.exists()


def test_zone_that_is_gone_is_the_browsers(asha: Client) -> None:
    choose(asha, zone="Asia/Kolkata", language="")
    UserSettings.objects.update(zone="Asia/Atlantis")
    assert "data-zone" not in read_html(asha.get(f"{C}/exports"))


def test_api_answers_in_english() -> None:
    headers = bearer(make_key("export:response"), **{"Accept-Language": "hi"})
    answer = Client(headers=headers).post(
        "/dataset/v1/request/submit", "{}", content_type="application/json"
    )
    assert "This field is required." in answer.json()["params"]["errmsg"]
