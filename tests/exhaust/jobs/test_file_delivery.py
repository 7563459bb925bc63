"""Exports go to the destination of their channel: whole, again after failures, and on record."""

import io
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.utils import timezone

from exhaust import tasks
from exhaust.delivery import callbacks, destinations, receiver_tests, sftp, states
from exhaust.files import links, storage
from exhaust.jobs import attempt, file_delivery, submit, transitions
from exhaust.models import Delivery, Destination, File, Job
from ingest import audit
from ingest.events import RequestError
from ingest.models import AuditEvent
from tests.conftest import make_channel
from tests.exhaust import sftp_server
from tests.exhaust.factories import (
    PRIVATE,
    make_answer,
    make_finished,
    make_submission,
    send_events,
)
from tests.exhaust.receiver import Receiver, Silent, respond_with
from tests.exhaust.sftp_server import PASSWORD, USER, SFTPServer
from tests.service import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def local_servers(settings: Any) -> None:
    local = [ip_network("127.0.0.0/8")]
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {f"ORG_00{number}": local for number in range(5)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SFTPServer]:
    with SFTPServer(tmp_path / "theirs") as running:
        yield running


def make_file_destination(server: SFTPServer | None = None, **overrides: Any) -> Destination:
    values: dict[str, Any] = {
        "channel": make_channel(overrides.pop("channel", "ORG_001")), "name": "theirs",
        "kind": "sftp", "resource": "files", "user": USER, "path": "{tag}/{name}",
        "url": server.url if server else "sftp://files.example.org",
        "host_key": server.fingerprint if server else "", **overrides,
    }  # fmt: skip
    destination = destinations.save(Destination(**values), PASSWORD)
    Delivery.objects.filter(kind="test").delete()
    return destination


def make_delivered_job(**overrides: Any) -> Job:
    return make_finished(deliver_to="theirs", **overrides)


def fetch_delivery() -> Delivery:
    return Delivery.objects.get(kind="files")


def make_due() -> None:
    Delivery.objects.update(next_at=timezone.now() - timedelta(seconds=1))


def deliver() -> Delivery:
    make_due()
    tasks.deliver_files()
    return fetch_delivery()


# The way of an export -----------------------------------------------------------------------------


def test_export_in_parts_arrives(server: SFTPServer, settings: Any) -> None:
    settings.EXHAUST_PART_BYTES = 2_000
    send_events(*[make_answer(number, "x" * 200) for number in range(20)])
    make_file_destination(server)
    job = submit.submit(make_submission(deliver_to="theirs"))
    claimed = transitions.claim(job.pk)
    assert claimed is not None
    assert attempt.run(claimed)

    delivery = deliver()

    files = list(File.objects.order_by("part"))
    assert len(files) > 2
    assert server.files == {f"daily/{file.name}": read_file(file) for file in files}
    assert server.renamed == [f"daily/{file.name}" for file in files]  # the manifest last
    assert files[-1].name.endswith("_manifest.json")
    assert (delivery.status, delivery.documents, delivery.attempt) == ("delivered", len(files), 1)
    assert delivery.byte_count == sum(file.byte_count for file in files)
    assert delivery.url == f"daily/{files[-1].name}"
    destination = Destination.objects.get()
    assert destination.delivered_at is not None
    (event,) = AuditEvent.objects.filter(action="file.delivered")
    assert (event.outcome, event.subject) == ("done", job.request_id)
    assert event.details == {
        "job": job.pk, "dataset": job.dataset, "requested_by": "user_id", "destination": "theirs",
        "host": f"127.0.0.1:{server.port}", "bucket": "", "path": delivery.url,
        "files": len(files),
    }  # fmt: skip


def read_file(file: File) -> bytes:
    with storage.get_storage().open(file.key) as stream:
        return stream.read()


