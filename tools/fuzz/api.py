"""Fuzzes the API from its own OpenAPI: no 5xx, no undocumented response, no dead worker.

    python -m tools.fuzz --requests 200000                over HTTP, against the running server
    python -m tools.fuzz --requests 10000 --in-process    the same in one process, for CI
    python -m tools.fuzz --adapters --runs 1000000        bytes without HTTP: `tools.fuzz.adapters`

Schemathesis makes a third of the calls by the document, a third against it, and a third in series
that use earlier responses. Variants follow each call (`tools.fuzz.wire`). Every response must be
documented. Undocumented input that a lenient reader accepts is no finding. Over HTTP the server
uses PostgreSQL (DATABASE_URL's server); in process it uses DATABASE_URL if set, else SQLite. Needs
the extra `test`.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks import harness
from exhaust.processes import web_command
from tools.fuzz import adapters
from tools.fuzz.wire import (
    Send,
    Variants,
    Wire,
    send_to_application,
    send_to_server,
    to_response,
    to_wire,
)

CHANNEL = "FUZZED"
APPLICATION = "fuzz-app"
REPEATS = 6  # times to send a case: unchanged, then varied
MAX_SHOWN = 2000
# rate limits off, or most calls would only reach them
TEXT_WIDTH = {"EXHAUST_MAX_QUEUED_PER_CHANNEL": "100000", "EXHAUST_RATE_LIMIT_MULTIPLIER": "100"}


@dataclass
class Credentials:
    """Headers by security scheme, of a sender and of a reader."""

    sender_key: dict[str, str]
    reader_key: dict[str, str]
    basic_auth: dict[str, str]


@dataclass
class Campaign:
    """Calls of one schema and its findings; `statuses` counts responses by status."""

    schema: Any
    credentials: Credentials
    requests: int
    seed: int = 1
    send: Send | None = None
    statuses: Counter[int] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        import hypothesis
        from hypothesis import HealthCheck, Phase, given
        from schemathesis import GenerationMode

        _write_lines()
        self._chance = random.Random(self.seed)
        self._variants = Variants(self._chance)
        self._send = self.send or send_to_application(self.schema.app)
        operations = [each.ok() for each in self.schema.get_all_operations()]
        each = max(1, self.requests // 3 // len(operations) // REPEATS)

        def settings(count: int, **more: Any) -> hypothesis.settings:
            return hypothesis.settings(
                max_examples=count,
                database=None,
                deadline=None,
                derandomize=False,
                verbosity=hypothesis.Verbosity.quiet,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                **more,
            )

        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            for operation in operations:

                @hypothesis.seed(self.seed)
                @settings(each)
                @given(case=operation.as_strategy(generation_mode=mode))
                def check_case(case: Any) -> None:
                    self.send_case(case)

                try:
                    check_case()
                except Exception as error:
                    # an operation without parameters has no negative cases
                    if "negative" not in str(error).lower() and "Unsatis" not in repr(error):
                        raise
        campaign = self

        class Rows(self.schema.as_state_machine()):  # type: ignore[misc]
            def call(self, case: Any, **options: Any) -> Any:
                return campaign.send_case(case)

            def validate_response(self, response: Any, case: Any, **options: Any) -> None:
                """Does nothing: `send_case` has checked the response."""

        from hypothesis.stateful import run_state_machine_as_test

        while (remaining := self.requests - self.count) > 0:
            steps = 8
            count_before = self.count
            machine = hypothesis.seed(self.seed + self.count)(Rows)
            # responses differ between runs, which Hypothesis calls flaky
            with suppress(hypothesis.errors.Flaky):
                run_state_machine_as_test(
                    machine,
                    settings=settings(
                        max(1, min(500, remaining // steps // REPEATS)), stateful_step_count=steps
                    ),
                )
            if self.count == count_before:
                break

    @property
    def count(self) -> int:
        return self.statuses.total()

    def send_case(self, case: Any) -> Any:
        """Sends a case and its variants; returns the response to the case."""
        self._add_credentials(case)
        wire, request = to_wire(case)
        label = case.operation.label
        self._variants.learn(label, wire)
        answer = self.check_response(wire, request, case)
        for _ in range(REPEATS - 1):
            self.check_response(self._variants.mutate(label, wire), request, case)
        return answer

    def _add_credentials(self, case: Any) -> None:
        """Adds valid credentials and existing names to most cases."""
        definition = case.operation.definition.raw
        schemes = {name for each in definition.get("security", []) for name in each}
        if self._chance.random() < 0.9:
            credentials = (
                self.credentials.basic_auth
                if "application" in schemes
                else self.credentials.reader_key
            )
            if definition["tags"] == ["Sending"] and "bearer" in schemes:
                credentials = self.credentials.sender_key
            for name in ("X-Channel-ID", "Authorization", "X-API-Key"):
                case.headers.pop(name, None)
            if schemes:
                case.headers.update(credentials)
        if self._chance.random() < 0.7:
            for name in ("appId", "client_id"):
                if any(each.name == name for each in case.operation.query):
                    case.query[name] = APPLICATION
            for name in ("name", "tag"):
                if name in case.path_parameters:
                    case.path_parameters[name] = self._chance.choice(["april", "b"])

    def check_response(self, wire: Wire, request: Any, case: Any) -> Any:
        """Sends a call and returns its response; records findings."""
        from schemathesis import checks
        from schemathesis.specs.openapi import checks as conformance

        start_time = time.monotonic()
        try:
            response = to_response(self._send(wire), request, start_time)
        except Exception as error:
            self.add_finding(case, wire, f"no answer: {error!r}")
            raise
        self.statuses[response.status_code] += 1
        try:
            case.validate_response(
                response,
                checks=[
                    checks.not_a_server_error,
                    conformance.status_code_conformance,
                    conformance.content_type_conformance,
                    conformance.response_schema_conformance,
                    conformance.response_headers_conformance,
                ],
            )
        except BaseExceptionGroup as error:
            for each in error.exceptions:
                self.add_finding(
                    case, wire, f"{type(each).__name__} {response.status_code}: {each}"
                )
        return response

    def add_finding(self, case: Any, wire: Wire, detail: str) -> None:
        """Keeps one finding of each kind, with the call that repeats it."""
        kind = f"{case.operation.label} {detail.partition(chr(10))[0][:200]}"
        if kind not in self.findings:
            self.findings[kind] = f"{detail}\n{wire.to_curl()}"[:MAX_SHOWN]


def _write_lines() -> None:
    """Makes schemathesis send text bodies unchanged."""
    import schemathesis

    def lines(context: Any, value: Any) -> Any:
        text = value if isinstance(value, str) else json.dumps(value)
        return {"data": text.encode(errors="surrogatepass")}

    schemathesis.serializer("application/x-ndjson")(lines)
    schemathesis.serializer("application/vnd.elasticsearch+x-ndjson")(lines)


def create_credentials() -> Credentials:
    """Creates a channel with keys and an application in this process's database."""
    from base64 import b64encode

    from ingest.auth import keys

    channel = keys.get_or_create_channel(CHANNEL)
    sender_key = keys.create_key("fuzz", ["ingest"], [channel])[1]
    scopes = ["pull", "export:response", "export:private"]
    reader_key = keys.create_key("fuzz", scopes, [channel])[1]
    password = keys.create_application(APPLICATION, channel)[1]
    basic = b64encode(f"{APPLICATION}:{password}".encode()).decode()
    return Credentials(
        {"Authorization": f"Bearer {sender_key}"},
        {"X-API-Key": reader_key},
        {"Authorization": f"Basic {basic}"},
    )


