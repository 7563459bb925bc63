"""Carries one batch to one destination: address, method, who we are, signature."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from django.utils import timezone

from exhaust.delivery import elasticsearch, http_client, webhook
from exhaust.delivery.batches import Document
from exhaust.delivery.http_client import AddressNotAllowed, Answer, Unreachable
from exhaust.models import Destination
from ingest import logs
from ingest.privacy.encryption import decrypt

log = logs.get_logger(__name__)
TIMEOUT_SECONDS = 30.0
Outcome = Answer | AddressNotAllowed | Unreachable


@dataclass(frozen=True)
class OutboundRequest:
    """A request, read from the database beforehand: the threads that send have no connection."""

    destination_id: int
    id: str
    method: str
    url: str
    body: bytes
    headers: dict[str, str]
    secret: str
    max_answer_bytes: int


def build_request(
    destination: Destination, delivery: int | str, documents: Sequence[Document]
) -> OutboundRequest:
    """The request of a delivery; its id is the same at every attempt.

    Raises `cryptography.fernet.InvalidToken` when no key of ours opens password or secret.
    """
    headers = {"Content-Type": destination.content_type}
    if destination.user:
        password = (
            decrypt(destination.encrypted_password).decode()
            if destination.encrypted_password
            else ""
        )
        token = b64encode(f"{destination.user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    is_elasticsearch = destination.kind == Destination.Kind.ELASTICSEARCH
    return OutboundRequest(
        destination.pk,
        f"msg_sink{destination.pk}_{delivery}",
        destination.method,
        destination.url,
        b"".join(document.wire_bytes for document in documents),
        headers,
        decrypt(destination.encrypted_secret).decode() if destination.encrypted_secret else "",
        elasticsearch.MAX_ANSWER_BYTES if is_elasticsearch else http_client.MAX_ANSWER_BYTES,
    )


def send(request: OutboundRequest, seconds: float | None = None) -> Outcome:
    """What came of the request, in `SECONDS` at most."""
    headers = dict(request.headers)
    if request.secret:
        headers |= webhook.build_signature_headers(
            request.id, request.body, [request.secret], timezone.now()
        )
    try:
        return http_client.send(
            request.method,
            request.url,
            request.body,
            headers,
            seconds=TIMEOUT_SECONDS if seconds is None else seconds,
            answer_bytes=request.max_answer_bytes,
        )
    except (AddressNotAllowed, Unreachable) as error:
        return error
    except Exception:  # of one receiver; the others' outcomes are to be recorded
        log.exception("destination.delivery_crashed", destination=request.destination_id)
        return Unreachable("The delivery broke; the cause is in the service's log.")
