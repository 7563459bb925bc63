"""The audit log of requests, schedules and destinations, and how auditors read it."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from exhaust.api import audit, envelope
from exhaust.jobs import schedules
from exhaust.models import Job, Schedule
from ingest.models import AuditEvent
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.factories import BOT, RESPONSE, make_job

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("enqueued_tasks")]
AUDIT = "/dataset/v1/audit"
REQUEST = {
    "tag": "t",
    "dataset": RESPONSE,
    "datasetConfig": {"conversationId": BOT, "startDate": "2022-04-01", "endDate": "2022-04-30"},
}
SCHEDULE = {
    "cron": "0 6 * * *", "dataset": RESPONSE, "conversationId": BOT, "window": "yesterday",
    "tag": "daily-{start}",
}  # fmt: skip
DESTINATION = {"url": "https://receiver.example/a-secret-path", "signingSecret": "", "password": ""}


def audited_actions(*actions: str) -> list[tuple[str, str, str, str]]:
    events = AuditEvent.objects.exclude(action__startswith="key.").order_by("id")
    return list(events.values_list("action", "actor", "channel", "subject"))


def call_api(client: Client, method: str, path: str, **request: Any) -> Any:
    answer = client.generic(
        method, f"/dataset/v1/{path}", json.dumps({"request": request}), "application/json"
    )
    assert answer.status_code == 200, answer.content
    return answer.json()["result"]


def test_job_actions_are_audited(asker: Client):
    request_id = call_api(asker, "POST", "request/submit", **REQUEST)["requestId"]
    call_api(asker, "POST", "request/submit", **REQUEST)  # the same request is the same job
    call_api(asker, "POST", f"request/cancel/t?requestId={request_id}")
    call_api(asker, "POST", f"request/cancel/t?requestId={request_id}")
    call_api(asker, "POST", f"request/retry/t?requestId={request_id}")

    assert audited_actions() == [
        (action, "test", "ORG_001", request_id)
        for action in ("job.submitted", "job.cancelled", "job.retried")
    ]
    entry = AuditEvent.objects.get(action="job.submitted")
    assert entry.details == {"dataset": RESPONSE, "job": Job.objects.get().pk}
    assert len(entry.key) == 8


def test_rejected_request_is_not_audited(asker: Client, settings: Any):
    settings.EXHAUST_MAX_QUEUED_PER_CHANNEL = 1
    make_job()
    body = json.dumps({"request": REQUEST})
    assert asker.post("/dataset/v1/request/submit", body, "application/json").status_code == 429
    assert audited_actions() == []


def test_schedule_actions_are_audited(asker: Client):
    call_api(asker, "PUT", "schedule/s", **SCHEDULE)
    call_api(asker, "PUT", "schedule/s", **SCHEDULE)
    call_api(asker, "PUT", "schedule/s", **{**SCHEDULE, "window": "today"})
    for act in ("pause", "pause", "resume", "resume"):
        call_api(asker, "POST", f"schedule/s/{act}")
    schedule = Schedule.objects.get()
    assert schedules.submit_due(schedule.next_at + timedelta(minutes=1)) == 1
    call_api(asker, "DELETE", "schedule/s")

    actions = audited_actions()
    assert [entry[0] for entry in actions] == [
        "schedule.created", "schedule.changed", "schedule.paused", "schedule.resumed",
        "job.submitted", "schedule.deleted",
    ]  # fmt: skip
    assert {entry[1] for entry in actions if entry[0] != "job.submitted"} == {"test"}
    submitted = AuditEvent.objects.get(action="job.submitted")
    assert (submitted.actor, submitted.details["schedule"]) == ("service", "s")
    assert AuditEvent.objects.get(action="schedule.changed").details == {"fields": ["window"]}


def test_destination_actions_are_audited():
    puller = Client(headers=bearer(make_key("pull")))
    call_api(puller, "PUT", "destination/s", **DESTINATION)
    call_api(puller, "PUT", "destination/s", **DESTINATION)
    call_api(puller, "PUT", "destination/s", **{**DESTINATION, "user": "u", "password": "a canary"})
    for act in ("pause", "pause", "resume"):
        call_api(puller, "POST", f"destination/s/{act}")
    call_api(puller, "POST", "destination/s/rewind", time=1648785600)
    call_api(puller, "DELETE", "destination/s")

    assert [entry[0] for entry in audited_actions()] == [
        "destination.created", "destination.changed", "destination.paused",
        "destination.resumed", "destination.rewound",
        "destination.deleted",
    ]  # fmt: skip
    recorded = str(list(AuditEvent.objects.values()))
    assert "receiver.example" in recorded
    assert "a-secret-path" not in recorded
    assert "a canary" not in recorded


# Reading it ---------------------------------------------------------------------------------------


@pytest.fixture
def auditor() -> Client:
    return Client(headers=bearer(make_key("audit")))


def write_events(count: int, channel: str = "ORG_001", day: int = 1, action: str = "seen") -> None:
    for number in range(count):
        AuditEvent.objects.create(
            action=action,
            recorded_at=datetime(2026, 11, day, 12, tzinfo=UTC) + timedelta(seconds=number // 2),
            actor="=asha",
            channel=channel,
            subject=f"{day}-{number}",
        )


def test_audit_pages_of_own_channel(auditor: Client):
    write_events(5)
    write_events(3, "ORG_002")

    subjects: list[str] = []
    cursor: str | None = ""
    pages = 0
    while cursor is not None:
        query = {"to": "2026-11-01", "limit": 2} | ({"cursor": cursor} if cursor else {})
        result = auditor.get(AUDIT, query).json()["result"]
        subjects += [entry["subject"] for entry in result["entries"]]
        cursor = result["nextCursor"]
        pages += 1

    assert subjects == [f"1-{number}" for number in range(5)]
    assert pages == 3


def test_large_audit_page_ends_early(auditor: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(envelope, "MAX_LIST_BYTES", 1000)
    for number in range(5):
        AuditEvent.objects.create(
            action="seen",
            recorded_at=datetime(2026, 11, 1, 12, tzinfo=UTC),
            channel="ORG_001",
            subject=f"1-{number}",
            details={"fields": "x" * 400},
        )

    query = {"to": "2026-11-01"}
    first = auditor.get(AUDIT, query).json()["result"]
    rest = auditor.get(AUDIT, {**query, "cursor": first["nextCursor"]}).json()["result"]
    lines = auditor.get(AUDIT, {**query, "format": "csv"})

    assert [entry["subject"] for entry in first["entries"]] == ["1-0", "1-1"]
    assert [entry["subject"] for entry in rest["entries"]] == ["1-2", "1-3"]
    assert len(lines.content.splitlines()) == 3
    assert 'rel="next"' in lines["Link"]


def test_audit_filters(auditor: Client):
    for day in (1, 2, 3):
        write_events(1, day=day)
    write_events(1, day=2, action="other")

    def subjects(**query: str) -> list[str]:
        answer = auditor.get(AUDIT, {**query, "to": query.get("to", "2026-11-10")})
        assert answer.status_code == 200, answer.content
        return [entry["subject"] for entry in answer.json()["result"]["entries"]]

    assert subjects(**{"from": "2026-11-02", "to": "2026-11-02"}) == ["2-0", "2-0"]
    assert subjects(action="other") == ["2-0"]
    assert subjects(**{"from": "2026-11-03"}) == ["3-0"]


def test_rare_action_is_searched_by_windows(auditor: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(audit, "WINDOW_ROWS", 3)
    write_events(6)
    write_events(1, day=2, action="rare")
    write_events(1, day=3)
    write_events(1, day=4, action="rare")

    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"action": "rare", "to": "2026-11-10"} | ({"cursor": cursor} if cursor else {})
        result = auditor.get(AUDIT, query).json()["result"]
        pages.append([entry["subject"] for entry in result["entries"]])
        cursor = result["nextCursor"]

    assert pages == [[], [], ["2-0", "4-0"]]


@pytest.mark.parametrize("by_header", [True, False])
def test_audit_csv_escapes_formulas(auditor: Client, by_header: bool):
    write_events(3)
    query = {"from": "2026-11-01", "to": "2026-11-01", "limit": "2"}
    headers = {"Accept": "text/csv"} if by_header else {}
    first = auditor.get(AUDIT, query if by_header else {**query, "format": "csv"}, headers=headers)
    assert first["Content-Type"] == "text/csv; charset=utf-8"
    following = first["Link"].removeprefix("<").partition(">")[0]
    last = auditor.get(following, headers=headers)

    rows = list(csv.DictReader(io.StringIO(first.content.decode() + last.content.decode())))
    assert [row["Subject"] for row in rows if row["ID"] != "ID"] == ["1-0", "1-1", "1-2"]
    assert rows[0]["Actor"] == "'=asha"
    assert "Link" not in last


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "9999-12-31"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "to"),
        ({"limit": "0"}, "limit"),
        ({"format": "xml"}, "format"),
        ({"action": "a\0b"}, "action"),
        ({"cursor": "x"}, "cursor"),
    ],
)
def test_invalid_audit_query_names_field(auditor: Client, query: dict[str, str], field: str):
    answer = auditor.get(AUDIT, query, headers={"Accept": "text/csv"})
    assert answer.status_code == 400
    assert field in answer.json()["params"]["errmsg"]


def test_cursor_is_bound_to_its_query(auditor: Client):
    write_events(3)
    cursor = auditor.get(AUDIT, {"limit": 1}).json()["result"]["nextCursor"]
    assert auditor.get(AUDIT, {"cursor": cursor, "action": "seen"}).status_code == 400
    other = Client(headers=bearer(make_key("audit", channels=("ORG_002",))))
    assert other.get(AUDIT, {"cursor": cursor}).status_code == 400
    assert auditor.get(AUDIT, {"cursor": cursor}).status_code == 200


@pytest.mark.parametrize("scope", ["ingest", "pull", "export:response", "export:private"])
def test_audit_requires_scope(scope: str):
    assert Client(headers=bearer(make_key(scope))).get(AUDIT).status_code == 403


def test_audit_is_closed_to_other_channels(auditor: Client):
    make_channel("ORG_002")
    assert auditor.get(AUDIT, headers={"X-Channel-ID": "ORG_002"}).status_code == 403


def test_ingest_key_cannot_audit():
    with pytest.raises(ValueError, match="ingest and audit never"):
        make_key("ingest", "audit")


def test_audit_command_exports(capsys: Any):
    write_events(2)
    write_events(1, "ORG_002", day=2)

    call_command("audit", "export", "--channel", "ORG_001")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["Subject"] for row in rows] == ["1-0", "1-1"]

    call_command("audit", "export", "--from", "2026-11-02", "--to", "2026-11-02", "--format=jsonl")
    (entry,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (entry["subject"], entry["channel"]) == ("2-0", "ORG_002")
