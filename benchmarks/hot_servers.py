"""Starts what `hot_paths` compares: ours, its peers, and both on SQLite."""

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import api, feeder, harness, wrk
from benchmarks.harness import CHANNEL, Process, wait_for_server
from benchmarks.sources import APPLICATION
from exhaust.processes import web_command

PEERS = harness.ROOT / "benchmarks" / "peers"
OURS, FASTAPI, FASTIFY, COPY = "ours", "FastAPI", "Fastify", "COPY, 2 connections"
TELEMETRY, BEFORE = "telemetry", "a view by WSGI"
NEIGHBOUR = "ORG_002"  # the tenant beside the busy one
SETTINGS = {
    "EXHAUST_LOG_LEVEL": "INFO",
    "EXHAUST_METRICS_TOKEN": "benchmark",
    "EXHAUST_RATE_LIMIT_MULTIPLIER": "10000",
    "EXHAUST_MAX_QUEUED_PER_CHANNEL": "1000000",
    "EXHAUST_BEHIND_PROXY": "true",  # Skalin's limit of an address stays: requests name many
}
TABLES = {  # where the rows of a kind of request are
    **dict.fromkeys((TELEMETRY, "clickstream", "skalin", "desk"), "ingest_storedevent"),
    "participants": "ingest_participant",
    "submit": "exhaust_job WHERE tag LIKE 't-%'",
}
PEER_TABLE = """
CREATE TABLE peer_event (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, identity text NOT NULL UNIQUE,
    occurred_at timestamptz NOT NULL, type text NOT NULL, device_id text NOT NULL,
    session_id text NOT NULL, payload jsonb NOT NULL, received_at timestamptz DEFAULT now()
);
CREATE INDEX ON peer_event (device_id, occurred_at);
CREATE INDEX ON peer_event (occurred_at);
"""


@dataclass(frozen=True)
class Service:
    """A running server, what it is sent, and the tables of its rows."""

    port: int
    pid: int
    sender: dict[str, str]  # a key and a password
    execute: Callable[[str], Any]  # runs SQL; returns the first value, if there is one
    polls: Mapping[str, Sequence[str]] = field(default_factory=dict)  # requests by kind
    tables: Mapping[str, str] = field(default_factory=lambda: TABLES)
    empties_tables: bool = True

    def build_requests(self, kind: str, events: int) -> Sequence[str]:
        return self.polls.get(kind) or [wrk.build_batch(kind, events, self.sender)]

    def empty(self, table: str) -> int:
        """Returns the number of rows that are left."""
        if self.empties_tables:
            self.execute(f"DELETE FROM {table}" if " " in table else f"TRUNCATE {table}")
            self.execute("CHECKPOINT")
        return self.count(table)

    def count(self, table: str) -> int:
        """Returns the rows, once no request that is under way adds any."""
        counts = [-1, int(self.execute(f"SELECT count(*) FROM {table}"))]
        while counts[-1] != counts[-2]:
            time.sleep(0.2)
            counts.append(int(self.execute(f"SELECT count(*) FROM {table}")))
        return counts[-1]


@contextmanager
def connect(url: str) -> Iterator[Callable[[str], Any]]:
    """Yields a function that runs SQL and returns the first value, if there is one."""
    connection: Any = (
        psycopg.connect(url, autocommit=True)
        if url.startswith("postgres")
        else sqlite3.connect(url, isolation_level=None, timeout=60)
    )

    def execute(sql: str) -> Any:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None

    with closing(connection):
        yield execute


@contextmanager
def run_server(
    command: Sequence[str], port: int, variables: dict[str, str], log: Path
) -> Iterator[int]:
    """Runs a web server with its output in a file; yields its process ID once it is ready."""
    with (
        log.open("w") as output,
        Process(command, variables, stdout=output, stderr=subprocess.STDOUT) as server,
    ):
        wait_for_server(port, server)
        yield server.pid


def prepare_database(jobs: int, execute: Callable[[str], Any]) -> tuple[dict[str, Any], Any]:
    """Creates jobs, senders and the tables of the references; returns senders and polls."""
    from exhaust.demo.conversations import CONVERSATION_ID
    from ingest.auth import keys
    from ingest.models import Channel, Conversation

    requests, _ = api.prepare(jobs, 0)
    channel = Channel.objects.get(identifier=CHANNEL)
    conversation = Conversation.objects.create(channel=channel, identifier=CONVERSATION_ID)
    application, password = keys.create_application(APPLICATION, channel)
    neighbour = Channel.objects.create(identifier=NEIGHBOUR)
    execute("CREATE TABLE copied (LIKE ingest_storedevent INCLUDING ALL)")
    execute(PEER_TABLE)
    sender = {
        "key": keys.create_key("sender", ["ingest"], [channel])[1],
        "neighbour": keys.create_key("neighbour", ["ingest"], [neighbour])[1],
        "basic": b64encode(f"{APPLICATION}:{password}".encode()).decode(),
        "channel": channel.pk,
        "conversation": conversation.pk,
        "application": application.pk,
    }
    requests["submit"] = [wrk.count_up(each) for each in requests["submit"]]
    return sender, {name: requests[name] for name in ("read", "list", "submit")}


