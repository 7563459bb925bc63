"""The embedded broker, a folder whose files are messages; and the schedule."""

import os
from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import pytest
from django.db import OperationalError
from kombu import Connection, Producer

from config.celery import app
from exhaust import tasks
from exhaust.jobs import wakeup


@pytest.fixture
def enqueued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks whose message was sent."""
    names: list[str] = []

    def send(task: str, *_: Any) -> bool:
        names.append(task)
        return True

    monkeypatch.setattr(wakeup, "send_message", send)
    return names


def test_partial_message_is_never_read(tmp_path: Path) -> None:
    # given a reader that never pauses
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path))
    received: list[Any] = []
    with Connection("filesystem://", transport_options=folders) as connection:
        reader, writer = connection.channel(), connection.channel()

        def read_messages() -> None:
            end = monotonic() + 60
            while len(received) < 2000 and monotonic() < end:
                try:
                    message = reader.basic_get("nightly", no_ack=True)
                except ValueError as error:  # this ends a worker
                    received.append(error)
                else:
                    if message is not None:
                        received.append(message.payload)

        reading = Thread(target=read_messages)
        reading.start()

        # when
        producer = Producer(writer)
        for number in range(2000):
            producer.publish({"number": number, "text": "x" * 5000}, routing_key="nightly")
        reading.join()

    # then
    assert sorted(message["number"] for message in received if isinstance(message, dict)) == list(
        range(2000)
    )
    assert not list(tmp_path.glob("*.msg"))


def test_concurrent_starts_share_queues(tmp_path: Path) -> None:
    # given
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path))
    failed: list[Exception] = []

    def begin(number: int) -> None:
        try:
            with Connection("filesystem://", transport_options=folders) as connection:
                channel = connection.channel()
                for exchange in range(100):
                    channel.exchange_declare(f"exchange-{exchange}")
                    channel.queue_bind(f"queue-{number}", f"exchange-{exchange}", "key")
                    channel.get_table(f"exchange-{exchange}")
        except Exception as error:
            failed.append(error)

    # when
    together = [Thread(target=begin, args=[number]) for number in range(4)]
    for each in together:
        each.start()
    for each in together:
        each.join()

    # then
    assert not failed
    with Connection("filesystem://", transport_options=folders) as connection:
        for exchange in range(100):
            bound = connection.channel().get_table(f"exchange-{exchange}")
            assert {queue.queue for queue in bound} == {f"queue-{number}" for number in range(4)}


def test_sweep_wakes_before_poller() -> None:
    # a poller that looked first would report a stalled broker whenever one message is late
    sweep_interval = timedelta(seconds=app.conf.beat_schedule["sweep"]["schedule"])
    assert sweep_interval < wakeup.OVERDUE


def test_drafts_of_killed_processes_are_deleted(tmp_path: Path, settings: Any) -> None:
    # given a message, the draft of a process that was killed, and one that is being written
    settings.CELERY_BROKER_TRANSPORT_OPTIONS = {"data_folder_out": str(tmp_path)}
    for name in ("1_a.nightly.msg", ".2_b.nightly.msg", ".3_c.nightly.msg"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".2_b.nightly.msg", (0, 0))

    # when / then
    wakeup.delete_drafts()
    assert {path.name for path in tmp_path.iterdir()} == {"1_a.nightly.msg", ".3_c.nightly.msg"}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("task", ["exhaust.push_documents", "exhaust.derive_sessions"])
def test_schedule_sends_no_message_without_work(
    enqueued: list[str], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    scheduler = app.conf.beat_scheduler(app, lazy=True)
    entry = scheduler.Entry(name="often", task=task, schedule=1.0, app=app)
    scheduler.apply_entry(entry)
    assert enqueued == []

    # when / then: without an answer of the database there may be work
    monkeypatch.setattr(tasks, "has_work", fail)
    scheduler.apply_entry(entry)
    assert enqueued == [task]


def fail(task: str) -> bool:
    raise OperationalError


@pytest.mark.django_db(transaction=True)
def test_schedule_sends_no_second_wakeup(enqueued: list[str]) -> None:
    # given a schedule whose entry is due thrice before a worker takes it, then runs
    scheduler = app.conf.beat_scheduler(app, lazy=True)
    entry = scheduler.Entry(name="sweep", task="exhaust.sweep", schedule=5.0, app=app)
    for _ in range(3):
        scheduler.apply_entry(entry)
    assert enqueued == ["exhaust.sweep"]

    # when / then
    wakeup.record_start("exhaust.sweep")
    scheduler.apply_entry(entry)
    assert enqueued == ["exhaust.sweep"] * 2