def run_in_process(requests: int, seed: int = 1) -> Campaign:
    """Runs a campaign against the WSGI application in this process."""
    import schemathesis
    from django.db import connections

    from config.wsgi import application

    # opening a connection per call would take a fifth of the time
    for each in connections.all(initialized_only=True):
        each.settings_dict["CONN_MAX_AGE"] = None
    schema = schemathesis.openapi.from_wsgi("/docs/openapi.json", application)
    campaign = Campaign(schema, create_credentials(), requests, seed)
    campaign.run()
    return campaign


# Over HTTP ---------------------------------------------------------------------------------------


def run_campaign(requests: int, seed: int, count: int) -> None:
    """Runs clients in their own processes against two workers; reports dead workers."""
    with ExitStack() as stack:
        var = stack.enter_context(harness.temporary_folder())
        url = stack.enter_context(harness.postgresql())
        port = harness.free_port()
        variables = harness.environment(url, var) | {
            "EXHAUST_PUBLIC_URL": f"http://127.0.0.1:{port}",
            **TEXT_WIDTH,
        }
        harness.setup_django(variables)
        harness.migrate()
        credentials = create_credentials()
        log = stack.enter_context((var / "web.log").open("w"))
        server = subprocess.Popen(
            web_command(port), cwd=harness.ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
        stack.callback(server.wait, 20)
        stack.callback(server.terminate)
        _wait_for_server(f"http://127.0.0.1:{port}/readyz")
        workers, start_time = _child_pids(server.pid), time.monotonic()
        request = {
            "url": f"http://127.0.0.1:{port}",
            "rights": vars(credentials),
            "requests": requests // count,
        }
        clients = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tools.fuzz", "--client", json.dumps(request)),
                    *("--seed", str(seed * 1000 + number)),
                ],
                cwd=harness.ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        statuses: Counter[int] = Counter()
        findings: dict[str, str] = {}
        deaths = 0
        for client in clients:
            output = client.communicate()[0]
            if client.returncode:
                raise SystemExit("A client failed; its output is above.")
            response = json.loads(output.splitlines()[-1])
            statuses.update({int(status): count for status, count in response["said"].items()})
            findings |= response["found"]
        if server.poll() is not None or _child_pids(server.pid) != workers:
            deaths = 1
            print((var / "web.log").read_text()[-4000:])
        print_report(statuses, findings, time.monotonic() - start_time, deaths)