def test_run_jobs_delivers(server: SFTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    make_file_destination(server)
    make_delivered_job()
    make_due()

    def pause(_seconds: float) -> None:
        until(lambda: fetch_delivery().status == "delivered", "the delivery")
        raise KeyboardInterrupt

    monkeypatch.setattr("exhaust.management.commands.run_jobs.sleep", pause)
    with pytest.raises(KeyboardInterrupt):
        call_command("run_jobs", "--loop", stdout=io.StringIO())
    assert fetch_delivery().status == "delivered"


def test_job_waits_for_no_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a server and a receiver of callbacks that are silent
    monkeypatch.setattr(sftp, "CONNECT_SECONDS", 5.0)
    monkeypatch.setattr(callbacks, "TIMEOUT_SECONDS", 5.0)
    send_events(make_answer(1))
    with Receiver([Silent()] * 9) as silent:
        make_file_destination(url=f"sftp://127.0.0.1:{silent.port}", host_key="SHA256:" + "A" * 43)
        make_delivered_job(callback_url=f"http://127.0.0.1:{silent.port}/told")
        Delivery.objects.update(next_at=timezone.now() - timedelta(seconds=1))
        submitted: list[Job] = []
        waiting: list[Delivery] = []

        def pause(_seconds: float) -> None:
            if submitted:
                waiting.extend(Delivery.objects.filter(lease_until__isnull=False))
                raise KeyboardInterrupt
            until(lambda: silent.connections == 2, "both deliveries")
            submitted.append(submit.submit(make_submission(tag="next")))

        # when a job comes while both wait
        monkeypatch.setattr("exhaust.management.commands.run_jobs.sleep", pause)
        with pytest.raises(KeyboardInterrupt):
            call_command("run_jobs", "--loop", stdout=io.StringIO())

    # then it is made before they end
    assert Job.objects.get(tag="next").status == "SUCCESS"
    assert {delivery.kind for delivery in waiting} == {"callback", "files"}


def test_destination_is_part_of_the_request(server: SFTPServer) -> None:
    make_file_destination(server)
    plain, delivered = (submit.submit(make_submission(deliver_to=name)) for name in ("", "theirs"))
    assert plain.pk != delivered.pk
    assert submit.submit(make_submission(deliver_to="theirs")).pk == delivered.pk
    event = AuditEvent.objects.filter(action="job.submitted").latest("pk")
    assert event.details["destination"] == "theirs"


def test_unusable_destination_is_refused(server: SFTPServer) -> None:
    make_file_destination(server)
    webhook = Destination(channel=make_channel(), name="hook", url="https://a.example.org/")
    destinations.save(webhook)
    make_file_destination(server, name="elsewhere", channel="ORG_002")
    for name, dataset, reason in (
        ("nobody", "uci-response-exhaust", "no destination for files"),
        ("hook", "uci-response-exhaust", "no destination for files"),
        ("elsewhere", "uci-response-exhaust", "no destination for files"),
        ("theirs", PRIVATE, "allowsPrivate"),
    ):
        assert reason in destinations.explain_unusable(make_channel().pk, name, dataset)
    Destination.objects.update(allows_private=True)
    assert destinations.explain_unusable(make_channel().pk, "theirs", PRIVATE) == ""


def test_private_file_needs_permission_at_the_end(server: SFTPServer) -> None:
    make_file_destination(server)
    make_delivered_job(dataset=PRIVATE)
    delivery = fetch_delivery()
    assert (delivery.status, delivery.destination_id) == ("dead", None)
    assert "allowsPrivate" in delivery.error
    assert not file_delivery.is_waiting()


def test_withdrawn_permission_ends_delivery(server: SFTPServer) -> None:
    make_file_destination(server, allows_private=True)
    make_delivered_job(dataset=PRIVATE)
    make_file_destination(server)
    delivery = deliver()
    assert (delivery.status, server.files) == ("dead", {})
    assert "allowsPrivate" in delivery.error


def test_open_deliveries_are_few(server: SFTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "MAX_OPEN_FILE_DELIVERIES", 1)
    make_file_destination(server)
    make_delivered_job()
    with pytest.raises(RequestError, match="1 exports that their destinations") as error:
        submit.submit(make_submission(deliver_to="theirs"))
    assert error.value.status == 429
    assert submit.submit(make_submission()).deliver_to == ""


# Failures -----------------------------------------------------------------------------------------


def test_failure_is_tried_again(server: SFTPServer) -> None:
    make_file_destination(server)
    make_delivered_job()
    server.fault = sftp_server.run_full
    delivery = deliver()
    assert (delivery.status, delivery.attempt, delivery.documents) == ("failing", 1, 0)
    assert "full" in delivery.error
    assert timedelta(seconds=20) < delivery.next_at - timezone.now() < timedelta(seconds=40)
    destination = Destination.objects.get()
    assert (destination.failures, states.determine_state(destination)) == (1, "failing")
    assert states.measure_lags([destination])[0].documents == 1
    (event,) = AuditEvent.objects.filter(action="file.delivered")
    assert (event.outcome, event.details["files"]) == ("rejected", 0)

    server.fault = lambda files: None
    assert deliver().status == "delivered"
    assert len(server.files) == 1
    assert Destination.objects.get().failures == 0


def test_retry_skips_delivered_files(server: SFTPServer) -> None:
    make_file_destination(server)
    job = make_delivered_job()
    storage.get_storage().put("response/two.csv", io.BytesIO(b"two"), "text/csv")
    File.objects.create(
        job=job, part=2, key="response/two.csv", name="two.csv", row_count=1, byte_count=3,
        sha256="", content_type="text/csv",
    )  # fmt: skip
    fault_once = iter([None, sftp_server.run_full])
    server.fault = lambda files: (next(fault_once, None) or (lambda _: None))(files)
    assert deliver().documents == 1
    assert deliver().status == "delivered"
    assert len(server.renamed) == 2


def test_last_failure_ends_it_until_requeued(server: SFTPServer) -> None:
    destination = make_file_destination(server)
    make_delivered_job()
    server.fault = sftp_server.run_full
    Delivery.objects.update(attempt=file_delivery.BACKOFF.max_attempts - 1)
    assert deliver().status == "dead"
    assert states.count_dead_letters([destination]) == {destination.pk: 1}
    server.fault = lambda files: None
    assert destinations.requeue(destination) == 1
    assert deliver().status == "delivered"
    assert states.count_dead_letters([destination]) == {destination.pk: 0}


def test_saving_tries_again_at_once(server: SFTPServer) -> None:
    make_file_destination(server, user="wrong")
    make_delivered_job()
    assert "does not let this user in" in deliver().error
    make_file_destination(server)
    tasks.deliver_files()
    assert fetch_delivery().status == "delivered"


def test_lost_worker_is_replaced(server: SFTPServer) -> None:
    make_file_destination(server)
    make_delivered_job()
    make_due()
    Delivery.objects.update(attempt=1, lease_until=timezone.now() + timedelta(seconds=60))
    tasks.deliver_files()  # another process is at work
    assert fetch_delivery().status == "failing"
    Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert file_delivery.is_waiting()
    assert deliver().status == "delivered"


def test_lost_lease_changes_nothing(server: SFTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_delivery, "RENEW_SECONDS", 0.0)
    monkeypatch.setattr(sftp, "ANSWER_SECONDS", 2.0)
    make_file_destination(server)
    make_delivered_job(content=b"x" * 3_000_000)
    server.fault = sftp_server.trickle
    claims = Delivery.objects.filter(kind="files")
    take = run_closing(lambda: claims.update(fencing_token=F("fencing_token") + 1))
    thread = threading.Timer(0.5, take)
    thread.start()
    make_due()
    started_at = time.monotonic()
    file_delivery.deliver_due()
    thread.join()
    assert time.monotonic() - started_at < 30
    assert fetch_delivery().status == "failing"


def run_closing(act: Any) -> Any:
    """Returns the act for a thread, which leaves no connection behind."""

    def run() -> None:
        act()
        connection.close()

    return run


def test_storage_outage_uses_no_attempt(
    server: SFTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file_destination(server)
    make_delivered_job()

    def fail(key: str) -> Any:
        raise storage.StorageOutage("no answer")

    monkeypatch.setattr(storage.get_storage(), "open", fail)
    delivery = deliver()
    assert (delivery.status, delivery.attempt) == ("failing", 0)
    assert delivery.error == "Storage is unreachable"
    assert Destination.objects.get().failures == 0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"withdrawn_at": timezone.now()}, links.WITHDRAWN),
        ({"deleted_at": timezone.now()}, "deleted"),
        ({"key": "response/none.csv"}, "deleted"),
    ],
)
def test_file_that_is_gone_stays(server: SFTPServer, changes: Any, error: str) -> None:
    make_file_destination(server)
    make_delivered_job()
    File.objects.update(**changes)
    delivery = deliver()
    assert delivery.status == "dead"
    assert error in delivery.error
    assert server.files == {}


