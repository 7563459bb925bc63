"""Carries one batch to one sink: address, method, who we are, signature."""

import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils import timezone

from exhaust.delivery import elasticsearch, http_client, webhook
from exhaust.delivery.batches import Document
from exhaust.delivery.http_client import AddressRefused, Answer, Unreachable
from exhaust.models import Sink
from ingest.privacy.encryption import unseal

log = logging.getLogger(__name__)
SECONDS = 30.0
Outcome = Answer | AddressRefused | Unreachable


@dataclass(frozen=True)
class Message:
    """A request, read from the database beforehand: the threads that send have no connection."""

    sink_id: int
    id: str
    method: str
    url: str
    body: bytes
    headers: dict[str, str]
    secret: str
    answer_bytes: int


def message(sink: Sink, delivery: int | str, documents: Sequence[Document]) -> Message:
    """The request of a delivery; its id is the same at every attempt.

    Raises `cryptography.fernet.InvalidToken` when no key of ours opens password or secret.
    """
    headers = {"Content-Type": sink.content_type}
    if sink.user:
        password = unseal(sink.sealed_password).decode() if sink.sealed_password else ""
        token = b64encode(f"{sink.user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    elastic = sink.kind == Sink.Kind.ELASTICSEARCH
    return Message(
        sink.pk,
        f"msg_sink{sink.pk}_{delivery}",
        sink.method,
        sink.url,
        b"".join(document.sent for document in documents),
        headers,
        unseal(sink.sealed_secret).decode() if sink.sealed_secret else "",
        elasticsearch.ANSWER_BYTES if elastic else http_client.ANSWER_BYTES,
    )


def send(message: Message, seconds: float | None = None) -> Outcome:
    """What came of the request, in `SECONDS` at most."""
    headers = dict(message.headers)
    if message.secret:
        headers |= webhook.signed(message.id, message.body, [message.secret], timezone.now())
    try:
        return http_client.send(
            message.method,
            message.url,
            message.body,
            headers,
            seconds=SECONDS if seconds is None else seconds,
            answer_bytes=message.answer_bytes,
        )
    except (AddressRefused, Unreachable) as error:
        return error
    except Exception:  # of one receiver; the others' outcomes are to be recorded
        log.exception("sink.delivery_broke sink=%s", message.sink_id)
        return Unreachable("The delivery broke; the cause is in the service's log.")
