"""Sends events over HTTP during a campaign. Each acknowledged one has to be stored once."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count

from exhaust.demo.conversations import generate_answers
from tools.faults.checks import FIRST_DAY
from tools.faults.installation import Installation

CHANNEL = "ORG_003"  # has no exports
CONNECTIONS = 4
EVENTS = 5  # in a request
PAUSE_SECONDS = 0.25


@dataclass
class Sent:
    """What one connection sent."""

    acknowledged: dict[str, float] = field(default_factory=dict)  # mid: when
    statuses: Counter[str] = field(default_factory=Counter)


class Sender:
    """Sends batches at once, and each again until it is acknowledged, as senders do."""

    def __init__(self, installation: Installation) -> None:
        from ingest.auth import keys
        from ingest.models import Channel

        self._channel = Channel.objects.create(identifier=CHANNEL)
        self._key = keys.create_key("sender", ("ingest",), [self._channel])[1]
        self._port = installation.web_port
        self._stop = threading.Event()
        self._is_allowed = threading.Event()
        self._is_allowed.set()
        self._lost_spans: list[tuple[float, float]] = []
        self.sent = [Sent() for _ in range(CONNECTIONS)]

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._send_all, args=(number, sent), daemon=True)
            for number, sent in enumerate(self.sent)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop()
            for thread in threads:
                thread.join(60)

    def stop(self) -> None:
        self._stop.set()

    @contextmanager
    def held(self, lost_since: float) -> Iterator[None]:
        """Sends nothing, like a proxy that sees 503 at `/readyz`.

        What was acknowledged since then, on the monotonic clock, may be lost: a backup lacks it.
        """
        self._is_allowed.clear()
        try:
            yield
        finally:
            self._lost_spans.append((lost_since, time.monotonic()))
            self._is_allowed.set()

    def _send_all(self, connection: int, sent: Sent) -> None:
        for batch in count():
            mids = [f"sent:{connection}:{batch}:{number}" for number in range(EVENTS)]
            conversation = f"new-{batch}" if batch % 20 == 0 else "known"
            events = generate_answers(
                EVENTS, 1, start=FIRST_DAY, channel=CHANNEL, conversation_id=conversation
            )
            made = [event | {"mid": mid} for event, mid in zip(events, mids, strict=True)]
            body = json.dumps({"id": "api.telemetry", "ver": "3.0", "events": made})
            status = ""
            while status != "200":
                if self._stop.wait(PAUSE_SECONDS):
                    return
                self._is_allowed.wait()
                status = self._send(body)
                sent.statuses[status] += 1
            sent.acknowledged |= dict.fromkeys(mids, time.monotonic())

    def _send(self, body: str) -> str:
        """Returns the status, or "cut" where none came."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as web:
            try:
                web.request("POST", "/v1/telemetry", body, headers)
                answer = web.getresponse()
                answer.read()
            except (ConnectionError, http.client.HTTPException):
                return "cut"
            except TimeoutError:
                return "none in a minute"
            return str(answer.status)

    def count_stored(self) -> Counter[str]:
        """Returns how many rows each stored mid has."""
        from ingest.models import StoredEvent

        stored = StoredEvent.objects.filter(channel=self._channel)
        return Counter(stored.values_list("payload__mid", flat=True))

    def _may_be_lost(self, moment: float) -> bool:
        return any(start <= moment <= end for start, end in self._lost_spans)

    def check(self) -> list[tuple[str, str]]:
        """Returns the violations: (kind, detail)."""
        rows = self.count_stored()
        return [
            *(
                ("lost", f"acknowledged event {mid}")
                for sent in self.sent
                for mid, moment in sent.acknowledged.items()
                if mid not in rows and not self._may_be_lost(moment)
            ),
            *(("twice", f"event {mid} has {n} rows") for mid, n in rows.items() if n > 1),
            *(
                ("error" if status[0] == "5" else "not met", f"{n} answers to events were {status}")
                for status, n in self.count_statuses().items()
                if status not in {"200", "503", "cut"}
            ),
        ]

    def count_statuses(self) -> Counter[str]:
        return sum((sent.statuses for sent in self.sent), Counter())

    @property
    def acknowledged_count(self) -> int:
        return sum(len(sent.acknowledged) for sent in self.sent)
