"""Sends one request to one receiver: address, method, headers, signature."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from exhaust.delivery import http_client, webhook
from exhaust.delivery.batches import Document
from exhaust.delivery.http_client import AddressNotAllowed, Answer, Unreachable
from exhaust.delivery.kinds import kind_of
from exhaust.models import Destination
from ingest import logs
from ingest.db.clock import read_clock
from ingest.privacy.encryption import decrypt

log = logs.get_logger(__name__)
BATCH_TIMEOUT_SECONDS = 30.0
Outcome = Answer | AddressNotAllowed | Unreachable


@dataclass(frozen=True)
class OutboundRequest:
    """A request, read from the database beforehand: the threads that send have no connection."""

    id: str  # the same at every attempt
    channel: str  # whose it is
    method: str
    url: str
    body: bytes
    headers: dict[str, str]
    secrets: Sequence[str]  # that sign it; none where it is not signed
    timeout_seconds: float
    max_answer_bytes: int = http_client.MAX_ANSWER_BYTES


def build_batch_request(
    destination: Destination, delivery: int | str, documents: Sequence[Document]
) -> OutboundRequest:
    """Returns the request that carries the documents of a delivery to its destination.

    Raises `cryptography.fernet.InvalidToken` when no key decrypts the password or the secret.
    """
    headers = {"Content-Type": destination.content_type}
    if destination.user:
        encrypted = destination.encrypted_password
        password = decrypt(encrypted).decode() if encrypted else ""
        token = b64encode(f"{destination.user}:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    secret = destination.encrypted_secret
    return OutboundRequest(
        f"msg_destination{destination.pk}_{delivery}",
        destination.channel.identifier,
        destination.method,
        destination.url,
        b"".join(document.wire_bytes for document in documents),
        headers,
        [decrypt(secret).decode()] if secret else [],
        BATCH_TIMEOUT_SECONDS,
        kind_of(destination).max_answer_bytes,
    )


def send(request: OutboundRequest) -> Outcome:
    """Sends the request, signed with each of its secrets: a receiver may hold any of them.

    Returns the answer, or the error that stands in its place; raises nothing.
    """
    headers = dict(request.headers)
    if request.secrets:
        headers |= webhook.build_signature_headers(
            request.id, request.body, request.secrets, read_clock()
        )
    try:
        return http_client.send(
            request.method,
            request.url,
            request.body,
            headers,
            channel=request.channel,
            seconds=request.timeout_seconds,
            answer_bytes=request.max_answer_bytes,
        )
    except (AddressNotAllowed, Unreachable) as error:
        return error
    except Exception:  # the outcomes of the other receivers are still to be recorded
        log.exception("delivery.crashed", key=request.id)
        return Unreachable("The delivery broke; the cause is in the service's log.")
