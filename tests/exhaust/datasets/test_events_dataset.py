"""Events, sessions and users as files: the same as by pull, in the same order, on both ways."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from exhaust.datasets import DATASETS
from exhaust.datasets.selection import Selection
from exhaust.files import storage, writer
from exhaust.jobs import attempt, plan, schedules, transitions
from exhaust.models import File, Job, Schedule
from ingest.auth import keys
from ingest.derive import deriver
from ingest.models import AppUser, Conversation, Participant, Session, StoredEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust import corpus
from tests.exhaust.factories import BOT, make_answer, make_job, revise_answer, send_events

# a watermark passes committed rows only
pytestmark = pytest.mark.django_db(transaction=True)
EVENTS, SESSIONS, USERS = "events-exhaust", "sessions-exhaust", "users-exhaust"
NEW = (EVENTS, SESSIONS, USERS)
DAYS = {"startDate": "2022-01-01", "endDate": "2022-12-31"}
THIS_YEAR = {
    "startDate": (timezone.now() - timedelta(days=2)).date().isoformat(),
    "endDate": (timezone.now() + timedelta(days=2)).date().isoformat(),
}


def config(dataset: str, **fields: Any) -> dict[str, Any]:
    """Users change when they are derived, which is now."""
    return {"type": dataset, **(THIS_YEAR if dataset == USERS else DAYS), **fields}


def make_selection(**overrides: Any) -> Selection:
    return corpus.select_corpus(
        **{
            "conversation_id": None,
            "start": corpus.RECEIVED_AT - timedelta(days=4000),
            "end": corpus.RECEIVED_AT + timedelta(days=40000),
            **overrides,
        }
    )


def write_file(dataset: str, *, portable: bool = False, **overrides: Any) -> bytes:
    blocks = writer.iter_blocks(
        DATASETS[dataset], make_selection(**overrides), writer.Progress(), portable=portable
    )
    return b"".join(blocks)


def parse_table(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def make_table(dataset: str, **fields: Any) -> list[dict[str, str]]:
    """The rows of a job's file."""
    job = make_job(dataset=dataset, config=config(dataset, **fields))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed), Job.objects.get(pk=job.pk).status_message
    file = File.objects.get(job=job)
    with storage.get_storage().open(file.key) as stream:
        return parse_table(stream.read())


def send_clicks(client: Client, *events: dict[str, Any], app: str = "my-app") -> None:
    response = client.post(f"/collect?appId={app}", json.dumps(events), "application/json")
    assert response.status_code == 200, response.content


def make_click(number: int, **overrides: Any) -> dict[str, Any]:
    return {
        "event_type": "_page_view", "event_id": f"e-{number}", "device_id": f"web-{number}",
        "timestamp": 1648785600123 + number,
        "attributes": {"_page_url": "https://shop.example/?q=1"},
        **overrides,
    }  # fmt: skip


def store_everything() -> None:
    """The corpus of answers, pages with users of every kind of attribute, and another channel."""
    corpus.store_corpus()
    keys.create_application("my-app", make_channel())
    values: list[Any] = [*corpus.TEXTS.values(), 1.50, 1e21, True, False, None, [1], {"b": 1}, -0.0]
    send_clicks(
        Client(),
        *(
            make_click(
                number,
                user_id=f"user-{number % 50}" if number % 3 else None,
                user={
                    "email": value,
                    "phone": {"value": value, "set_timestamp": 1648785600000},
                    "bb": value,
                    "B": value,
                    "lastName": "=cmd()",
                },
            )
            for number, value in enumerate(values)
        ),
    )
    send_events(make_answer(7), channel="ORG_002")
    for device, consent in (("=device", False), ("@device", False), (None, True)):
        devices = StoredEvent.objects.filter(is_answer=True).order_by("id")
        Participant.objects.get_or_create(
            channel=make_channel(),
            device_id=device or devices[0].device_id,
            defaults={"consent": consent, "updated_at": timezone.now()},
        )
    deriver.derive_all(60)


# the same truth ---------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("dataset", NEW)
def test_portable_bytes_match_postgresql(dataset: str) -> None:
    store_everything()
    copied = write_file(dataset)
    assert write_file(dataset, portable=True).split(b"\n") == copied.split(b"\n")
    assert len(parse_table(copied)) > 20


@pytest.mark.parametrize("dataset", NEW)
def test_file_is_rfc_4180(dataset: str) -> None:
    store_everything()
    data = write_file(dataset)
    rows = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    headers = [column.header for column in DATASETS[dataset].columns]
    assert rows[0] == headers
    assert {len(row) for row in rows} == {len(headers)}
    assert DATASETS[dataset].count_rows(make_selection()) == len(rows) - 1


