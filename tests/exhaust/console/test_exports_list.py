"""The list of exports: chips, saved views, and actions on several at once."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from exhaust.console import export_actions, exports
from exhaust.jobs import queries
from exhaust.models import File, Job, SavedView
from tests.conftest import make_channel
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.factories import PRIVATE, RESPONSE, make_finished, make_job

pytestmark = pytest.mark.django_db
ACT, VIEWS = f"{C}/exports/act", f"{C}/exports/views"


@pytest.fixture
def asha() -> Client:
    """May request responses only."""
    return sign_in(submit_response=True)


# Chips --------------------------------------------------------------------------------------------


def read_chips(page: str) -> dict[str, str]:
    bar = page.partition('aria-label="Status">')[2].partition("</div>")[0]
    return dict(re.findall(r">([A-Z]\w+)(?: <small>([\d,]+)</small>)?</a>", bar))


def test_chips_count_visible_exports(asha: Client) -> None:
    make_job(tag="one", status="FAILED")
    make_job(tag="two", status="FAILED")
    make_finished(tag="three")
    make_job(tag="private", dataset=PRIVATE)
    make_job(tag="theirs", channel="ORG_002")

    chips = read_chips(read_html(asha.get(f"{C}/exports?status=FAILED")))

    assert chips == {
        "All": "3", "Queued": "0", "Running": "0", "Ready": "1", "Failed": "2", "Cancelled": "0",
    }  # fmt: skip
    page = read_html(asha.get(f"{C}/exports?status=FAILED&cursor="))
    assert f'<a href="{C}/exports?status=FAILED" aria-current="true">Failed' in page


def test_text_search_has_no_counts(asha: Client) -> None:
    make_job(tag="april")
    chips = read_chips(read_html(asha.get(f"{C}/exports?text=apr")))
    assert set(chips.values()) == {""}
    assert len(chips) == 6


def test_text_search_reads_a_window(asha: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "MAX_SEARCHED", 3)
    tags = ["april-1", "other-2", "april-3", "other-4", "other-5", "other-6"]
    for number, tag in enumerate(tags):
        job = make_job(tag=tag)
        # two at a time, so that a window ends between equal times
        moment = timezone.now() - timedelta(hours=9 - number // 2)
        Job.objects.filter(pk=job.pk).update(
            submitted_at=moment.replace(minute=0, second=0, microsecond=0)
        )
    pages = [read_html(asha.get(f"{C}/exports?text=april"))]
    while older := re.findall(r'<a class="button" href="([^"]+)">Older</a>', pages[-1]):
        pages.append(read_html(asha.get(older[0].replace("&amp;", "&"))))
    assert "None of the 3 exports that were searched matches." in pages[0]
    assert [re.findall(r'class="tag">([^<]+)<', page) for page in pages] == [
        [], ["april-3", "april-1"],
    ]  # fmt: skip


def test_counts_stop_at_the_newest(monkeypatch: pytest.MonkeyPatch, asha: Client) -> None:
    monkeypatch.setattr(exports, "MAX_COUNTED", 2)
    for number in range(3):
        make_job(tag=f"t-{number}")
    assert read_chips(read_html(asha.get(f"{C}/exports")))["All"] == "2"


@pytest.mark.postgresql
def test_counts_use_an_index() -> None:
    channel = make_channel()
    filters = queries.Filters(channel.pk, [RESPONSE])
    newest = queries.filter_jobs(filters).order_by("-submitted_at", "-id")
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")

    plan = newest.values_list("status", flat=True)[: exports.MAX_COUNTED].explain()

    assert "job_by_time" in plan
    assert "Sort" not in plan


# Rows ---------------------------------------------------------------------------------------------


def test_row_shows_lock_and_expiry(settings: Any) -> None:
    settings.EXHAUST_FILE_RETENTION_DAYS = 7
    bela = sign_in("bela", submit_private=True)
    make_finished(dataset=PRIVATE)
    page = read_html(bela.get(f"{C}/exports"))
    assert "Contains personal data" in page
    assert re.search(
        r'<span>expires</span> <time [^>]* title="[^"]+ UTC" data-relative>in \d', page
    )
    make_finished(tag="plain")
    plain = sign_in("cora", submit_response=True)
    assert "Contains personal data" not in read_html(plain.get(f"{C}/exports"))


def test_row_buttons_cancel_and_retry(asha: Client) -> None:
    job = make_job()
    assert f'value="cancel:{job.pk}"' in read_html(asha.get(f"{C}/exports"))
    page = read_html(asha.post(ACT, {"one": f"cancel:{job.pk}"}, follow=True))
    assert "1 export cancelled." in page
    assert f'value="retry:{job.pk}"' in page
    assert "1 export queued again." in read_html(
        asha.post(ACT, {"one": f"retry:{job.pk}"}, follow=True)
    )


# Several at once ----------------------------------------------------------------------------------


def test_act_on_several(asha: Client) -> None:
    jobs = [make_job(tag="one"), make_job(tag="two"), make_finished(tag="three")]
    form = {"job": [job.pk for job in jobs], "query": "status=SUCCESS"}

    answer = asha.post(ACT, form | {"act": "cancel"}, follow=True)

    page = read_html(answer)
    assert answer.request["QUERY_STRING"] == "status=SUCCESS"
    assert "2 exports cancelled." in page
    assert "1 export is unchanged: The export had finished already." in page
    page = read_html(asha.post(ACT, form | {"act": "retry"}, follow=True))
    assert "2 exports queued again." in page
    assert "You can retry only a failed or cancelled export." in page


def test_delete_several(asha: Client) -> None:
    jobs = [make_finished(tag="one"), make_finished(tag="two"), make_job(tag="three")]
    form = {"job": [job.pk for job in jobs], "act": "delete", "query": "tagPrefix=t"}

    page = read_html(asha.post(ACT, form))

    assert "Delete the files of these 3 exports?" in page
    assert "has no file" in page
    assert File.objects.filter(withdrawn_at=None).count() == 2
    confirmed = asha.post(ACT, form | {"confirmed": "1"}, follow=True)
    assert "The files of 2 exports are deleted." in read_html(confirmed)
    assert confirmed.request["QUERY_STRING"] == "tagPrefix=t"
    assert not File.objects.filter(withdrawn_at=None).exists()


@pytest.mark.parametrize(
    "form",
    [{}, {"act": "cancel"}, {"act": "cancel", "job": "x"}, {"act": "cancel", "job": "9" * 5000},
     {"act": "explode", "job": "1"}, {"one": "cancel:"}, {"one": "cancel:²"}],
)  # fmt: skip
def test_nothing_chosen_is_told(asha: Client, form: dict[str, str]) -> None:
    assert "Choose at least one export." in read_html(asha.post(ACT, form, follow=True))


def test_other_jobs_are_not_acted_on(asha: Client) -> None:
    theirs, private = make_job(channel="ORG_002"), make_job(dataset=PRIVATE)
    for job in (theirs, private):
        asha.post(ACT, {"act": "cancel", "job": job.pk})
    assert not Job.objects.filter(status="CANCELLED").exists()


# Saved views --------------------------------------------------------------------------------------


def test_save_and_delete_view(asha: Client) -> None:
    make_job(tag="april", status="FAILED")
    form = {"query": "status=FAILED&cursor=x&evil=1", "name": " Failures "}

    answer = asha.post(VIEWS, form, follow=True)

    assert answer.request["QUERY_STRING"] == "status=FAILED"
    assert '<a href="?status=FAILED" aria-current="true">Failures</a>' in read_html(answer)
    view = SavedView.objects.get()
    assert (view.user.username, view.channel.identifier) == ("asha", "ORG_001")
    # the same name replaces it
    asha.post(VIEWS, form | {"query": "text=a"})
    assert SavedView.objects.get().query == "text=a"
    # and it is nobody else's
    other = sign_in("usha", submit_response=True)
    assert "Failures" not in read_html(other.get(f"{C}/exports"))
    other.post(VIEWS, {"delete": "Failures"})
    assert "is deleted" in read_html(asha.post(VIEWS, {"delete": "Failures"}, follow=True))
    assert not SavedView.objects.exists()


def test_saved_views_are_limited(asha: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_actions, "MAX_SAVED_VIEWS", 1)
    asha.post(VIEWS, {"query": "text=a", "name": "one"})
    refused = read_html(asha.post(VIEWS, {"query": "text=b", "name": "two"}, follow=True))
    assert "You have 1 saved view here. Delete it first." in refused
    asha.post(VIEWS, {"query": "text=c", "name": "one"})
    assert SavedView.objects.get().query == "text=c"


@pytest.mark.parametrize(
    "form", [{"query": "text=a"}, {"name": "x"}, {"name": "x", "query": "y=1"}]
)
def test_view_needs_name_and_search(asha: Client, form: dict[str, str]) -> None:
    assert "Search first" in read_html(asha.post(VIEWS, form, follow=True))
    assert not SavedView.objects.exists()


def test_long_search_is_not_saved(asha: Client) -> None:
    form = {"query": f"text={'a' * 1000}", "name": "long"}
    assert "too long to save" in read_html(asha.post(VIEWS, form, follow=True), 400)
    assert not SavedView.objects.exists()


def test_view_ends_with_its_user(asha: Client) -> None:
    asha.post(VIEWS, {"query": "text=a", "name": "one"})
    User.objects.get(username="asha").delete()
    assert not SavedView.objects.exists()


def test_list_says_how_old(asha: Client) -> None:
    job = make_job()
    Job.objects.update(submitted_at=timezone.now() - timedelta(hours=2, minutes=1))
    page = read_html(asha.get(f"{C}/exports"))
    job.refresh_from_db()
    assert f'title="{job.submitted_at:%Y-%m-%d %H:%M:%S} UTC" data-relative>2' in page


def test_view_is_of_its_channel() -> None:
    asha = sign_in(submit_response=True)
    sign_in(channel="ORG_002", submit_response=True)
    form = {"query": "text=a", "name": "Of the other"}
    asha.post("/console/ORG_002/exports/views", form, follow=True)
    assert SavedView.objects.get().channel.identifier == "ORG_002"

    assert "Of the other" not in read_html(asha.get(f"{C}/exports"))
    asha.post(VIEWS, {"delete": "Of the other"})
    assert SavedView.objects.exists()
