"""The embedded broker, a folder whose files are messages; and the schedule."""

from datetime import timedelta
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

from kombu import Connection, Producer

from config.celery import app
from exhaust import worker


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
    assert sweep_interval < worker.BROKER_STALL