def test_event_is_a_row() -> None:
    send_events(make_answer(1))
    event = StoredEvent.objects.get()
    (row,) = make_table(EVENTS)
    assert json.loads(row.pop("Payload")) == make_answer(1)
    assert row == {
        "Event ID": str(event.identity),
        "Position": f"{event.xid}.{event.pk}",
        "Type": "ASSESS",
        "Dialect": "telemetry",
        "Application": "",
        "Conversation ID": BOT,
        "Device ID": "device-1",
        "Session ID": "session",
        "Timestamp": "2022-03-05T10:01:00.000Z",
        "Received": event.received_at.isoformat(timespec="microseconds")[:23] + "Z",
    }


def test_payload_bytes(portable: bool) -> None:
    send_events(make_answer(1))
    payload = next(iter(parse_table(write_file(EVENTS, portable=portable))))["Payload"]
    assert payload == (
        '{"eid": "ASSESS", "ets": 1646474460000, "mid": "ASSESS:1", "ver": "3.0",'
        ' "actor": {"id": "device-1", "type": "User"},'
        ' "edata": {"item": {"id": "q1", "type": "ftp", "title": "Why?", "params": []},'
        ' "score": 1, "duration": 12, "resvalues": [{"ans1": "because 1"}]},'
        ' "context": {"did": "device-1", "sid": "session",'
        f' "cdata": [{{"id": "{BOT}", "type": "Conversation"}}], "rollup":'
        ' {"l3": "question./data/one", "l4": "false"}, "channel": "ORG_001"}}'
    )


@pytest.fixture(params=[False, True], ids=["the database's way", "portable"])
def portable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def pull_all(resource: str) -> list[dict[str, Any]]:
    puller = Client(headers=bearer(make_key("pull", "export:private")))
    page = json.loads(puller.get(f"/export/{resource}", {"pageSize": 1000}).content)
    return list(page["items"])


def test_events_match_pull(portable: bool) -> None:
    store_everything()
    rows = parse_table(write_file(EVENTS, portable=portable))
    items = pull_all("events")
    assert [row["Position"] for row in rows] == [item["position"] for item in items]
    assert [row["Event ID"] for row in rows] == [item["id"] for item in items]
    for row, item in zip(rows, items, strict=True):
        kind = item["payload"].pop("@type")
        assert is_same_moment(row["Payload"], json.dumps(item["payload"]))
        assert row["Type"] == kind
    emptied = [row for row in rows if row["Device ID"] == "'@device"]
    assert [json.loads(row["Payload"])["edata"]["resvalues"] for row in emptied] == [[]]


def is_same_moment(one: str, other: str) -> bool:
    """Two texts of the same JSON; a long number is a float in one of them."""
    return bool(json.loads(one, parse_int=float) == json.loads(other, parse_int=float))


def format_iso(milliseconds: int) -> str:
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03}Z"


def strip_apostrophe(cell: str) -> str | None:
    return cell.removeprefix("'") or None


def test_sessions_match_pull(portable: bool) -> None:
    store_everything()
    rows = parse_table(write_file(SESSIONS, portable=portable))
    items = pull_all("sessions")
    assert len(items) == Session.objects.filter(channel=make_channel()).count() > 20
    for row, item in zip(rows, items, strict=True):
        assert (row["Session ID"], row["Position"]) == (item["sessionId"], item["position"])
        assert strip_apostrophe(row["User ID"]) == (item["userId"].removeprefix("'") or None)
        assert strip_apostrophe(row["External User ID"]) == item["externalUserId"]
        assert (row["Parent Session ID"] or None) == item["parentId"]
        assert strip_apostrophe(row["Device ID"]) == (item["deviceId"].removeprefix("'") or None)
        assert (row["Landing Page URL"] or None) == item["landingPageUrl"]
        assert json.loads(row["Event Types"]) == item["eventTypes"]
        assert {
            "pageViews": int(row["Page Views"]),
            "events": int(row["Events"]),
            "answers": int(row["Answers"]),
        } == item["statistics"]
        assert int(row["Version"]) == item["version"]
        assert [row["Start"], row["End"], row["Close Time"], row["Last Modified"]] == [
            format_iso(item["window"]["start"]),
            format_iso(item["window"]["end"]),
            format_iso(item["closeTime"]),
            format_iso(item["lastModifiedTime"]),
        ]
    assert {row["Page Views"] for row in rows} >= {"0", "1"}
    assert {row["Application"] for row in rows} == {"", "my-app"}


