"""A proxy in front of an S3 server that fails on request.

    python -m tools.faults.s3_proxy --upstream http://127.0.0.1:9000

It reads commands as lines of JSON and responds to each with a line. `{"arm": {...}}` takes the
fields of `Fault`; `{"taken": JOB}` returns how often a fault of this job was triggered. The first
response is the port. The kinds of faults:

    500, 503   the proxy returns this status; the server does not get the request
    200        returns 200 with an error in the body, as S3 may at the end of an upload
    cut        cuts the connection in the middle of the body, on both sides
    lost       the server executes the request, and its response is lost
    delay      waits some seconds before it passes the request on
    hang       takes the request and never answers
"""

import argparse
import http.client
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks import harness

OPERATIONS = ("create", "part", "complete", "put", "head", "delete", "abort", "list")
_KEY = re.compile(r"(?:response|private)/(\d+)/(\d*)")
_ERROR = '<?xml version="1.0"?>\n<Error><Code>{}</Code><Message>made to fail</Message></Error>'
_CODES = {"500": "InternalError", "503": "SlowDown", "200": "InternalError"}


@dataclass(frozen=True)
class Fault:
    """A fault of one operation on one job's keys, `times` times, in one attempt or any."""

    job: int
    operation: str
    kind: str
    times: int = 1
    attempt: str = ""
    seconds: float = 6


class ArmedFaults:
    """The armed faults, and how often each job triggered one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[Fault] = []
        self._taken: dict[int, int] = {}

    def arm(self, fault: Fault) -> None:
        with self._lock:
            self._armed.append(fault)

    def count_taken(self, job: int) -> int:
        with self._lock:
            return self._taken.get(job, 0)

    def take_fault(self, method: str, address: str) -> Fault | None:
        """Returns the fault of this request and counts it, or None."""
        if not (match := _KEY.search(unquote(address))):
            return None
        job, attempt, current_operation = int(match[1]), match[2], operation_of(method, address)
        with self._lock:
            for index, fault in enumerate(self._armed):
                if (fault.job, fault.operation) != (job, current_operation):
                    continue
                if fault.attempt and attempt != fault.attempt:
                    continue
                self._taken[job] = self._taken.get(job, 0) + 1
                if fault.times > 1:
                    self._armed[index] = replace(fault, times=fault.times - 1)
                else:
                    del self._armed[index]
                return fault
        return None


def operation_of(method: str, address: str) -> str:
    """Returns which of `OPERATIONS` a request is."""
    query = parse_qs(urlsplit(address).query, keep_blank_values=True)
    match method:
        case "PUT":
            return "part" if "partNumber" in query else "put"
        case "POST":
            return "complete" if "uploadId" in query else "create"
        case "DELETE":
            return "abort" if "uploadId" in query else "delete"
        case "GET" if "prefix" in query:
            return "list"
        case _:
            return method.lower()


class Handler(BaseHTTPRequestHandler):
    """Passes requests on with their Host, so that signatures stay valid."""

    protocol_version = "HTTP/1.1"
    faults: ArmedFaults
    upstream: str

    def _relay(self) -> None:
        fault = self.faults.take_fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match fault.kind if fault else "":
            case "500" | "503" | "200" as status:
                return self._respond(int(status), _ERROR.format(_CODES[status]).encode())
            case "cut":
                if body:
                    self._forward(body, half=True)
                return self._drop_connection()
            case "lost":
                self._forward(body)
                return self._drop_connection()
            case "delay":
                time.sleep(fault.seconds if fault else 0)
            case "hang":
                while self.connection.recv(4096):  # until the caller gives up
                    pass
                return self._drop_connection()
        try:
            status_, headers, content = self._forward(body)
        except OSError:
            return self._drop_connection()
        return self._respond(status_, content, headers)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _relay

    def _forward(self, body: bytes, *, half: bool = False) -> tuple[int, list[Any], bytes]:
        upstream = http.client.HTTPConnection(self.upstream, timeout=120)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    upstream.putheader(name, value)
            upstream.endheaders()
            upstream.send(body[: len(body) // 2] if half else body)
            if half:
                return 0, [], b""
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _respond(self, status: int, content: bytes, headers: Any = ()) -> None:
        self.send_response_only(status)
        response_headers = {"Content-Type": "application/xml", "Content-Length": str(len(content))}
        response_headers |= {
            name: value
            for name, value in headers
            if name.lower() not in {"connection", "transfer-encoding"}
        }
        for name, value in response_headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _drop_connection(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # the caller may have closed it
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Logs nothing; the campaign reports."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Ignores callers that ended in the middle of a request."""


def main() -> None:
    arguments = argparse.ArgumentParser(description="An S3 proxy that fails on request.")
    arguments.add_argument("--upstream", required=True)
    Handler.upstream = urlsplit(arguments.parse_args().upstream).netloc
    Handler.faults = faults = ArmedFaults()
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def handle(request: dict[str, Any]) -> Any:
        if "arm" in request:
            faults.arm(Fault(**request["arm"]))
            return None
        return faults.count_taken(request["taken"]) if "taken" in request else server.server_port

    harness.serve_requests(handle)


if __name__ == "__main__":
    main()
