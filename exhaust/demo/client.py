"""A client as an integrator writes it: send, submit, poll, download; standard library only."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any


class CallFailed(Exception):
    """A call failed."""


class Client:
    """Calls one service with one key."""

    def __init__(self, base: str, key: str) -> None:
        self._base = base
        self._key = key

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """Returns the JSON response. Raises `CallFailed` with the service's message."""
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        request = urllib.request.Request(  # noqa: S310
            self._base + path,
            data,
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                result: dict[str, Any] = json.load(response)
                return result
        except urllib.error.HTTPError as error:
            raise CallFailed(f"{method} {path}: {error.code} {error.read().decode()}") from None
        except OSError as error:
            raise CallFailed(f"{method} {path}: {error}") from None

    def send(self, events: Iterable[dict[str, Any]], batch: int = 500) -> dict[str, int]:
        """Sends telemetry in batches; returns the counts stored, duplicate and rejected."""
        counts = {"stored": 0, "duplicate": 0, "rejected": 0}
        for chunk in chunks(events, batch):
            envelope = {"id": "ekstep.telemetry", "ver": "3.0", "events": chunk}
            result = self.call("POST", "/v1/telemetry", envelope)["result"]
            for outcome in counts:
                counts[outcome] += result[outcome]
        return counts

    def submit(self, dataset: str, tag: str, config: dict[str, Any]) -> dict[str, Any]:
        request = {"dataset": dataset, "tag": tag, "datasetConfig": {"type": dataset, **config}}
        body = {"id": "ekstep.analytics.job.request.submit", "request": request}
        answer: dict[str, Any] = self.call("POST", "/dataset/v1/request/submit", body)["result"]
        return answer

    def wait(
        self,
        tag: str,
        request_id: str,
        on_progress: Callable[[dict[str, Any]], None],
        seconds: float,
    ) -> dict[str, Any]:
        """Polls until the job ends; calls `on_progress` with every response."""
        deadline = time.monotonic() + seconds
        while True:
            path = f"/dataset/v1/request/read/{tag}?requestId={request_id}"
            job: dict[str, Any] = self.call("GET", path)["result"]
            on_progress(job)
            if job["status"] == "SUCCESS":
                return job
            if job["status"] == "FAILED" or time.monotonic() > deadline:
                raise CallFailed(f"{request_id} is {job['status']}: {job['statusMessage']}")
            time.sleep(0.2)


def chunks(items: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def open_link(url: str) -> tuple[int, bytes]:
    """Opens a link without a key; returns its status and body."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        raise CallFailed(f"{url}: {error}") from None
