"""The embedded broker: a folder whose files are messages."""

from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

from kombu import Connection, Producer


def test_partial_message_is_never_read(tmp_path: Path) -> None:
    # given a reader that looks all the time
    folders = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(tmp_path))
    read: list[Any] = []
    with Connection("filesystem://", transport_options=folders) as connection:
        reader, writer = connection.channel(), connection.channel()

        def look() -> None:
            end = monotonic() + 60
            while len(read) < 2000 and monotonic() < end:
                try:
                    message = reader.basic_get("nightly", no_ack=True)
                except ValueError as error:  # what ends a worker
                    read.append(error)
                else:
                    if message is not None:
                        read.append(message.payload)

        looking = Thread(target=look)
        looking.start()

        # when
        producer = Producer(writer)
        for number in range(2000):
            producer.publish({"number": number, "text": "x" * 5000}, routing_key="nightly")
        looking.join()

    # then
    assert sorted(message["number"] for message in read if isinstance(message, dict)) == list(
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
