import csv
import io
import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from exhaust.datasets import DATASETS
from exhaust.datasets.base import Dataset
from exhaust.datasets.selection import day_range
from exhaust.files import writer
from ingest.events import Profile
from ingest.feed.watermark import fetch_watermark
from ingest.models import Channel, Conversation, StoredEvent
from ingest.store import batches
from ingest.store.participants import store_participants
from tests.conftest import make_channel
from tests.exhaust.corpus import select_corpus
from tests.ingest.telemetry_samples import (
    CONVERSATION,
    DEVICE,
    RECEIVED_AT,
    STARTED_MS,
    answer,
    batch,
)

RESPONSE = DATASETS["uci-response-exhaust"]
PRIVATE = DATASETS["uci-private-exhaust"]
HEADERS = [
    "Message ID",
    "Conversation ID",
    "Conversation Name",
    "Device ID",
    "Session ID",
    "Question Id",
    "Question Type",
    "Question Title",
    "Question Description",
    "Question Duration",
    "Question Score",
    "Question Max Score",
    "Question Options",
    "Question Response",
    "X Path",
    "Eof",
    "Timestamp",
]


@pytest.fixture(params=[False, True], ids=["the database's way", "portable"])
def portable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def read_rows(
    dataset: Dataset = RESPONSE, *, portable: bool = False, **overrides: Any
) -> list[dict[str, str]]:
    data = b"".join(
        writer.iter_blocks(
            dataset, select_corpus(**overrides), writer.Progress(), portable=portable
        )
    )
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def read_mids(**overrides: Any) -> list[str]:
    return [row["Message ID"] for row in read_rows(**overrides)]


def store_events(*events: Any, channel: str = "ORG_001") -> batches.StoreResult:
    outcome = batches.append_batch(make_channel(channel).id, batch(*events))
    assert outcome.rejections == []
    return outcome


def store_participant(channel: str = "ORG_001", **fields: Any) -> None:
    profile = {"device_id": DEVICE, "user_name": None, "phone": None, "consent": None}
    store_participants(
        make_channel(channel).id,
        RECEIVED_AT,
        [Profile(**{**profile, "consent_at": RECEIVED_AT, **fields})],
    )


def answer_at(mid: str, moment: str, **overrides: Any) -> dict[str, Any]:
    ets = int(datetime.fromisoformat(moment).timestamp() * 1000)
    return answer(mid=mid, ets=ets, **overrides)


# The datasets ----------------------------------------------------------------------------------


def test_datasets_and_scopes():
    assert {name: (dataset.is_private, dataset.scope) for name, dataset in DATASETS.items()} == {
        "uci-response-exhaust": (False, "export:response"),
        "uci-survey-exhaust": (False, "export:response"),
        "uci-summary-exhaust": (False, "export:response"),
        "uci-private-exhaust": (True, "export:private"),
        "events-exhaust": (True, "pull"),
        "sessions-exhaust": (True, "pull"),
        "users-exhaust": (True, "export:private"),
    }


def test_response_columns():
    assert [column.header for column in RESPONSE.columns] == HEADERS


def test_private_columns():
    assert [column.header for column in PRIVATE.columns] == [
        "Conversation ID",
        "Conversation Name",
        "Device ID",
        "User Name",
        "Phone Number",
        "First Seen",
        "Last Seen",
    ]


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_columns_have_descriptions(dataset: Dataset):
    assert all(column.description.endswith(".") for column in dataset.columns)
    assert len({column.header for column in dataset.columns}) == len(dataset.columns)


# response ---------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_answer_is_a_row(portable: bool):
    store_events(answer(3, edata={"duration": 21.0, "score": 0.0}))
    Conversation.objects.update(name="Global Tara Bot")

    assert read_rows(portable=portable) == [
        dict(
            zip(
                HEADERS,
                [
                    "ASSESS:00000000000000000000000000000003",
                    CONVERSATION,
                    "Global Tara Bot",
                    DEVICE,
                    "7b0f3a34-0c3b-4d0e-8f0a-9a1d6f5c2b11",
                    "65292cdc-0000-4000-8000-000000000002",
                    "mcq",
                    "Which class are you in?",
                    "",
                    "21",
                    "0.0",
                    "1.0",
                    '[{"1": {"text": "1 Class 1"}}, {"2": {"text": "2 Class 2"}}]',
                    '[{"2": {"text": "2 Class 2"}}]',
                    "question./data/a[1]",
                    "false",
                    "2022-04-01T04:00:03.000Z",
                ],
                strict=True,
            )
        )
    ]