def test_unrecorded_outcome_stops_no_other(
    server: SFTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_file_destination(server)
    for tag in ("one", "two"):
        make_delivered_job(tag=tag)
    record, faults = audit.record, iter([ValueError("no room")])

    def fail_once(action: str, **details: Any) -> None:
        if action == "file.delivered" and (fault := next(faults, None)):
            raise fault
        record(action, **details)

    monkeypatch.setattr(audit, "record", fail_once)
    make_due()
    tasks.deliver_files()
    statuses = Delivery.objects.order_by("status").values_list("status", flat=True)
    assert list(statuses) == ["delivered", "failing"]
    assert len(server.files) == 2


def test_paused_destination_waits(server: SFTPServer) -> None:
    destination = make_file_destination(server)
    make_delivered_job()
    destinations.pause(destination)
    assert deliver().status == "failing"
    assert not file_delivery.is_waiting()
    destinations.resume(destination)
    assert deliver().status == "delivered"


def test_deleted_destination_takes_its_deliveries(server: SFTPServer) -> None:
    destination = make_file_destination(server)
    make_delivered_job()
    destinations.delete(destination)
    assert not Delivery.objects.exists()
    make_finished(deliver_to="theirs", tag="later")
    assert "no destination for files" in fetch_delivery().error


def test_private_network_ends_it(server: SFTPServer, settings: Any) -> None:
    make_file_destination(server)
    make_delivered_job()
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {}
    delivery = deliver()
    assert delivery.status == "dead"
    assert "not public" in delivery.error


def test_long_path_ends_it(server: SFTPServer) -> None:
    make_file_destination(server, path="/".join(["{tag}"] * 4) + "/{name}")
    make_delivered_job(tag="t" * 128)
    assert "shorter template" in deliver().error


def test_silent_server_costs_its_channel_only(
    server: SFTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "CONNECT_SECONDS", 3.0)
    with Receiver([Silent()]) as silent:
        make_file_destination(
            channel="ORG_002", url=f"sftp://127.0.0.1:{silent.port}", host_key="SHA256:" + "A" * 43
        )
        for number in range(5):
            make_delivered_job(channel="ORG_002", tag=f"silent-{number}")
        make_file_destination(server)
        make_delivered_job()
        make_due()
        waiting = Delivery.objects.filter(channel__identifier="ORG_001", kind="files")
        thread = threading.Thread(target=run_closing(tasks.deliver_files))
        thread.start()
        until = time.monotonic() + 2.5
        while not (is_done := waiting.filter(status="delivered").exists()):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert is_done
        assert silent.connections <= file_delivery.CHANNEL_CONCURRENCY
        Delivery.objects.filter(attempt=0).delete()
        thread.join(20)
    errors = Delivery.objects.exclude(error="").values_list("error", flat=True)
    assert set(errors) == {"No answer within 3 seconds."}


# Tests of destinations ----------------------------------------------------------------------------


def run_test(destination: Destination) -> Delivery:
    delivery = receiver_tests.request_test(destination)
    tasks.deliver_files()
    delivery.refresh_from_db()
    return delivery


def test_saving_tests_and_pins_the_key(server: SFTPServer) -> None:
    destination = Destination(
        channel=make_channel(), name="theirs", kind="sftp", resource="files", user=USER,
        url=server.url, path="{date}/{tag}-{part}.{ext}",
    )  # fmt: skip
    assert destinations.validate(destination, PASSWORD) == {}
    saved = destinations.save(destination, PASSWORD)
    test = Delivery.objects.get()
    assert (test.kind, test.status) == ("test", "waiting")
    tasks.send_tests()  # of other destinations
    tasks.deliver_files()
    test.refresh_from_db()
    assert (test.status, test.error) == ("delivered", "")
    assert server.renamed == ["exhaust-test/exhaust-test-exhaust-test.txt"]
    assert list(server.folder.iterdir()) == []
    saved.refresh_from_db()
    assert saved.host_key == server.fingerprint
    (event,) = AuditEvent.objects.filter(action="destination.host_key_pinned")
    assert event.details == {"host_key": server.fingerprint}

    # the key stays with a change of the path, and goes with the host
    destination.host_key = ""
    assert destinations.save(destination).host_key == server.fingerprint
    destination.url = "sftp://other.example.org"
    moved = destinations.save(destination)
    assert (moved.host_key, moved.encrypted_password) == ("", None)


def test_failed_test_says_why(server: SFTPServer) -> None:
    destination = make_file_destination(server, user="nobody", host_key="")
    test = run_test(destination)
    assert (test.status, test.error) == ("dead", "The server does not let this user in.")
    destination.refresh_from_db()
    assert destination.host_key == ""
    assert destination.failures == 0


def test_bucket_test_names_the_status() -> None:
    with Receiver([respond_with(403, b"<Error><Code>AccessDenied</Code></Error>")]) as server:
        destination = make_file_destination(
            kind="s3", url=f"http://127.0.0.1:{server.port}", bucket="theirs", region="us-east-1"
        )
        test = run_test(destination)
    assert (test.status, test.answer) == ("dead", 403)
    assert test.error == "The bucket answered 403 AccessDenied."


def test_lost_worker_ends_the_test(server: SFTPServer) -> None:
    destination = make_file_destination(server)
    test = receiver_tests.request_test(destination)
    Delivery.objects.update(attempt=1, lease_until=timezone.now() - timedelta(minutes=1))
    tasks.deliver_files()
    test.refresh_from_db()
    assert test.status == "dead"
    assert "worker ended" in test.error


def test_unreadable_password_ends_it(server: SFTPServer, settings: Any) -> None:
    destination = make_file_destination(server)
    settings.EXHAUST_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert "decrypted" in run_test(destination).error


def test_files_have_no_cursor(server: SFTPServer) -> None:
    destination = make_file_destination(server)
    assert destinations.encode_cursor(destination) == ""
    for act in (
        lambda: destinations.rewind(destination, destinations.START),
        lambda: destinations.find_position_at(destination, timezone.now()),
        lambda: destinations.decode_cursor(destination, "x"),
    ):
        with pytest.raises(RequestError, match="no position") as error:
            act()
        assert error.value.status == 409


@pytest.mark.usefixtures("daily_run_finished")
def test_sweep_wakes_for_files(server: SFTPServer, enqueued_tasks: list[str]) -> None:
    make_file_destination(server)
    make_delivered_job()
    make_due()
    enqueued_tasks.clear()
    tasks.sweep()
    assert enqueued_tasks == ["exhaust.deliver_files"]
