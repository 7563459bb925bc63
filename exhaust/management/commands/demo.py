"""The whole way, once: real telemetry in over HTTP, two CSV files out behind links that expire."""

import csv
import hashlib
import io
import secrets
import signal
import time
from argparse import ArgumentParser
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
from django.utils import timezone

from exhaust.demo import conversations, processes
from exhaust.demo.client import Client, Failed, batches, fetch
from exhaust.files import links, storage
from exhaust.models import File, Job, Link
from ingest.auth import keys
from ingest.models import ApiKey, Channel, Conversation, Participant, Rejected, StoredEvent

CHANNEL = "DEMO"
DEVICES, ANSWERS, DAYS = 600, 20_000, 30
JOB_SECONDS = 120


class Command(BaseCommand):
    help = "Starts web and worker, sends a conversation's telemetry, fetches both exhausts."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, help="Of the web server; a free one by default.")
        parser.add_argument("--serve", action="store_true", help="Stay up until Ctrl-C.")

    def handle(self, *args: Any, **options: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        begun = time.monotonic()
        try:
            with ExitStack() as stack:
                self._tour(stack, options["port"] or processes.free_port(), serve=options["serve"])
        except Failed as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            raise CommandError("Interrupted; everything that was started is stopped.") from None
        self.stdout.write(f"\nDone in {time.monotonic() - begun:.0f} s; all processes stopped.")

    def _tour(self, stack: ExitStack, port: int, *, serve: bool) -> None:
        out = Path(settings.VAR_DIR) / "demo"
        out.mkdir(parents=True, exist_ok=True)
        self._step("Making the tables, and a clean demo channel")
        call_command("migrate", verbosity=0)
        sender, asker = self._clean()

        base = f"http://127.0.0.1:{port}"
        self._step(f"Starting the web server at {base} and a worker")
        settings.PUBLIC_URL = base
        environment = {"PUBLIC_URL": base}
        logs = {"web": out / "web.log", "worker": out / "worker.log"}
        commands = {"web": processes.web(port), "worker": processes.worker()}
        children = {
            name: stack.enter_context(processes.child(command, logs[name], environment))
            for name, command in commands.items()
        }
        self._await_ready(base, children, logs)

        start = (datetime.now(UTC) - timedelta(days=DAYS)).date()
        self._send(Client(base, sender), start)

        dates = {
            "conversationId": conversations.CONVERSATION_ID,
            "startDate": start.isoformat(),
            "endDate": (start + timedelta(days=DAYS)).isoformat(),
        }
        tag = f"demo-{secrets.token_hex(4)}"
        for dataset in ("uci-response-exhaust", "uci-private-exhaust"):
            self._exhaust(Client(base, asker), dataset, tag, dates, out)
        self._refusals()
        if serve:
            self._serve(base, sender, asker, children, logs)

    def _clean(self) -> tuple[str, str]:
        """An empty channel; the texts of its sender's and its requester's key."""
        channel, _ = Channel.objects.get_or_create(
            identifier=CHANNEL, defaults={"name": "Demonstration"}
        )
        for file in File.objects.filter(job__channel=channel, deleted_at__isnull=True):
            storage.default().delete(file.key)
        Link.objects.filter(file__job__channel=channel).delete()
        File.objects.filter(job__channel=channel).delete()
        for model in (Job, StoredEvent, Rejected, Participant, Conversation):
            model.objects.filter(channel=channel).delete()
        ApiKey.objects.filter(channels=channel, name__startswith="demo ").delete()
        sender = keys.create_key("demo sender", ["ingest"], [channel])[1]
        asker = keys.create_key("demo requester", ["export:response", "export:private"], [channel])[
            1
        ]
        return sender, asker

    def _await_ready(
        self, base: str, children: dict[str, Popen[bytes]], logs: dict[str, Path]
    ) -> None:
        until = time.monotonic() + 30
        while True:
            for name, process in children.items():
                if process.poll() is not None:
                    said = logs[name].read_text(errors="replace")[-2000:]
                    raise Failed(f"The {name} process ended at once ({logs[name]}):\n{said}")
            try:
                if fetch(f"{base}/readyz")[0] == 200:
                    return
            except Failed:
                pass
            if time.monotonic() > until:
                raise Failed(f"The web server was not ready in 30 s; see {logs['web']}.")
            time.sleep(0.1)

    def _send(self, client: Client, start: Any) -> None:
        self._step(f"Sending {ANSWERS:,} answers of {DEVICES} devices as telemetry over HTTP")
        begun = time.monotonic()
        events = conversations.answers(ANSWERS, DEVICES, start=start, days=DAYS, channel=CHANNEL)
        counts = client.send(events)
        seconds = time.monotonic() - begun
        self._say(
            f"stored {counts['stored']:,}, duplicate {counts['duplicate']:,}, rejected"
            f" {counts['rejected']:,} in {seconds:.1f} s ({ANSWERS / seconds:,.0f} a second)"
        )
        if counts["stored"] != ANSWERS:
            raise Failed(f"{ANSWERS - counts['stored']} answers were not stored.")
        again = next(
            batches(
                conversations.answers(ANSWERS, DEVICES, start=start, days=DAYS, channel=CHANNEL),
                500,
            )
        )
        counts = client.send(again)
        self._say(f"the first 500 sent again: {counts['duplicate']} known, {counts['stored']} new")
        profiles = list(conversations.participants(DEVICES, start=start))
        answer = client.call("POST", "/v1/participants", profiles)
        self._say(f"participants: {answer['accepted']} accepted, {answer['rejected']} rejected")
        client.call(
            "PUT",
            f"/v1/conversations/{conversations.CONVERSATION_ID}",
            {"name": conversations.CONVERSATION_NAME},
        )

    def _exhaust(
        self, client: Client, dataset: str, tag: str, dates: dict[str, str], out: Path
    ) -> None:
        self._step(f"Asking for {dataset}")
        job = client.submit(dataset, tag, dates)
        begun = time.monotonic()
        job = client.wait(tag, job["requestId"], self._bar, JOB_SECONDS)
        self.stdout.write("")
        file = job["files"][0]
        status, body = fetch(job["downloadUrls"][0])
        if status != 200 or hashlib.sha256(body).hexdigest() != file["sha256"]:
            raise Failed(
                f"The download of {file['name']} is not the file that was made ({status})."
            )
        path = out / Path(file["name"]).name
        path.write_bytes(body)
        ends = datetime.fromtimestamp(job["expiresAt"] / 1000, UTC)
        self._say(
            f"{file['rows']:,} rows, {file['bytes']:,} bytes, SHA-256 {file['sha256'][:16]}… as"
            f" promised, {time.monotonic() - begun:.1f} s from asking to having"
        )
        self._say(
            f"link until {ends:%Y-%m-%d %H:%M:%S} UTC on {urlsplit(job['downloadUrls'][0]).netloc}"
        )
        self._say(f"saved as {path}")
        for row in list(csv.reader(io.StringIO(body.decode(), newline="")))[:4]:
            self._say("  " + " | ".join(cell.replace("\n", "⏎")[:24] for cell in row))

    def _bar(self, job: dict[str, Any]) -> None:
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

    def _refusals(self) -> None:
        self._step("Trying links that must not work")
        file = File.objects.filter(job__channel__identifier=CHANNEL).latest("id")
        for file in File.objects.filter(job__channel__identifier=CHANNEL).order_by("id"):
            short = links.create(file, timezone.now() + timedelta(seconds=3))
            url = links.address(short)
            altered = url[:-1] + ("A" if url[-1] != "A" else "B")
            if fetch(url)[0] != 200:
                raise Failed(f"A good link to {file.name} did not open.")
            self._refused("altered", altered, file)
            time.sleep(max(0.0, (short.expires_at - timezone.now()).total_seconds()) + 0.2)
            self._refused("expired", url, file)

    def _refused(self, what: str, url: str, file: File) -> None:
        status, _ = fetch(url)
        if status not in (403, 410):
            raise Failed(f"The {what} link to {file.name} was answered {status}.")
        self._say(f"{what} link to {file.name}: refused with {status}")

    def _serve(
        self,
        base: str,
        sender: str,
        asker: str,
        children: dict[str, Popen[bytes]],
        logs: dict[str, Path],
    ) -> None:
        password = secrets.token_urlsafe(9)
        user, _ = get_user_model().objects.get_or_create(
            username="demo", defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(password)
        user.save()
        self._step("Serving until Ctrl-C")
        self._say(f"API           {base}/dataset/v1/request/list/{{tag}}")
        self._say(f"console       {base}/console/ as demo, password {password}")
        self._say(f"admin         {base}/admin/, the same")
        self._say(f"sender's key  {sender}")
        self._say(f"asker's key   {asker}")
        self._say(f"logs          {logs['web']}, {logs['worker']}")
        try:
            while True:
                for name, process in children.items():
                    if process.poll() is not None:
                        raise Failed(f"The {name} process ended; see {logs[name]}.")
                time.sleep(0.5)
        except KeyboardInterrupt:
            self.stdout.write("")

    def _step(self, text: str) -> None:
        self.stdout.write(self.style.MIGRATE_HEADING(f"\n{text}"))
        self.stdout.flush()

    def _say(self, text: str) -> None:
        self.stdout.write(f"  {text}")
        self.stdout.flush()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