@pytest.mark.django_db
def test_rows_of_own_conversation_only(portable: bool):
    elsewhere = {"cdata": [{"type": "Conversation", "id": "another"}]}
    store_events(
        answer(1, mid="in"),
        answer(2, mid="another conversation", context=elsewhere),
        answer(3, mid="no answer", eid="INTERACT"),
        answer(4, mid="no conversation", context={"cdata": []}),
    )
    store_events(answer(5, mid="another channel"), channel="ORG_002")

    assert read_mids(portable=portable) == ["in"]


@pytest.mark.django_db
def test_foreign_conversation_gives_no_rows():
    store_events(answer(1), channel="ORG_002")
    theirs = Conversation.objects.get()

    assert read_mids() == []
    assert read_mids(conversation_id=theirs.id) == []


@pytest.mark.django_db
def test_unknown_devices_are_kept(portable: bool):
    store_events(
        answer(1, context={"did": "nobody knows"}), answer(2, context={"did": ""}, actor=None)
    )

    assert [row["Device ID"] for row in read_rows(portable=portable)] == ["nobody knows", ""]


@pytest.mark.django_db
def test_rows_are_ordered_by_time(portable: bool):
    store_events(answer(5, mid="c"), answer(1, mid="a"))
    store_events(answer(3, mid="b2", ets=STARTED_MS + 3000))
    store_events(answer(3, mid="b1", ets=STARTED_MS + 3000))
    store_events(answer(3, mid="b0", ets=STARTED_MS + 2999))

    assert read_mids(portable=portable) == ["a", "b0", "b2", "b1", "c"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("consent", "answers"),
    [
        (False, ""),
        (True, '[{"2": {"text": "2 Class 2"}}]'),
        (None, '[{"2": {"text": "2 Class 2"}}]'),
    ],
    ids=["refused", "given", "unknown"],
)
def test_refused_consent_blanks_response(consent: bool | None, answers: str, portable: bool):
    store_events(answer(1))
    before = read_rows(portable=portable)[0]

    store_participant(consent=consent, user_name="Asha", phone="+919000000001")

    assert read_rows(portable=portable) == [{**before, "Question Response": answers}]


@pytest.mark.django_db
def test_refusal_is_per_channel_and_device(portable: bool):
    store_events(answer(1))
    store_participant(channel="ORG_002", consent=False)
    store_participant(device_id="another", consent=False)

    assert read_rows(portable=portable)[0]["Question Response"] != ""


@pytest.mark.django_db
def test_refusal_is_read_at_export(portable: bool):
    store_events(answer(1))
    store_participant(consent=False)
    assert read_rows(portable=portable)[0]["Question Response"] == ""

    store_participant(consent=True, consent_at=RECEIVED_AT + timedelta(seconds=1))
    assert read_rows(portable=portable)[0]["Question Response"] != ""


# dates ------------------------------------------------------------------------------------------


