"""The conversations of a channel, and the tabs of one: newest responses and exports."""

import re
from typing import Any

import pytest
from django.test import Client

from ingest.models import Conversation, ReadCount
from tests.exhaust.console.test_console import C, read_html, sign_in
from tests.exhaust.datasets.surveys import choose, reply, store
from tests.exhaust.datasets.test_datasets import store_participant
from tests.exhaust.factories import BOT, CONFIG, PRIVATE, make_answer, make_finished, send_events

pytestmark = pytest.mark.django_db
DAYS = "startDate=2022-04-01&endDate=2022-04-01"
PAGE = f"{C}/conversations/one?id={BOT}&{DAYS}"


def read_rows(browser: Client) -> list[str]:
    html = read_html(browser.get(f"{PAGE}&tab=responses"))
    return re.findall("<tr>.*?</tr>", html.partition("<tbody>")[2], re.DOTALL)


@pytest.fixture
def answers() -> None:
    store(
        choose(1, "1", "3", device="d-asha"),
        reply(3, "my name is <b>Bela</b>", device="d-bela", question="name"),
        choose(2, "2", device="d-chand"),
    )
    store_participant(device_id="d-chand", consent=False)


@pytest.mark.usefixtures("answers")
def test_newest_responses_come_first() -> None:
    newest, refused, oldest = read_rows(sign_in(submit_private=True))
    assert f'<a href="{C}/events?device=d-bela">d-bela</a>' in newest
    assert "name?" in newest
    assert "my name is &lt;b&gt;Bela&lt;/b&gt;" in newest
    assert "d-chand" in refused
    assert "Lentils" not in refused  # the person refused
    assert "Rice; Bread" in oldest
    assert ReadCount.objects.get(action="feed.pulled").row_count == 3


@pytest.mark.usefixtures("answers")
def test_newest_responses_are_masked() -> None:
    html = "".join(read_rows(sign_in(submit_response=True)))
    assert html.count("d***") == 3
    for text in ("d-", "Bela", "Rice", "Lentils"):
        assert text not in html
    assert ReadCount.objects.get(action="feed.pulled").row_count == 3


def test_newest_responses_are_of_the_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exhaust.console.conversations.MAX_RESPONSES", 2)
    send_events(make_answer(1))  # of March
    store(*(reply(second, f"answer {second}") for second in range(3)))
    rows = read_rows(sign_in(submit_private=True))
    assert ["answer 2" in rows[0], "answer 1" in rows[1], len(rows)] == [True, True, 2]


def test_slow_reading_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: Any) -> None:
        raise TimeoutError

    send_events(make_answer(1))
    monkeypatch.setattr("exhaust.console.conversations.count_cells", time_out)
    html = read_html(sign_in(submit_private=True).get(f"{PAGE}&tab=responses"))
    assert "Reading took too long. Choose fewer days." in html
    assert not ReadCount.objects.exists()


def test_exports_of_a_conversation() -> None:
    send_events(make_answer(1))
    make_finished(tag="of-it")
    make_finished(tag="personal", dataset=PRIVATE)
    make_finished(tag="of-another", config={**CONFIG, "conversationId": "another"})
    asha = sign_in(submit_response=True)
    html = read_html(asha.get(f"{PAGE}&tab=exports"))
    assert f"{C}/exports/of-it/" in html
    assert "Download" in html
    for tag in ("personal", "of-another"):
        assert tag not in html.replace("personal data", "")
    assert sign_in("bela", administer=True).get(f"{PAGE}&tab=exports").status_code == 404
    assert asha.get(f"{PAGE}&tab=none").status_code == 404


def test_figures_of_the_period(answers: None) -> None:
    html = read_html(sign_in(submit_response=True).get(PAGE))
    for label, value in (("Responses", "3"), ("Participants", "3"), ("Sessions", "3"),
                         ("Reached the last question", "0%")):  # fmt: skip
        assert f"<dt>{label}</dt><dd>{value}</dd>" in html
    assert '<th scope="row">1 Apr 2022</th><td class="number" data-label="Responses">3</td>' in html


def test_list_has_the_last_event() -> None:
    send_events(make_answer(1))
    Conversation.objects.create(channel=Conversation.objects.get().channel, identifier="quiet")
    html = read_html(sign_in(submit_response=True).get(f"{C}/conversations"))
    assert "5 Mar 2022" in html
    assert html.count("no event yet") == 1
