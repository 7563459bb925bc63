"""`docker compose` without Docker, for docs/operations.md: our services as processes of this
machine, by the very commands and variables of docker-compose.yml.

PostgreSQL and Redis are those of the suite, with a database of this place; the storage is
`tests.s3server`. COMPOSE_WITHOUT names services that are not started. COMPOSE_CONTAINER is a
program that runs a command in our image, for `tools.image`. It stands in for what the page types:

    up -d --wait [SERVICE…]   exec [-T] SERVICE COMMAND…   run --rm SERVICE [COMMAND…]
    stop|restart|kill [SERVICE…]   build   ps   logs
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import yaml

from tests import s3server

ROOT = Path(__file__).parent.parent
STATE = Path(os.environ.get("COMPOSE_STATE", ""))
SERVERS = ("postgres", "redis", "s3")
ONCE = ("migrate", "login", "bucket")
WITHOUT = os.environ.get("COMPOSE_WITHOUT", "").split()
CONTAINER = os.environ.get("COMPOSE_CONTAINER", "").split()
PATIENCE = 120.0


def main(arguments: list[str]) -> int:
    if arguments[:3] == ["buildx", "imagetools", "inspect"]:
        print("sha256:" + hashlib.sha256(arguments[3].encode()).hexdigest())  # noqa: T201
        return 0
    assert arguments[0] == "compose", arguments
    verb, *rest = arguments[1:]
    if verb in ("exec", "run"):
        return inside(verb, rest)
    named = [part for part in rest if re.fullmatch("[a-z][a-z0-9]+", part)]
    match verb:
        case "up":
            up(named or [name for name in services() if name not in ONCE], whole=not named)
        case "stop" | "kill":
            for name in named:
                stop(name, signal.SIGKILL if verb == "kill" else None)
        case "restart":
            for name in named:
                stop(name)
            up(named, whole=False)
        case "ps":
            for name in services():
                print(name, "running" if alive(name) else "exited")  # noqa: T201
        case "logs":
            for name in named:
                sys.stdout.write((STATE / f"{name}.log").read_text(errors="replace")[-4000:])
        case "build" | "pull":
            pass
        case _:
            raise SystemExit(f"compose {verb}: not stood in for")
    return 0


def services() -> dict[str, dict[str, Any]]:
    """The composed services, their `${VARIABLES}` taken from `.env`."""
    env_file = dict(line.split("=", 1) for line in Path(".env").read_text().splitlines() if line)

    def value(match: re.Match[str]) -> str:
        setting = env_file.get(match[1], "")
        if match[2] == ":?" and not setting:
            raise SystemExit(f"required variable {match[1]} is missing a value")
        return setting or (match[2] or "").removeprefix(":-")

    text = re.sub(r"\$\{(\w+)(:\?|:-[^}]*)?\}", value, Path("docker-compose.yml").read_text())
    parsed_services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    for service in parsed_services.values():
        variables = service.get("environment", {})
        # one without a value is passed on, or not there at all
        service["environment"] = {
            name: env_file.get(name) if value is None else value
            for name, value in variables.items()
            if value is not None or name in env_file
        }
    return parsed_services


def environment(name: str) -> dict[str, str]:
    """Returns the environment of a service's container, with this machine's server addresses."""
    variables = {key: str(value) for key, value in services()[name].get("environment", {}).items()}
    port = os.environ["COMPOSE_PORT"]
    if name == "proxy":
        variables |= {
            "HTTP_ADDRESS": f"127.0.0.1:{port}",
            "COLLECTOR_ADDRESS": f"127.0.0.1:{os.environ['COMPOSE_COLLECTOR_PORT']}",
            "WEB_ADDRESS": f"127.0.0.1:{os.environ['COMPOSE_WEB_PORT']}",
            "STORAGE_ADDRESS": f"127.0.0.1:{storage_port()}",
            "STORAGE_BIND": f"127.0.0.1:{os.environ['COMPOSE_LINKS_PORT']}",
        }
    server = urlsplit(os.environ["COMPOSE_DATABASE"])
    if name == "login":
        variables |= {
            "PGHOST": str(server.hostname),
            "PGPORT": str(server.port),
            "PGUSER": str(server.username),
            "PGDATABASE": server.path.strip("/"),
        }
    named = urlsplit(variables.get("DATABASE_URL", ""))
    if named.username == "exhaust_service":
        server = server._replace(netloc=f"{named.netloc.partition('@')[0]}@{_host_of(server)}")
    ours = {
        "EXHAUST_DATA_DIR": str(STATE / name),
        "EXHAUST_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "DATABASE_URL": server.geturl(),
        "CELERY_BROKER_URL": os.environ["COMPOSE_BROKER"],
        "S3_ENDPOINT_URL": f"http://127.0.0.1:{storage_port()}",
        "S3_PUBLIC_ENDPOINT_URL": f"http://127.0.0.1:{os.environ['COMPOSE_LINKS_PORT']}",
        "AWS_ACCESS_KEY_ID": s3server.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": s3server.SECRET_KEY,
        "EXHAUST_METRICS_PORT": port_of(name) or "0",  # each container has its own
    }
    inherited_names = ("PATH", "PYTHONPATH", "HOME", "LANG")
    return {
        **{key: os.environ[key] for key in inherited_names if key in os.environ},
        **variables,
        **{
            key: value
            for key, value in ours.items()
            if key in variables or (key == "EXHAUST_DATA_DIR" and not CONTAINER)
        },
    }


def _host_of(server: SplitResult) -> str:
    return server.netloc.rpartition("@")[2]


def port_of(name: str) -> str:
    """Returns the port in place of the one that a service has in its own container, or ''."""
    return os.environ.get(f"COMPOSE_{name.upper()}_PORT", "")


def in_image(name: str, words: list[str]) -> list[str]:
    return [*CONTAINER, *words] if services()[name]["image"] == "exhaust" else words


def words_of(name: str) -> list[str]:
    command_words = services()[name].get("command")
    if command_words is None:
        match = re.search(r"^CMD (\[.*\])$", Path("Dockerfile").read_text(), re.M)
        assert match
        command_words = yaml.safe_load(match[1])
    ours = {
        "8000": port_of(name),
        "0.0.0.0": "127.0.0.1",  # noqa: S104
        "/usr/local/etc/haproxy/haproxy.cfg": str(ROOT / "config" / "chart" / "haproxy.cfg"),
    }
    return [ours.get(part, part) for part in command_words]


def up(names: list[str], *, whole: bool) -> None:
    for name in names:
        if name in SERVERS:
            serve(name)
    if whole:
        for name in ONCE:
            once(name)
    for name in names:
        if name not in (*SERVERS, *ONCE, *WITHOUT):
            start(name)
    if CONTAINER:
        for name in names:
            until_healthy(name)
    if {"proxy", "collector", "web"} & set(names):
        until_ready()


def once(name: str) -> None:
    """Runs a one-off service unless its inputs are unchanged; Compose would run it to no effect."""
    mark_file, mark = STATE / f"{name}.mark", marked(name)
    if mark_file.exists() and mark_file.read_text() == mark:
        return
    if code := command("run", name, []):
        raise SystemExit(code)
    STATE.mkdir(exist_ok=True)
    mark_file.write_text(mark)


def marked(name: str) -> str:
    """Returns a digest of a container's command and environment."""
    variables = {key: value for key, value in environment(name).items() if key != "PATH"}
    return hashlib.sha256(json.dumps([variables, words_of(name)]).encode()).hexdigest()