def test_users_match_pull(portable: bool) -> None:
    store_everything()
    rows = parse_table(write_file(USERS, portable=portable))
    items = pull_all("users")
    assert len(items) == AppUser.objects.filter(channel=make_channel()).count() > 20
    for row, item in zip(rows, items, strict=True):
        assert row["Position"] == item["position"]
        assert strip_apostrophe(row["User ID"]) == (item["userId"].removeprefix("'") or None)
        assert row["Anonymous"] == ("true" if item["anonymous"] else "false")
        assert is_same_moment(row["Attributes"], json.dumps(item["customAttributes"]))
        if isinstance(email := item.get("email"), str):
            assert row["Email"] in {email, f"'{email}"}
        if "lastName" in item:
            assert row["Last Name"] == "'=cmd()"
        assert int(row["Version"]) == item["version"]
        assert [row["First Seen"], row["Last Seen"], row["Last Modified"]] == [
            format_iso(item["firstSeenTime"]),
            format_iso(item["lastSeenTime"]),
            format_iso(item["lastModifiedTime"]),
        ]


# filters ---------------------------------------------------------------------------------------


def test_event_filters() -> None:
    keys.create_application("my-app", make_channel())
    keys.create_application("other-app", make_channel())
    send_events(make_answer(1))
    send_clicks(Client(), make_click(1), make_click(2, event_type="purchase"))
    send_clicks(Client(), make_click(3), app="other-app")

    def ids(**fields: Any) -> list[str]:
        return [f"{row['Application']}:{row['Type']}" for row in make_table(EVENTS, **fields)]

    assert len(ids()) == 4
    assert ids(types=["_page_view"]) == ["my-app:_page_view", "other-app:_page_view"]
    assert ids(types=["purchase", "ASSESS"]) == [":ASSESS", "my-app:purchase"]
    assert sorted(ids(application="my-app")) == ["my-app:_page_view", "my-app:purchase"]
    assert ids(application="other-app", types=["purchase"]) == []
    assert ids(conversationId=BOT) == [":ASSESS"]
    assert ids(conversationId="nobody's") == []
    assert [row["Application"] for row in make_table(SESSIONS, application="other-app")] == [
        "other-app"
    ]


@pytest.mark.parametrize(
    ("dataset", "field"),
    [(EVENTS, "Timestamp"), (SESSIONS, "Close Time")],
)
def test_days_use_record_time(dataset: str, field: str) -> None:
    send_events(make_answer(1), make_answer(24 * 60), make_answer(2 * 24 * 60))  # 5, 6 and 7 March
    rows = make_table(dataset, startDate="2022-03-06", endDate="2022-03-06")
    assert [row[field][:10] for row in rows] == ["2022-03-06"]


def test_users_by_last_change() -> None:
    send_events(make_answer(1))
    assert len(make_table(USERS)) == 1
    assert make_table(USERS, **DAYS) == []


@pytest.mark.parametrize("dataset", [SESSIONS, USERS])
def test_file_waits_for_derivation(dataset: str) -> None:
    # given events that no deriver has seen
    send_events(make_answer(1), make_answer(2))
    assert not Session.objects.exists()
    # when / then
    assert sorted(row["Device ID"] for row in make_table(dataset)) == ["device-1", "device-2"]


def test_rows_of_own_channel_only() -> None:
    send_events(make_answer(1))
    send_events(make_answer(2), channel="ORG_002")
    for dataset in NEW:
        assert [row["Device ID"] for row in make_table(dataset)] == ["device-1"]


def test_last_event_version_is_read() -> None:
    revise_answer(1, "first")
    revise_answer(1, "second")
    (row,) = make_table(EVENTS)
    assert json.loads(row["Payload"])["edata"]["resvalues"] == [{"ans1": "second"}]


# attempts ---------------------------------------------------------------------------------------


def run_attempt(job: Job) -> bytes:
    """The file of the next attempt, not published."""
    job.refresh_from_db()
    dataset = DATASETS[job.dataset]
    chosen = plan.select_rows(job, dataset)
    transitions.set_watermark(job, chosen.watermark, 0)
    return b"".join(writer.iter_blocks(dataset, chosen, writer.Progress()))


def test_event_attempts_make_same_bytes() -> None:
    revise_answer(1, "first")
    send_events(make_answer(1))
    job = transitions.claim(make_job(dataset=EVENTS, config=config(EVENTS)).pk)
    assert job is not None
    first = run_attempt(job)
    revise_answer(1, "second")
    send_events(make_answer(2))
    assert run_attempt(job) == first
    assert len(parse_table(first)) == 2