def _run_client(request: dict[str, Any], seed: int) -> None:
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{request['url']}/docs/openapi.json")
    credentials = Credentials(**request["rights"])
    send = send_to_server(request["url"])
    campaign = Campaign(schema, credentials, request["requests"], seed, send)
    campaign.run()
    print(json.dumps({"said": campaign.statuses, "found": campaign.findings}))


def _child_pids(pid: int) -> set[str]:
    tasks = Path(f"/proc/{pid}/task")
    return {child for task in tasks.iterdir() for child in (task / "children").read_text().split()}


def _wait_for_server(url: str) -> None:
    for _ in range(600):
        try:
            urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("The server does not respond.")


def print_report(
    statuses: Counter[int], findings: dict[str, str], seconds: float, deaths: int = 0
) -> None:
    """Prints the results. Exits with 1 on a finding."""
    for kind, detail in findings.items():
        print(f"\n{kind}\n{detail}")
    total = statuses.total()
    by_status = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    print(f"\n{total:,} requests in {seconds:.0f} s ({by_status})")
    failed = sum(count for status, count in statuses.items() if status >= 500)
    print(f"{failed} x 5xx, {len(findings)} kinds of findings, worker deaths: {deaths}")
    if findings or failed or deaths:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzzes the API and the adapters.")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--adapters", action="store_true")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2, help="Client processes, over HTTP.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--client", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    harness.stop_on_term()
    if options.client:
        _run_client(options.client, options.seed)
    elif options.adapters:
        adapters.run_campaign(options.runs, options.seed)
    elif options.in_process:
        with ExitStack() as stack:
            var = stack.enter_context(harness.temporary_folder())
            named = os.environ.get("DATABASE_URL", "")
            url = stack.enter_context(harness.postgresql()) if named.startswith("postgres") else ""
            harness.setup_django(harness.environment(url, var) | TEXT_WIDTH)
            harness.migrate()
            start_time = time.monotonic()
            campaign = run_in_process(options.requests, options.seed)
            print_report(campaign.statuses, campaign.findings, time.monotonic() - start_time)
    else:
        run_campaign(options.requests, options.seed, options.workers)


if __name__ == "__main__":
    main()