def test_days_include_both_ends():
    assert day_range(date(2022, 4, 1), date(2022, 4, 2), "UTC") == (
        datetime(2022, 4, 1, tzinfo=UTC),
        datetime(2022, 4, 3, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("day", "zone", "start", "hours"),
    [
        ("2022-04-01", "Asia/Kolkata", "2022-03-31T18:30:00+00:00", 24),
        ("2022-03-13", "America/New_York", "2022-03-13T05:00:00+00:00", 23),
        ("2022-11-06", "America/New_York", "2022-11-06T04:00:00+00:00", 25),
        ("2022-04-01", "Asia/Kathmandu", "2022-03-31T18:15:00+00:00", 24),
        # midnight itself is skipped here
        ("2022-09-11", "America/Santiago", "2022-09-11T04:00:00+00:00", 23),
    ],
)
def test_day_length_follows_zone(day: str, zone: str, start: str, hours: int):
    first_day = date.fromisoformat(day)

    first, end = (moment.astimezone(UTC) for moment in day_range(first_day, first_day, zone))

    assert first == datetime.fromisoformat(start)
    assert end - first == timedelta(hours=hours)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("zone", "first", "last", "edges"),
    [
        (
            "UTC",
            "2022-04-01",
            "2022-04-01",
            ["2022-04-01T00:00:00.000+00:00", "2022-04-01T23:59:59.999+00:00"],
        ),
        (
            "Asia/Kolkata",
            "2022-03-31",
            "2022-04-01",
            ["2022-03-31T00:00:00.000+05:30", "2022-04-01T23:59:59.999+05:30"],
        ),
        (
            "America/New_York",  # the night of 13 March has 23 hours
            "2022-03-13",
            "2022-03-13",
            ["2022-03-13T00:00:00.000-05:00", "2022-03-13T23:59:59.999-04:00"],
        ),
    ],
)
def test_day_edges(zone: str, first: str, last: str, edges: list[str], portable: bool):
    before, after = (datetime.fromisoformat(edge) for edge in edges)
    millisecond = timedelta(milliseconds=1)
    store_events(
        answer_at("too early", (before - millisecond).isoformat()),
        answer_at("first", edges[0]),
        answer_at("last", edges[1]),
        answer_at("too late", (after + millisecond).isoformat()),
    )
    start, end = day_range(date.fromisoformat(first), date.fromisoformat(last), zone)

    assert read_mids(start=start, end=end, portable=portable) == ["first", "last"]
    assert len(read_rows(PRIVATE, start=start, end=end)) == 1


# watermark and superseded versions --------------------------------------------------------------


def set_xid(xid: int) -> int:
    """The watermark once it has passed xid; writers elsewhere in the cluster may hold it back."""
    until = time.monotonic() + 20
    while (mark := fetch_watermark()) <= xid:
        assert time.monotonic() < until, f"{mark} never passed {xid}"
        time.sleep(0.02)
    return mark


@pytest.mark.django_db(transaction=True)
def test_rows_above_watermark_are_left_out(portable: bool):
    store_events(answer(1, mid="before"))
    mark = set_xid(StoredEvent.objects.get().xid)

    store_events(answer(0, mid="after"), answer(2, mid="after too"))

    assert read_mids(watermark=mark, portable=portable) == ["before"]
    assert read_mids(portable=portable) == ["after", "before", "after too"]
    first = read_rows(PRIVATE, watermark=mark)[0]
    assert first["First Seen"] == first["Last Seen"] == "2022-04-01T04:00:01.000Z"


def store_versions(channel: Channel) -> None:
    """One event in two versions: written at 5, superseded at 9; and one of 7 beside them."""
    store_events(answer(0, mid="seed"))
    bot = Conversation.objects.get(channel=channel)
    for number, mid, xid, superseded in (
        (1, "old", 5, 9),
        (1, "new", 9, None),
        (2, "other", 7, None),
    ):
        read = batch(answer(number)).events[0]
        StoredEvent.objects.create(
            channel=channel,
            conversation=bot,
            xid=xid,
            superseded_xid=superseded,
            occurred_at=read.occurred_at,
            received_at=RECEIVED_AT,
            is_answer=True,
            identity=read.identity.hex(),
            source="telemetry",
            type="ASSESS",
            device_id=mid,
            session_id="",
            payload={"mid": mid},
        )
    StoredEvent.objects.filter(payload__mid="seed").delete()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        (5, []),
        (6, ["old"]),
        (7, ["old"]),
        (8, ["old", "other"]),
        (9, ["old", "other"]),
        (10, ["new", "other"]),
        (2**62, ["new", "other"]),
    ],
)
def test_version_at_watermark_is_read(mark: int, expected: list[str], portable: bool):
    store_versions(make_channel())

    assert read_mids(watermark=mark, portable=portable) == expected
    assert [row["Device ID"] for row in read_rows(PRIVATE, watermark=mark)] == expected