@pytest.mark.parametrize("dataset", [SESSIONS, USERS])
def test_changed_record_moves_past_watermark(
    dataset: str,
) -> None:
    send_events(make_answer(1), make_answer(200))
    job = transitions.claim(make_job(dataset=dataset, config=config(dataset)).pk)
    assert job is not None
    first = parse_table(run_attempt(job))
    # when one of the two changes
    later = make_answer(2)
    later["context"]["did"] = later["actor"]["id"] = "device-1"
    send_events(later)
    deriver.derive_all(10)
    # then the row of the other version is unchanged
    second = parse_table(run_attempt(job))
    assert sorted(row["Device ID"] for row in first) == ["device-1", "device-200"]
    assert second == [row for row in first if row["Device ID"] == "device-200"]
    # and the changed one is above the file's watermark
    job.refresh_from_db()
    behind = parse_table(write_file(dataset, since_xid=job.watermark))
    assert [(row["Device ID"], row["Version"]) for row in behind] == [("device-1", "2")]


# the way out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", NEW)
@pytest.mark.parametrize("scope", ["export:response", "export:private", "pull"])
def test_required_scope(dataset: str, scope: str, enqueued_tasks: list[str]) -> None:
    caller = Client(headers=bearer(make_key(scope)))
    body = {"request": {"tag": "t", "dataset": dataset, "datasetConfig": config(dataset)}}
    for path in ("submit", "preview"):
        answered = caller.post(f"/dataset/v1/request/{path}", body, "application/json")
        assert answered.status_code == (200 if scope == DATASETS[dataset].scope else 403)


@pytest.mark.parametrize("dataset", NEW)
def test_file_has_private_prefix(dataset: str) -> None:
    send_events(make_answer(1))
    make_table(dataset)
    file = File.objects.get()
    assert file.key.startswith("private/")
    assert file.name == f"{DATASETS[dataset].name_suffix}_{timezone.now():%Y%m%d}.csv"


@pytest.mark.parametrize(
    ("dataset", "filters", "sentence"),
    [
        (SESSIONS, {"conversationId": BOT}, "conversationId: A session belongs to a device"),
        (SESSIONS, {"types": ["a"]}, "types: sessions-exhaust takes none; leave it out."),
        (USERS, {"conversationId": BOT}, "conversationId: A user belongs to the channel"),
        (USERS, {"application": "a"}, "application: A user belongs to the channel"),
        (EVENTS, {"types": []}, "types: This list may not be empty."),
        (EVENTS, {"types": "a"}, "types: Expected a list"),
        (EVENTS, {"types": [""]}, "types.0: This field may not be blank."),
        (EVENTS, {"application": "theirs"}, "application: This channel has no application"),
        (EVENTS, {"startDate": None}, "startDate: This field may not be null."),
        ("uci-response-exhaust", {"conversationId": BOT, "types": ["a"]}, "types: uci-response"),
        ("uci-response-exhaust", {}, "conversationId: This field is required."),
    ],
)
def test_rejections_name_field_and_remedy(
    dataset: str, filters: dict[str, Any], sentence: str
) -> None:
    keys.create_application("theirs", make_channel("ORG_002"))
    caller = Client(headers=bearer(make_key("pull", "export:private", "export:response")))
    body = {"tag": "t", "dataset": dataset, "datasetConfig": config(dataset, **filters)}
    answered = caller.post("/dataset/v1/request/submit", {"request": body}, "application/json")
    assert answered.status_code == 400
    detail = answered.json()["params"]["errmsg"].replace("types[0]", "types.0")
    assert detail.startswith(f"request.datasetConfig.{sentence}")
    assert not Job.objects.exists()


# the admin and schedules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "named", "field", "message"),
    [
        (EVENTS, "channel", None, ""),
        (SESSIONS, "channel", None, ""),
        (EVENTS, "conversation", None, ""),
        (SESSIONS, "conversation", "conversation", "belongs to a device"),
        (USERS, "nothing", "channel", "Choose a conversation, or a channel."),
        ("uci-response-exhaust", "channel", "conversation", "required"),
    ],
)
def test_admin_form_submits_datasets(
    admin_client: Client,
    enqueued_tasks: list[str],
    dataset: str,
    named: str,
    field: str | None,
    message: str,
) -> None:
    send_events(make_answer(1))
    chosen = {"channel": make_channel().pk, "conversation": Conversation.objects.get().pk}
    form = {
        "dataset": dataset, "tag": "t", "first_day": "2022-03-01", "last_day": "2022-03-31",
        "zone": "UTC", "output_format": "csv",
        **({named: chosen[named]} if named in chosen else {}),
    }  # fmt: skip
    answered = admin_client.post("/admin/exhaust/job/add/", form)
    if field is None:
        assert answered.status_code == 302
        config = Job.objects.get().config
        assert ("conversationId" in config) is (named == "conversation")
        assert (config["type"], config["startDate"]) == (dataset, "2022-03-01")
    else:
        errors = answered.context["adminform"].form.errors
        assert message in str(errors[field])
        assert not Job.objects.exists()