def send_once(port: int, request: str) -> bytes:
    """Returns the body of a 200 response. Raises `SystemExit` for another."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request.encode())
        return feeder.read_response(connection)


def list_fields(value: Any, path: str = "") -> set[str]:
    """Returns the paths of all fields of a JSON value."""
    if isinstance(value, dict):
        return {path}.union(*(list_fields(each, f"{path}/{name}") for name, each in value.items()))
    if isinstance(value, list):
        return {path}.union(*(list_fields(each, path) for each in value))
    return {path}


@contextmanager
def run_embedded(folder: Path, command: Sequence[str], port: int) -> Iterator[Service]:
    """Runs a web server on SQLite."""
    variables = {**harness.environment("", folder), **SETTINGS}
    manage = [sys.executable, "manage.py"]
    folder.mkdir()
    made = partial(subprocess.run, cwd=harness.ROOT, env=variables, check=True, text=True)
    made([*manage, "migrate", "-v0"])
    creates_key = "create_key benchmark --scope ingest --channel"
    key = made([*manage, *creates_key.split(), CHANNEL], capture_output=True).stdout.strip()
    with (
        run_server(command, port, variables, folder / "web.log") as pid,
        connect(str(folder / "exhaust.sqlite3")) as execute,
    ):
        yield Service(port, pid, {"key": key}, execute, empties_tables=False)


def run_peers(
    place: Path, ours: Service, references: set[str], variables: dict[str, str], running: ExitStack
) -> tuple[dict[str, Service], dict[str, str]]:
    """Installs and starts the peers that are references of some row.

    Returns them, and why others are absent.
    """
    services: dict[str, Service] = {}
    absent: dict[str, str] = {}
    commands: dict[str, tuple[int, list[str]]] = {}
    if FASTAPI in references:
        folder, port = place / "fastapi", harness.free_port()
        python = str(folder / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        needed = PEERS / "requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "-qq", "-r", needed], check=True)
        commands[FASTAPI] = port, [
            python, "-m", "uvicorn", "fastapi_peer:app", "--app-dir", str(PEERS), "--port",
            str(port), "--workers", "2", "--no-access-log", "--log-level", "warning",
        ]  # fmt: skip
    if FASTIFY in references and not (shutil.which("node") and shutil.which("npm")):
        absent[FASTIFY] = "no Node"
    elif FASTIFY in references:
        folder, port = place / "fastify", harness.free_port()
        folder.mkdir()
        for name in ("package.json", "fastify_peer.mjs"):
            shutil.copy(PEERS / name, folder)
        npm = "npm install --silent --no-audit --no-fund --no-package-lock"
        subprocess.run(npm.split(), cwd=folder, check=True)
        commands[FASTIFY] = port, ["node", str(folder / "fastify_peer.mjs")]
    for name, (port, command) in commands.items():
        log = place / f"{name}.log"
        pid = running.enter_context(
            run_server(command, port, {**variables, "PORT": str(port)}, log)
        )
        tables = {TELEMETRY: "peer_event"}
        services[name] = replace(ours, port=port, pid=pid, tables=tables)
    if FASTAPI in commands:
        for kind in ("read", "list"):
            ports = [ours.port, services[FASTAPI].port]
            fields = [list_fields(json.loads(send_once(port, ours.polls[kind][0])))
                      for port in ports]  # fmt: skip
            if fields[0] != fields[1]:
                raise SystemExit(f"{kind}: the peer differs in {sorted(fields[0] ^ fields[1])}.")
    return services, absent


def run_both_embedded(place: Path, running: ExitStack) -> dict[str, Service]:
    """Runs ours on SQLite, and Django's view by WSGI, which commits each request by itself."""
    services: dict[str, Service] = {}
    for side in (OURS, BEFORE):
        folder, port = place / f"embedded-{len(services)}", harness.free_port()
        wsgi = harness.wsgi_command(port, "config.wsgi:application")
        command = web_command(port) if side == OURS else wsgi
        services[side] = running.enter_context(run_embedded(folder, command, port))
    return services


def describe_peers() -> str:
    packages = json.loads((PEERS / "package.json").read_text())["dependencies"]
    python = (PEERS / "requirements.txt").read_text().split()
    return ", ".join([*python, *(f"{name}=={version}" for name, version in packages.items())])
