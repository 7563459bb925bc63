"""Builds the image without Docker, and runs the composed processes in it: `python -m tools.image`.

As root on Debian, with buildah, debootstrap, haproxy, redis-server and the extra `s3local`. The
base is Debian's own Python in place of the Dockerfile's. Each process of docker-compose.yml runs in
the image with its user, a root that is read-only, the composed tmpfs and no capability. Before them
is HAProxy, behind them PostgreSQL (DATABASE_URL's server), a Redis and an S3 server of this place.
Prints where the bytes are. Fails where the image is too large, a module of ours cannot be imported,
a process is unhealthy, or what is sent does not come out as a file.
"""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import psycopg
import yaml

from benchmarks import harness
from exhaust.cli import __version__
from exhaust.demo.conversations import CONVERSATION_ID, generate_answers
from exhaust.processes import free_port
from tests import doc_commands

ROOT = Path(__file__).parent.parent
BAR_BYTES = 350_000_000  # of ours, over the base
DATABASE = os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MANAGE = ("python", "manage.py")
EVENTS = 500
FORMATS = ("csv", "csv.gz", "csv-excel", "jsonl", "parquet", "xlsx")
PORTS = ("collector", "web", "worker", "nightly", "deliver", "maintain", "links", "storage")
IMPORT_ALL = """
import pkgutil, sys
from importlib import import_module
for package in map(import_module, ("config", "exhaust", "ingest")):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
for name in "botocore celery django psycopg".split():
    import_module("opentelemetry.instrumentation." + name)
import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
print(len(sys.modules), "modules can be imported")
"""


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    # trixie has Python 3.13, sid 3.14
    parser.add_argument("--suite", default="bookworm", help="Debian's suite of the base.")
    suite = parser.parse_args().suite
    harness.stop_on_term()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exhaust-image-")))
        image = stack.enter_context(Image.build(folder, suite))
        say("where the bytes are")
        is_small = image.print_sizes()
        say("the composed processes in it")
        run_processes(folder, image)
    if not is_small:
        sys.exit("The image is too large.")


def say(text: str) -> None:
    print(f"\n== {time.strftime('%X')} {text}", flush=True)


