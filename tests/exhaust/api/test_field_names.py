"""Unknown fields of a body: what is like a known one is rejected, the others are named."""

import json
from typing import Any

import pytest
from django.test import Client

from exhaust.api import field_names
from exhaust.api.field_names import find_similar
from exhaust.models import Job
from tests.exhaust.api.test_api import TAG, assert_refused, post, read_job, submit_body
from tests.exhaust.api.test_requests import SEARCH, search_jobs
from tests.exhaust.factories import PRIVATE

pytestmark = pytest.mark.django_db
KNOWN = ("encryptionKey", "output_format", "tag", "by")


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("encryptionKey", "encryptionKey"),
        ("EncryptionKEY", "encryptionKey"),
        ("encryption_key", "encryptionKey"),
        ("encryption-key", "encryptionKey"),
        ("encriptionKey", "encryptionKey"),
        ("encrytionKey", "encryptionKey"),
        ("encryptionnKey", "encryptionKey"),
        ("encrpytionKey", "encryptionKey"),
        ("outputFormt", "output_format"),
        ("tags", "tag"),
        ("BY", "by"),
        ("to", ""),  # two letters have too many neighbours
        ("encryption", ""),
        ("ncryptionKe", ""),
        ("gat", ""),
        ("", ""),
        ("colour", ""),
    ],
)
def test_similar_names(name: str, similar: str) -> None:
    assert find_similar(name, KNOWN) == similar


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ("encryption_key", "request.encryption_key", "did you mean encryptionKey?"),
        ("encriptionKey", "request.encriptionKey", "did you mean encryptionKey?"),
        ("datasetConfig.encryption_key", "request.datasetConfig.encryption_key", "Belongs into"),
        ("datasetConfig.encrpytionKey", "request.datasetConfig.encrpytionKey", "Belongs into"),
        ("datasetConfig.start_date", "request.datasetConfig.start_date", "mean startDate?"),
        ("datasetConfig.Since", "request.datasetConfig.Since", "did you mean since?"),
        ("requested_channel", "request.requested_channel", "did you mean requestedChannel?"),
    ],
)
def test_misspelt_field_is_400(asker: Client, change: str, field: str, remedy: str) -> None:
    sentence = assert_refused(post(asker, submit_body(**{change: "a long password"})))
    assert sentence.partition(": ")[0] == field
    assert remedy in sentence
    assert not Job.objects.exists()


def test_misspelt_envelope_is_400(asker: Client) -> None:
    body = submit_body()
    body["Request"] = body["request"]
    assert "did you mean request?" in assert_refused(post(asker, body))
    assert not Job.objects.exists()


def test_other_unknown_fields_are_warnings(asker: Client) -> None:
    # given unknown fields at every level
    body = submit_body(colour="red", **{"datasetConfig.batchFilter": ["x"]})
    body["trace"] = "x" * 100

    # when
    submitted = post(asker, body).json()["result"]

    previewed = post(asker, body, "/dataset/v1/request/preview").json()["result"]

    # then the answer names them, and each later one those that are kept
    assert previewed["warnings"] == submitted["warnings"]
    unread = "Unknown field; the service does not read it."
    assert submitted["warnings"] == [
        f"trace: {unread}",
        f"request.colour: {unread}",
        f"request.datasetConfig.batchFilter: {unread}",
    ]
    read = read_job(asker, TAG, submitted["requestId"]).json()["result"]
    assert read["warnings"] == [f"request.datasetConfig.batchFilter: {unread}"]


def test_followed_clients_get_no_warning(asker: Client) -> None:
    assert "warnings" not in post(asker, submit_body()).json()["result"]


def test_warnings_are_bounded(asker: Client) -> None:
    many = {f"datasetConfig.{'x' * 100}{number}": 1 for number in range(30)}
    warnings = post(asker, submit_body(**many)).json()["result"]["warnings"]
    assert len(warnings) == field_names.MAX_WARNINGS
    assert max(map(len, warnings)) < 150


def test_fields_of_an_object_are_bounded(asker: Client) -> None:
    body = submit_body(**{f"datasetConfig.unknown{n}": 1 for n in range(field_names.MAX_FIELDS)})
    sentence = assert_refused(post(asker, body))
    assert sentence == "request.datasetConfig: At most 1,000 fields; send fewer."


@pytest.mark.parametrize(
    ("payload", "remedy"),
    [
        ({"request": {"filter": {}}}, "did you mean filters?"),
        ({"request": {"sort": "tag"}}, "request.sort: Unknown field; there are"),
        ({"request": {"filters": {"Status": "FAILED"}}}, "did you mean status?"),
        ({"request": {"filters": {"colour": "red"}}}, "Unknown filter; there are dataset,"),
    ],
)
def test_search_reads_every_field(asker: Client, payload: Any, remedy: str) -> None:
    assert remedy in assert_refused(post(asker, payload, SEARCH), operation="request.search")
    assert search_jobs(asker, {}).status_code == 200


@pytest.mark.parametrize(
    "comment",
    ["// the bot's channel\n", "/* later */", "# private\n"],
    ids=["line", "block", "hash"],
)
@pytest.mark.parametrize("place", ['"tag":', '"type":', "}}"])
def test_comment_in_body_is_named(asker: Client, comment: str, place: str) -> None:
    text = json.dumps(submit_body(dataset=PRIVATE))
    sentence = assert_refused(post(asker, text.replace(place, f"{comment}{place}", 1)))
    assert sentence.startswith(f"The text has a comment ({comment.split()[0]}) at byte ")
    assert sentence.endswith("JSON has none; remove it.")
