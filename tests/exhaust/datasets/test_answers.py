"""The questions of a conversation in order, and answers as text."""

from typing import Any

import pytest

from exhaust.datasets import answers
from exhaust.datasets.base import DatasetLimitExceeded
from tests.exhaust.datasets.surveys import (
    SUMMARY,
    choose,
    list_headers,
    pin,
    read_answers,
    reply,
    store,
)


def rest(second: int, questions: str, **more: Any) -> list[dict[str, Any]]:
    """Answers of one session to questions of one letter, a second between them."""
    return [
        reply(second + index, letter, question=letter, **more)
        for index, letter in enumerate(questions)
    ]


# Texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('[{"2": {"text": "Lentils"}}]', "Lentils"),
        ('[{"2": {"text": "Lentils"}}, {"3": {"text": "Bread"}}]', "Lentils; Bread"),
        ('[{"ans1": "because, well"}]', "because, well"),
        ('[{"10": {"text": "b"}, "9": {"text": "a"}}]', "a; b"),
        ('[{"1": {"text": 1.50}}, {"2": {"text": ""}}, {"3": null}]', "1.50"),
        ('[{"1": {"value": [1, "x"]}}]', '{"value": [1, "x"]}'),
        ('{"1": {"text": "no list"}}', "no list"),
        ('"free"', "free"),
        ("[]", ""),
        ("3", "3"),
        (f'[{{"ans1": "{"x" * 5000}"}}]', "x" * 5000),
    ],
)  # fmt: skip
def test_answer_is_plain_text(answer: str, text: str):
    assert answers.read_text(answer) == text


# Order ------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_questions_keep_order_of_sessions():
    # given a session that began the day before, and one that skips b
    store(
        *rest(0, "cd", device="late"),
        *rest(10, "acd", device="skips"),
        *rest(20, "abcd", device="whole"),
        *rest(30, "abcd", device="another"),
    )

    assert list_headers() == ["a?", "b?", "c?", "d?"]


@pytest.mark.django_db
def test_repeated_answers_move_no_question():
    store(*rest(0, "abababc", device="returns"), *rest(10, "abc", device="whole"))

    assert list_headers() == ["a?", "b?", "c?"]


@pytest.mark.django_db
def test_equal_places_go_by_first_answer():
    store(*rest(0, "b", device="one"), *rest(5, "a", device="two"))

    assert list_headers() == ["b?", "a?"]


@pytest.mark.django_db
def test_question_beyond_sample_follows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "SAMPLE_ANSWERS", 2)
    store(*rest(0, "bc"), *rest(10, "zyabc", device="two"))

    assert list_headers() == ["b?", "c?", "z?", "y?", "a?"]
    assert read_answers() == [
        ("asha", "b", "c", None, None, None), ("two", "b", "c", "z", "y", "a"),
    ]  # fmt: skip


# Which answers share a question -----------------------------------------------------------------


@pytest.mark.django_db
def test_languages_share_a_column():
    store(
        choose(0, "1", question="en", path="/data/meal", title="Which meal?"),
        choose(1, "2", question="en", path="/data/meal", title="Which meal?", device="bela"),
        choose(2, "3", question="hi", path="/data/meal", title="कौन सा भोजन?", device="chand"),
    )

    assert list_headers() == ["Which meal?"]
    assert read_answers() == [("asha", "Rice"), ("bela", "Lentils"), ("chand", "Bread")]


@pytest.mark.django_db
def test_ids_at_one_path_of_a_session_differ():
    store(*rest(0, "ab", path="/data"), *rest(10, "b", path="/data", device="two"))

    assert list_headers() == ["a?", "b?"]
    assert read_answers() == [("asha", "a", "b"), ("two", None, "b")]


@pytest.mark.django_db
def test_questions_without_path_go_by_id():
    store(*rest(0, "a", path=""), *rest(10, "b", path="", device="two"))

    assert list_headers() == ["a?", "b?"]


@pytest.mark.django_db
def test_long_paths_are_cut(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "MAX_NAME", 8)
    monkeypatch.setattr(answers, "SAMPLE_ANSWERS", 1)
    store(*rest(0, "a", path="/data/long/one"), *rest(10, "b", path="/data/long/two", device="b"))

    assert read_answers() == [("asha", "a"), ("b", "b")]


# Headers ----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("titles", "headers"),
    [
        (("Why?", "why?"), ["Why? (/data/a)", "why? (/data/b)"]),
        (("Why?", "Device ID"), ["Why?", "Device ID (/data/b)"]),
        (("Which class?\nReply  with a number", "x" * 201),
         ["Which class? Reply with a number", "x" * 199 + "…"]),
        (("=1+1", "-- choose"), ["'=1+1", "'-- choose"]),
        (("a;=1", "+919000000001"), ["a;'=1", "+919000000001"]),
        (("Why? (/data/b)", "Why?"), ["Why? (/data/b)", "Why?"]),
    ],
)  # fmt: skip
def test_headers_differ_and_are_inert(titles: tuple[str, str], headers: list[str]):
    store(
        reply(0, "x", question="a", title=titles[0]), reply(1, "y", question="b", title=titles[1])
    )

    assert list_headers() == headers


@pytest.mark.django_db
def test_untitled_question_has_its_path_or_id():
    store(
        reply(0, "x", question="a", item={"title": ""}),
        reply(1, "y", question="b", path="", item={"title": None}),
    )

    assert list_headers() == ["/data/a", "b"]
    assert [column.description for column in pin().columns[-2:]] == [
        "Question a at /data/a.", "Question b.",
    ]  # fmt: skip


# Bounded ----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["MAX_QUESTIONS", "MAX_VERSIONS"])
@pytest.mark.parametrize("sample", [1, 10_000])
def test_too_many_questions_fail(name: str, sample: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "SAMPLE_ANSWERS", sample)
    monkeypatch.setattr(answers, name, 2)
    store(*rest(0, "ab"))
    assert list_headers() == ["a?", "b?"]
    store(*rest(10, "c"))

    for dataset in ("uci-survey-exhaust", SUMMARY):
        with pytest.raises(DatasetLimitExceeded, match=r"more than .* questions; ask for fewer"):
            pin(dataset)