class Image:
    """The image, mounted."""

    def __init__(self, buildah: list[str], base: Path, root: Path) -> None:
        self.base, self.root = base, root
        described = json.loads(_output(*buildah, "inspect", "--type", "image", "exhaust"))
        self.config: dict[str, Any] = described["Docker"]["config"]

    @classmethod
    @contextmanager
    def build(cls, folder: Path, suite: str) -> Iterator["Image"]:
        storage = ("--root", str(folder / "storage"), "--runroot", str(folder / "runroot"))
        buildah = ["buildah", *storage]
        try:
            say("a base by debootstrap")
            _output(*buildah, "from", "--name", "base", "scratch")
            base = Path(_output(*buildah, "mount", "base"))
            include = "--include=python-is-python3,python3-venv"
            _output("debootstrap", "--variant=minbase", include, suite, str(base))
            # pip trusts whom this machine trusts
            trusted = base / CERTIFICATES.relative_to("/")
            trusted.parent.mkdir(parents=True, exist_ok=True)
            trusted.write_bytes(CERTIFICATES.read_bytes())
            (base / "etc/pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
            # a mirror of an unstable suite may be older than its list's term
            (base / "etc/apt/apt.conf.d/term").write_text('Acquire::Check-Valid-Until "false";\n')
            _output(*buildah, "config", "--env", f"PATH={PATH}", "base")
            _output(*buildah, "commit", "-q", "base", "localhost/python")
            say("the Dockerfile")
            _output(
                *buildah, "build", "--quiet", "--isolation", "chroot", "--format", "docker",
                "--build-arg", "PYTHON=localhost/python", "--tag", "exhaust",
                "--label", f"org.opencontainers.image.version={__version__}", str(ROOT),
            )  # fmt: skip
            _output(*buildah, "from", "--name", "ours", "localhost/exhaust")
            yield cls(buildah, base, Path(_output(*buildah, "mount", "ours")))
        finally:
            subprocess.run([*buildah, "umount", "--all"], check=False, capture_output=True)
            subprocess.run([*buildah, "rm", "--all"], check=False, capture_output=True)

    def print_sizes(self) -> bool:
        """Prints the size of each package of ours; returns whether all are within the bar."""
        (packages,) = self.root.glob("venv/lib/python3*/site-packages")
        sizes = Counter({path.name: _size(path) for path in packages.iterdir()})
        venv, base = _size(self.root / "venv"), _size(self.base)
        total = _size(self.root) - base
        for name, size in sizes.most_common(12):
            print(f"{size / 1e6:8.1f} MB  {name}")
        print(f"{(venv - sum(dict(sizes.most_common(12)).values())) / 1e6:8.1f} MB  other packages")
        print(f"{venv / 1e6:8.1f} MB  layer: COPY --from=build /venv")
        print(f"{(total - venv) / 1e6:8.1f} MB  layers: user, manage.py")
        print(f"{total / 1e6:8.1f} MB  over a base of {base / 1e6:.1f}, of {BAR_BYTES / 1e6:.0f}")
        return total <= BAR_BYTES

    def write_runner(self, path: Path) -> None:
        """Writes a program that runs a command as a container of the composed `web` would."""
        service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["web"]
        root = shlex.quote(str(self.root))
        mounts = [f"mount --bind {root} {root}", f"mount -o remount,bind,ro {root}"]
        for each in service["tmpfs"]:
            place, _, options = each.partition(":")
            mounts.append(f"mount -t tmpfs -o {options or 'mode=1777'} tmpfs {root}{place}")
        mounts += [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        user, _, group = service["user"].partition(":")
        variables = shlex.join([*self.config["Env"], "HOME=/home/exhaust"])
        inside = (
            f"exec env -u PYTHONPATH {variables} chroot {root} env -C {self.config['WorkingDir']} "
            f"setpriv --reuid {user} --regid {group} --clear-groups --bounding-set=-all "
            f'--inh-caps=-all --no-new-privs "$@"'
        )
        script = "\n".join(["set -e", *mounts, inside])
        path.write_text(f'#!/bin/sh\nexec unshare --mount sh -c {shlex.quote(script)} sh "$@"\n')
        path.chmod(0o755)


def run_processes(folder: Path, image: Image) -> None:
    runner = folder / "in-image"
    image.write_runner(runner)
    place_folder = folder / "place"
    place_folder.mkdir()
    database = urlsplit(DATABASE)._replace(path=f"/exhaust_{token_hex(6)}")
    broker_port = free_port()
    place = doc_commands.settle(
        place_folder,
        {"docker": f'exec {shlex.quote(sys.executable)} -m tests.compose "$@"'},
        COMPOSE_CONTAINER=str(runner),
        COMPOSE_STATE=str(folder / "state"),
        COMPOSE_DATABASE=database.geturl(),
        COMPOSE_BROKER=f"redis://127.0.0.1:{broker_port}/0",
        **{f"COMPOSE_{name.upper()}_PORT": str(free_port()) for name in PORTS},
    )
    place.environment["COMPOSE_PORT"] = str(place.ports[8000])

    def docker(*words: str, sent: bytes | None = None) -> bytes:
        done = subprocess.run(
            ["docker", "compose", *words], cwd=place_folder, env=place.environment,
            input=sent, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            logs = [
                f"{log.name}\n{log.read_text()[-2000:]}" for log in (folder / "state").glob("*.log")
            ]
            said = done.stderr.decode()[-3000:]
            sys.exit("\n".join([*logs, "docker compose " + " ".join(words), said]))
        return done.stdout

    redis = subprocess.Popen(
        ["redis-server", "--port", str(broker_port), "--save", ""],
        cwd=folder, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    services = ("proxy", "collector", "web", "worker", "nightly", "deliver", "maintain", "beat")
    try:
        first = doc_commands.typed(doc_commands.OPERATIONS)[:1]
        place.run_blocks("start", first)
        print("docs/operations.md#start ran; each process is healthy")
        print(
            docker("exec", "-T", "web", *MANAGE, "shell", "-v", "0", "-c", IMPORT_ALL)
            .decode()
            .strip()
        )
        check_path(place, docker)
        docker("stop", *services)
        check_logs(folder / "state", services)
    finally:
        subprocess.run(
            ["docker", "compose", "kill", *services, "s3"],
            cwd=place_folder, env=place.environment, check=False, capture_output=True,
        )  # fmt: skip
        redis.terminate()
        redis.wait()
        with psycopg.connect(
            database._replace(path="/postgres").geturl(), autocommit=True
        ) as server:
            server.execute(f'DROP DATABASE IF EXISTS "{database.path[1:]}" WITH (FORCE)')


def check_path(place: doc_commands.Place, docker: Any) -> None:
    """Sends events through the proxy and downloads them in each format, by the image's own CLI."""
    scopes = ("--scope", "ingest", "--scope", "export:response")
    create = ("create_key", "a program", "--channel", "ORG_001", *scopes)
    key = docker("exec", "-T", "web", *MANAGE, *create).decode().strip()
    address = f"http://127.0.0.1:{place.ports[8000]}"
    client = ("exec", "-T", "-e", f"EXHAUST_KEY={key}", "-e", f"EXHAUST_URL={address}", "web")
    first = date(2026, 1, 1)
    events = list(generate_answers(EVENTS, 50, start=first, days=3, channel="ORG_001"))
    lines = "".join(json.dumps(event) + "\n" for event in events)
    send = ("exhaust", "send", "-", "--source", "telemetry")
    print(docker(*client, *send, sent=lines.encode()).decode().strip())
    days = f"--from {first} --to {first + timedelta(2)}"
    request = f"uci-response-exhaust --conversation {CONVERSATION_ID} {days}"
    script = f"""set -e
    for format in {" ".join(FORMATS)}; do
      id=$(exhaust submit {request} --format $format --wait)
      exhaust download cli $id --output /tmp/answers.$format -q >&2
      [ -s /tmp/answers.$format ]
    done
    cat /tmp/answers.csv"""
    rows = list(csv.DictReader(io.StringIO(docker(*client, "sh", "-c", script).decode())))
    print(f"{len(rows)} rows downloaded as {', '.join(FORMATS)}")
    if Counter(row["Message ID"] for row in rows) != Counter(event["mid"] for event in events):
        sys.exit("The rows are not the events that were sent.")


def check_logs(state: Path, services: tuple[str, ...]) -> None:
    """What a process says when it lacks something."""
    wrong = [
        f"{name}: {line}"
        for name in services
        for line in (state / f"{name}.log").read_text(errors="replace").splitlines()
        if "Traceback" in line or "ModuleNotFoundError" in line or '"level": "CRITICAL"' in line
    ]
    if wrong:
        sys.exit("\n".join(wrong))


def _output(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout.strip()


def _size(path: Path) -> int:
    """Returns the bytes of its files."""
    found = _output("find", str(path), "-xdev", "-type", "f", "-printf", "%s\\n")
    return sum(map(int, found.split()))


if __name__ == "__main__":
    main()
