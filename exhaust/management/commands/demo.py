"""Demonstrates the whole service: sends telemetry over HTTP, exports it, downloads two files."""

import csv
import hashlib
import io
import secrets
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from exhaust import processes
from exhaust.demo import conversations
from exhaust.demo.client import CallFailed, Client, chunks, open_link
from exhaust.files import links, storage
from exhaust.models import File, Job, Link
from ingest.auth import keys
from ingest.db.clock import read_clock
from ingest.models import ApiKey, Channel, Conversation, Participant, RejectedEvent, StoredEvent

CHANNEL = "DEMO"
DEVICE_COUNT, ANSWER_COUNT, DAYS = 600, 20_000, 30
JOB_TIMEOUT_SECONDS = 120


class Command(BaseCommand):
    help = "Starts the web server and two workers, sends telemetry, and downloads two exports."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--port", type=int, help="Port of the web server (default: a free port)."
        )
        parser.add_argument("--serve", action="store_true", help="Keep running until Ctrl-C.")

    def handle(self, *args: Any, **options: Any) -> None:
        processes.interrupt_on_sigterm()
        start_time = time.monotonic()
        try:
            with ExitStack() as stack:
                self._run_tour(
                    stack, options["port"] or processes.free_port(), serve=options["serve"]
                )
        except CallFailed as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            raise CommandError("Interrupted. All processes are stopped.") from None
        self.stdout.write(
            f"\nDone in {time.monotonic() - start_time:.0f} s. All processes are stopped."
        )

    def _run_tour(self, stack: ExitStack, port: int, *, serve: bool) -> None:
        out = Path(settings.DATA_DIR) / "demo"
        out.mkdir(parents=True, exist_ok=True)
        self._print_heading("Creating the tables and an empty demo channel")
        call_command("migrate", verbosity=0)
        sender_key, requester_key = self._reset_channel()

        base = f"http://127.0.0.1:{port}"
        self._print_heading(f"Starting the web server at {base} and two workers")
        settings.EXHAUST_PUBLIC_URL = base
        environment = {"EXHAUST_PUBLIC_URL": base}
        commands = {"web": processes.web_command(port), **processes.worker_commands()}
        logs = {name: out / f"{name}.log" for name in commands}
        children = {
            name: stack.enter_context(
                processes.run_child(
                    command, logs[name], environment | processes.child_environment(name)
                )
            )
            for name, command in commands.items()
        }
        self._wait_until_ready(base, children, logs)

        now = read_clock()
        start = (now - timedelta(days=DAYS)).date()
        self._send_events(Client(base, sender_key), now)

        dates = {
            "conversationId": conversations.CONVERSATION_ID,
            "startDate": start.isoformat(),
            "endDate": (start + timedelta(days=DAYS)).isoformat(),
        }
        tag = f"demo-{secrets.token_hex(4)}"
        for dataset in ("uci-response-exhaust", "uci-private-exhaust"):
            self._export(Client(base, requester_key), dataset, tag, dates, out)
        self._check_dead_links()
        if serve:
            self._serve(base, sender_key, requester_key, children, logs)

    def _reset_channel(self) -> tuple[str, str]:
        """Empties the demo channel; returns its sender key and its requester key."""
        channel, _ = Channel.objects.get_or_create(
            identifier=CHANNEL, defaults={"name": "Demonstration"}
        )
        for file in File.objects.filter(job__channel=channel, deleted_at__isnull=True):
            storage.get_storage().delete(file.key)
        Link.objects.filter(file__job__channel=channel).delete()
        File.objects.filter(job__channel=channel).delete()
        for model in (Job, StoredEvent, RejectedEvent, Participant, Conversation):
            model.objects.filter(channel=channel).delete()
        ApiKey.objects.filter(channels=channel, name__startswith="demo ").delete()
        sender_key = keys.create_key("demo sender", ["ingest"], [channel])[1]
        requester_key = keys.create_key(
            "demo requester", ["export:response", "export:private"], [channel]
        )[1]
        return sender_key, requester_key

    def _wait_until_ready(
        self, base: str, children: dict[str, Popen[bytes]], logs: dict[str, Path]
    ) -> None:
        deadline = time.monotonic() + 30
        while True:
            for name, process in children.items():
                if process.poll() is not None:
                    log_tail = logs[name].read_text(errors="replace")[-2000:]
                    raise CallFailed(
                        f"The {name} process ended at once ({logs[name]}):\n{log_tail}"
                    )
            try:
                if open_link(f"{base}/readyz")[0] == 200:
                    return
            except CallFailed:
                pass
            if time.monotonic() > deadline:
                raise CallFailed(f"The web server was not ready in 30 s; see {logs['web']}.")
            time.sleep(0.1)

    def _send_events(self, client: Client, now: datetime) -> None:
        self._print_heading(
            f"Sending {ANSWER_COUNT:,} answers of {DEVICE_COUNT} devices as telemetry over HTTP"
        )
        start_time = time.monotonic()
        counts = client.send(_generate_answers(now))
        seconds = time.monotonic() - start_time
        self._print_line(
            f"stored {counts['stored']:,}, duplicate {counts['duplicate']:,}, rejected"
            f" {counts['rejected']:,} in {seconds:.1f} s ({ANSWER_COUNT / seconds:,.0f} a second)"
        )
        if counts["stored"] != ANSWER_COUNT:
            raise CallFailed(f"{ANSWER_COUNT - counts['stored']} answers were not stored.")
        counts = client.send(next(chunks(_generate_answers(now), 500)))
        self._print_line(
            f"the first 500 sent again: {counts['duplicate']} duplicate, {counts['stored']} stored"
        )
        start = now.date() - timedelta(days=DAYS)
        profiles = list(conversations.generate_participants(DEVICE_COUNT, start=start))
        answer = client.call("POST", "/v1/participants", profiles)
        self._print_line(
            f"participants: {answer['accepted']} accepted, {answer['rejected']} rejected"
        )
        client.call(
            "PUT",
            f"/v1/conversations/{conversations.CONVERSATION_ID}",
            {"name": conversations.CONVERSATION_NAME},
        )

    def _export(
        self, client: Client, dataset: str, tag: str, dates: dict[str, str], out: Path
    ) -> None:
        self._print_heading(f"Exporting {dataset}")
        job = client.submit(dataset, tag, dates)
        start_time = time.monotonic()
        job = client.wait(tag, job["requestId"], self._show_progress, JOB_TIMEOUT_SECONDS)
        self.stdout.write("")
        file = job["files"][0]
        status, body = open_link(job["downloadUrls"][0])
        if status != 200 or hashlib.sha256(body).hexdigest() != file["sha256"]:
            raise CallFailed(
                f"The download of {file['name']} is not the file that was made ({status})."
            )
        path = out / Path(file["name"]).name
        path.write_bytes(body)
        expires_at = datetime.fromtimestamp(job["expiresAt"] / 1000, UTC)
        self._print_line(
            f"{file['rows']:,} rows, {file['bytes']:,} bytes, SHA-256 {file['sha256'][:16]}…"
            f" verified, {time.monotonic() - start_time:.1f} s from submit to download"
        )
        self._print_line(
            f"link until {expires_at:%Y-%m-%d %H:%M:%S} UTC on"
            f" {urlsplit(job['downloadUrls'][0]).netloc}"
        )
        self._print_line(f"saved as {path}")
        for row in list(csv.reader(io.StringIO(body.decode(), newline="")))[:4]:
            self._print_line("  " + " | ".join(cell.replace("\n", "⏎")[:24] for cell in row))

    def _show_progress(self, job: dict[str, Any]) -> None:
        percent = job["progress"]["percent"]
        filled = "█" * (percent // 4)
        line = (
            f"  {job['status']:<10} [{filled:<25}] {percent:>3} % {job['progress']['rows']:,} rows"
        )
        if self.stdout.isatty():
            self.stdout.write(line, ending="\r")
            self.stdout.flush()
        elif job["status"] == "SUCCESS":
            self.stdout.write(line, ending="")

    def _check_dead_links(self) -> None:
        self._print_heading("Trying links that must fail")
        file = File.objects.filter(job__channel__identifier=CHANNEL).latest("id")
        for file in File.objects.filter(job__channel__identifier=CHANNEL).order_by("id"):
            link = links.create(file, read_clock() + timedelta(seconds=3))
            url = links.build_url(link)
            altered = url[:-1] + ("A" if url[-1] != "A" else "B")
            if open_link(url)[0] != 200:
                raise CallFailed(f"The link to {file.name} did not open.")
            self._check_refused("altered", altered, file)
            time.sleep(max(0.0, (link.expires_at - read_clock()).total_seconds()) + 0.2)
            self._check_refused("expired", url, file)

    def _check_refused(self, kind: str, url: str, file: File) -> None:
        status, _ = open_link(url)
        if status not in (403, 410):
            raise CallFailed(f"The {kind} link to {file.name} returned {status}.")
        self._print_line(f"{kind} link to {file.name}: rejected with {status}")

    def _serve(
        self,
        base: str,
        sender_key: str,
        requester_key: str,
        children: dict[str, Popen[bytes]],
        logs: dict[str, Path],
    ) -> None:
        password = secrets.token_urlsafe(9)
        user, _ = get_user_model().objects.get_or_create(
            username="demo", defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(password)
        user.save()
        self._print_heading("Serving until Ctrl-C")
        self._print_line(f"API           {base}/dataset/v1/request/list/{{tag}}")
        self._print_line(f"console       {base}/console/ as demo, password {password}")
        self._print_line(f"admin         {base}/admin/, same login")
        self._print_line(f"sender key    {sender_key}")
        self._print_line(f"requester key {requester_key}")
        self._print_line(f"logs          {', '.join(str(path) for path in logs.values())}")
        try:
            while True:
                for name, process in children.items():
                    if process.poll() is not None:
                        raise CallFailed(f"The {name} process ended; see {logs[name]}.")
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.stdout.write("")

    def _print_heading(self, text: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(f"\n{text}"))
        self.stdout.flush()

    def _print_line(self, text: str) -> None:
        self.stdout.write(f"  {text}")
        self.stdout.flush()


def _generate_answers(now: datetime) -> Iterator[dict[str, Any]]:
    """Yields the answers of the `DAYS` days that end now, so that today has some."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    milliseconds = round((now - midnight).total_seconds() * 1000)
    start = now.date() - timedelta(days=DAYS)
    for event in conversations.generate_answers(
        ANSWER_COUNT, DEVICE_COUNT, start=start, days=DAYS, channel=CHANNEL
    ):
        yield event | {"ets": event["ets"] + milliseconds}