# private ----------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_participant_is_one_row():
    store_events(*(answer(n) for n in (5, 1, 9)))
    store_events(answer(20, eid="INTERACT"))
    Conversation.objects.update(name="=Tara")
    store_participant(user_name="Asha", phone="+919000000001", consent=True)

    assert read_rows(PRIVATE) == [
        {
            "Conversation ID": CONVERSATION,
            "Conversation Name": "'=Tara",
            "Device ID": DEVICE,
            "User Name": "Asha",
            "Phone Number": "+919000000001",
            "First Seen": "2022-04-01T04:00:01.000Z",
            "Last Seen": "2022-04-01T04:00:20.000Z",
        }
    ]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("consent", "phone"),
    [(True, "+919000000001"), (False, ""), (None, "")],
    ids=["given", "refused", "unknown"],
)
def test_phone_requires_consent(consent: bool | None, phone: str):
    store_events(answer(1))
    store_participant(user_name="Asha", phone="+919000000001", consent=consent)

    assert [(row["User Name"], row["Phone Number"]) for row in read_rows(PRIVATE)] == [
        ("Asha", phone)
    ]


@pytest.mark.django_db
def test_phone_stays_encrypted_by_default(monkeypatch: pytest.MonkeyPatch):
    store_events(answer(1))
    store_participant(phone="+919000000001", consent=False)
    opened: list[Any] = []
    monkeypatch.setattr("exhaust.datasets.participants.decrypt", opened.append)

    assert len(read_rows(PRIVATE)) == 1
    assert opened == []


@pytest.mark.django_db
def test_foreign_participant_is_not_joined():
    store_events(answer(1))
    store_participant(channel="ORG_002", user_name="Asha", phone="+919000000001", consent=True)

    assert [(row["User Name"], row["Phone Number"]) for row in read_rows(PRIVATE)] == [("", "")]


@pytest.mark.django_db
def test_participants_of_range_only():
    store_events(
        answer_at("in", "2022-04-01T10:00:00+00:00", context={"did": "in"}),
        answer_at("out", "2022-04-02T00:00:00+00:00", context={"did": "out"}),
        answer_at("nobody", "2022-04-01T11:00:00+00:00", context={"did": ""}, actor={"id": ""}),
    )
    store_participant(device_id="registered only", user_name="Asha")
    start, end = day_range(date(2022, 4, 1), date(2022, 4, 1), "UTC")

    assert [row["Device ID"] for row in read_rows(PRIVATE, start=start, end=end)] == ["in"]


@pytest.mark.django_db
def test_participants_order():
    same = {"ets": STARTED_MS + 1000}
    store_events(
        *(
            answer(n, context={"did": did}, **same)
            for n, did in enumerate(["b", "é", "B", "a", "_"])
        ),
        answer(9, context={"did": "z"}, ets=STARTED_MS),
    )

    assert [row["Device ID"] for row in read_rows(PRIVATE)] == ["z", "B", "_", "a", "b", "é"]


@pytest.mark.django_db
def test_names_and_devices_are_escaped():
    store_events(answer(1, context={"did": "=device"}))
    store_participant(device_id="=device", user_name="@name", phone="+919000000001", consent=True)

    row = read_rows(PRIVATE)[0]
    assert (row["Device ID"], row["User Name"]) == ("'=device", "'@name")
    assert row["Phone Number"] == "+919000000001"


# counting ---------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("dataset", [RESPONSE, PRIVATE], ids=lambda dataset: dataset.name)
@pytest.mark.parametrize(("mark", "count"), [(2**62, 2), (6, 1), (5, 0)])
def test_count_matches_rows(dataset: Dataset, mark: int, count: int):
    store_versions(make_channel())
    store_events(answer(3, eid="INTERACT", context={"did": ""}, actor=None, mid="nobody"))

    counted = dataset.count_rows(select_corpus(watermark=mark))

    assert counted == len(read_rows(dataset, watermark=mark)) == count