def test_admin_form_takes_all_of_a_request(admin_client: Client, enqueued_tasks: list[str]) -> None:
    # given the form with every field, of an application that the channel lacks
    send_events(make_answer(1))
    form = {
        "dataset": "events-exhaust", "tag": "t", "first_day": "2022-03-01", "zone": "UTC",
        "last_day": "2022-03-31", "channel": make_channel().pk, "output_format": "csv",
        "types": "ASSESS\nSTART\n", "application": "shop", "columns": "Type\nTimestamp",
        "timestamps": "local", "priority": "2", "callback_url": "https://a.example/told",
        "not_before": "2030-01-01 00:00", "deliver_to": "nowhere", "rows": "session",
    }  # fmt: skip
    for name, message in (
        ("not_before", "At most 31 days from now"), ("rows", "events-exhaust takes none"),
        ("deliver_to", "no destination for files of that name"),
        ("application", "no application of that id"),
    ):  # fmt: skip
        page = admin_client.post("/admin/exhaust/job/add/", form)
        assert message in str(page.context["adminform"].form.errors[name])
        del form[name]

    # when / then
    assert admin_client.post("/admin/exhaust/job/add/", form).status_code == 302
    job = Job.objects.get()
    assert (job.priority, job.callback_url) == (Job.Priority.LOW, "https://a.example/told")
    assert job.config == {
        "type": "events-exhaust", "startDate": "2022-03-01", "endDate": "2022-03-31",
        "timezone": "UTC", "types": ["ASSESS", "START"], "columns": ["Type", "Timestamp"],
        "timestamps": "local",
    }  # fmt: skip


@pytest.mark.parametrize("dataset", NEW)
def test_schedule_submits_datasets(enqueued_tasks: list[str], dataset: str) -> None:
    caller = Client(headers=bearer(make_key(DATASETS[dataset].scope)))
    request = {"cron": "0 6 * * *", "dataset": dataset, "window": "yesterday", "tag": "d-{start}"}
    path = "/dataset/v1/schedule/daily"
    answered = caller.put(path, {"request": request}, "application/json")
    assert answered.status_code == 200, answered.content
    assert answered.json()["result"]["conversationId"] == ""
    Schedule.objects.update(next_at=timezone.now() - timedelta(minutes=1))
    assert schedules.submit_due() == 1
    job = transitions.claim(Job.objects.get().pk)
    assert job is not None
    assert "conversationId" not in job.config
    assert attempt.run(job)


def read_content(file: File) -> bytes:
    with storage.get_storage().open(file.key) as opened:
        return opened.read()


@pytest.mark.parametrize("dataset", NEW)
def test_file_and_pull_are_complete(dataset: str, settings: Any) -> None:
    # given a file in parts, and its manifest
    settings.EXHAUST_PART_BYTES = 1
    send_events(*(make_answer(number) for number in range(3)))
    deriver.derive_all(30)
    job = transitions.claim(make_job(dataset=dataset, config=config(dataset)).pk)
    assert job is not None
    assert attempt.run(job)
    *parts, last = File.objects.filter(job=job).order_by("part")
    manifest = json.loads(read_content(last))
    rows = [row for part in parts for row in parse_table(read_content(part))]
    assert len(rows) == manifest["rows"] == 3

    def pulled(cursor: str) -> list[str]:
        query = {**manifest["pull"], "cursor": cursor}
        resource = query.pop("resource")
        client = Client(headers=bearer(make_key("pull", "export:private")))
        answered = client.get(f"/export/{resource}", query)
        assert answered.status_code == 200, answered.content
        return [item["position"] for item in answered.json()["items"]]

    # when a pull continues after it, then it finds later events, and from the start all
    assert pulled(manifest["pull"]["cursor"]) == []
    places = [row["Position"] for row in rows]
    assert pulled(manifest["from"]["cursor"]) == places
    send_events(make_answer(200))
    deriver.derive_all(30)
    (later,) = pulled(manifest["to"]["cursor"])
    assert later not in places

    # and a supplement begins where the file ended
    since = make_job(dataset=dataset, config=config(dataset, since=job.request_id))
    more = transitions.claim(since.pk)
    assert more is not None
    assert attempt.run(more)
    files = list(File.objects.filter(job=more).order_by("part"))
    assert [row["Position"] for row in parse_table(read_content(files[0]))] == [later]