def serve(name: str) -> None:
    """A server that is the suite's is there; its volume is made when it is missing."""
    if name == "postgres":
        database = urlsplit(os.environ["COMPOSE_DATABASE"]).path.strip("/")
        find_database = postgres(
            "psql", "-Atc", f"SELECT 1 FROM pg_database WHERE datname = '{database}'"
        )
        if not subprocess.run(find_database, check=True, capture_output=True).stdout:
            subprocess.run(postgres("createdb", database), check=True)
    elif name == "s3" and not alive("s3"):
        launch(
            "s3",
            [
                *(sys.executable, "-m", "tests.s3server"),
                *("--port", str(storage_port()), "--dir", str(STATE / "s3")),
            ],
            dict(os.environ) | {"PYTHONPATH": str(ROOT)},
        )


def postgres(program: str, *arguments: str) -> list[str]:
    server = urlsplit(os.environ["COMPOSE_DATABASE"])
    address = urlunsplit(server._replace(path="/postgres"))
    if program == "psql":
        return ["psql", "-d", address, *arguments]
    return [
        program,
        "-h",
        str(server.hostname),
        "-p",
        str(server.port),
        "-U",
        str(server.username),
        *arguments,
    ]


def inside(verb: str, arguments: list[str]) -> int:
    """`exec` and `run`: options `-T`, `--rm`, `--user ID`, `-e NAME=VALUE`, `-v HERE:THERE`."""
    more: dict[str, str] = {}
    mounts: dict[str, str] = {}
    while arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option == "-e":
            name, _, value = arguments.pop(0).partition("=")
            more |= {} if name == "EXHAUST_DATA_DIR" else {name: value}  # its own is kept
        elif option == "--user":
            del arguments[0]
        elif option == "-v":
            outside_path, inside_path, *_ = arguments.pop(0).split(":")
            mounts[inside_path] = outside_path
    name, *command_words = arguments
    return command(verb, name, [mounts.get(part, part) for part in command_words], more)


def command(verb: str, name: str, arguments: list[str], more: dict[str, str] | None = None) -> int:
    """Runs a command in the running container, or in a new one."""
    if name == "redis":
        server = urlsplit(os.environ["COMPOSE_BROKER"])
        assert arguments[0] == "redis-cli", arguments
        to = ["-h", str(server.hostname), "-p", str(server.port), "-n", server.path.strip("/")]
        return subprocess.run(["redis-cli", *to, *arguments[1:]], check=False).returncode
    if name == "postgres":
        return subprocess.run(in_postgres(arguments), check=False).returncode
    if verb == "exec" and not alive(name):
        raise SystemExit(f'service "{name}" is not running')
    command_words = in_image(name, arguments or words_of(name))
    return subprocess.run(
        command_words, env=environment(name) | (more or {}), check=False
    ).returncode


def in_postgres(arguments: list[str]) -> list[str]:
    """Returns a client's command with this machine's user and database in place of `exhaust`."""
    server = urlsplit(os.environ["COMPOSE_DATABASE"])
    program, *rest = arguments
    ours: list[str] = []
    for before, part in zip([program, *rest], rest, strict=False):
        if part == "exhaust":
            part = str(server.username) if before == "-U" else server.path.strip("/")
        ours.append(part)
    if program == "psql" and "-d" not in ours:
        ours += ["-d", server.path.strip("/")]
    return [program, "-h", str(server.hostname), "-p", str(server.port), *ours]


def start(name: str) -> None:
    """Starts a service unless it runs with the same command and environment, as Compose does."""
    mark_file, mark = STATE / f"{name}.mark", marked(name)
    if alive(name) and mark_file.exists() and mark_file.read_text() == mark:
        return
    stop(name)
    shutil.rmtree(STATE / name, ignore_errors=True)  # a container's tmpfs
    (STATE / name).mkdir(parents=True)
    mark_file.write_text(mark)
    launch(name, in_image(name, words_of(name)), environment(name))


def launch(name: str, arguments: list[str], environment: dict[str, str]) -> None:
    STATE.mkdir(exist_ok=True)
    with (STATE / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    (STATE / f"{name}.pid").write_text(str(child.pid))


def alive(name: str) -> bool:
    """Whether its process runs; an ended one is not waited for by us, so it may be a zombie."""
    if name in ("postgres", "redis"):
        return True
    with suppress(OSError, ValueError):
        pid = int((STATE / f"{name}.pid").read_text())
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stop(name: str, number: int | None = None) -> None:
    if name in ("postgres", "redis") or not alive(name):
        return
    pid = int((STATE / f"{name}.pid").read_text())
    signal_name = services()[name].get("stop_signal", "SIGTERM")
    os.kill(pid, getattr(signal, signal_name) if number is None else number)
    until = time.monotonic() + PATIENCE
    while alive(name) and time.monotonic() < until:
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def until_healthy(name: str) -> None:
    """Waits for the composed check of a service of ours, in its container."""
    check = services()[name].get("healthcheck", {}).get("test", ["NONE"])
    if services()[name]["image"] != "exhaust" or check[0] != "CMD":
        return
    words = [re.sub(r":(8000|9100)\b", f":{port_of(name)}", word) for word in check[1:]]
    end = time.monotonic() + PATIENCE
    while command("exec", name, words):
        if time.monotonic() > end:
            raise SystemExit((STATE / f"{name}.log").read_text(errors="replace")[-4000:])
        time.sleep(0.5)


def until_ready() -> None:
    started_at = time.monotonic()
    while (seconds := time.monotonic() - started_at) < PATIENCE:
        with suppress(OSError):
            address = f"http://127.0.0.1:{os.environ['COMPOSE_PORT']}/readyz"
            with urllib.request.urlopen(address, timeout=5) as answer:
                # a busy machine may be late with the first look at a part that is there
                if b'"degraded"' not in answer.read() or seconds > PATIENCE / 4:
                    return
        time.sleep(0.2)
    logs = [(STATE / f"{name}.log") for name in ("proxy", "collector", "web")]
    raise SystemExit("\n".join(log.read_text(errors="replace")[-4000:] for log in logs))


def storage_port() -> int:
    return int(os.environ["COMPOSE_STORAGE_PORT"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
