"""The compose file is held to the code: every variable is a setting, every command exists."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import get_commands

from config.celery import app
from exhaust.processes import WEB_FLAGS
from tests.doc_commands import OPERATIONS, blocks

ROOT = Path(__file__).parent.parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DEVELOPMENT: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.dev.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "exhaust"}
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS = (ROOT / "config" / "settings.py").read_text()
SECRETS = (
    "SECRET_KEY",
    "EXHAUST_KEY_PEPPER",
    "EXHAUST_ENCRYPTION_KEYS",
    "POSTGRES_PASSWORD",
    "SERVICE_PASSWORD",
    "REDIS_PASSWORD",
    "S3_SECRET_KEY",
)


def command(name: str) -> list[str]:
    command_words = SERVICES[name].get("command")
    if command_words is None:
        match = re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
        assert match
        command_words = yaml.safe_load(match[1])
    return list(command_words)


def test_compose_has_every_service() -> None:
    assert set(OURS) == {
        "migrate", "bucket", "collector", "web", "worker", "nightly", "deliver", "maintain", "beat",
    }  # fmt: skip
    assert set(SERVICES) - set(OURS) == {"proxy", "login", "postgres", "redis", "s3"}


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    for variable in OURS[name]["environment"]:
        assert f'"{variable}"' in SETTINGS, variable


def test_readme_settings_reach_containers() -> None:
    settings = set(re.findall(r'env\.\w+\(\s*"([A-Z0-9_]+)"', SETTINGS))
    container_variables = {name for service in OURS.values() for name in service["environment"]}
    # the data folder; set by developers; set by tests
    assert settings - container_variables == {"EXHAUST_DATA_DIR", "DEBUG", "EXHAUST_FAILPOINTS"}


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_has_a_default(secret: str) -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = re.findall(rf"\$\{{{secret}([^}}]*)\}}", text)
    assert used
    assert set(used) == {":?"}
    assert secret in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    program, *rest = command(name)
    if program == "python":
        assert rest[0] == "manage.py"
        assert rest[1] in get_commands()
    else:
        assert shutil.which(program) or program in {"celery", "uvicorn"}
    options = {part for part in rest if part.startswith("--")}
    if program == "uvicorn":
        help_text = subprocess.run(
            [sys.executable, "-m", "uvicorn", "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert [option for option in options if option not in help_text] == []
        assert rest[0] == "config.asgi:application"
        assert rest[-len(WEB_FLAGS) :] == list(WEB_FLAGS)


def test_every_queue_has_workers() -> None:
    consumed = set()
    for name in ("worker", "nightly", "deliver", "maintain"):
        parts = command(name)
        consumed |= set(parts[parts.index("-Q") + 1].split(","))
    assert consumed == set(app.amqp.queues)


def test_stop_grace_exceeds_shutdown_timeout() -> None:
    for name in ("worker", "nightly", "deliver", "maintain"):
        service = SERVICES[name]
        shutdown_seconds = int(service["environment"]["EXHAUST_WORKER_SHUTDOWN_SECONDS"])
        assert service["stop_signal"] == "SIGQUIT"
        assert int(service["stop_grace_period"].removesuffix("s")) >= shutdown_seconds + 15


@pytest.mark.parametrize("name", SERVICES)
def test_containers_run_with_least_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pids_limit"]
    assert service["read_only"] is True or name == "s3"
    if name in OURS:
        assert service["user"] == "10001:10001"
        assert "10001" in DOCKERFILE
    if name not in ("migrate", "login", "bucket"):
        assert service["mem_limit"]
        assert service["restart"] == "unless-stopped"
    if name not in (*OURS, "login"):
        assert service["volumes"]


def test_images_and_actions_are_pinned() -> None:
    images = [service["image"] for service in SERVICES.values() if service["image"] != "exhaust"]
    images += re.findall(r"^ARG PYTHON=(\S+)", DOCKERFILE, re.M)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${PYTHON}"}
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    images += re.findall(r"^ +image: (\S+)", workflow, re.M)
    assert len(images) == 8
    assert [name for name in images if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", name)] == []
    actions = re.findall(r"uses: (.*)", workflow)
    assert [name for name in actions if not re.search(r"@[0-9a-f]{40} # v[\d.]+$", name)] == []


def test_image_check_is_of_web_processes() -> None:
    check = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.M)
    assert check
    assert SERVICES["web"]["healthcheck"]["test"] == ["CMD", *yaml.safe_load(check[1])]
    without = [name for name, each in OURS.items() if "healthcheck" not in each]
    assert without == ["migrate", "bucket"]  # they end before it asks
    assert SERVICES["beat"]["healthcheck"] == {"disable": True}


def test_image_copies_named_folders() -> None:
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)).split()
    files = {"requirements.lock", "requirements.build.lock", "pyproject.toml", "README.md"}
    files |= {"LICENSE", "manage.py"}
    assert set(copied) == files | {"config", "ingest", "exhaust"}


def test_service_owns_no_table() -> None:
    users = {
        name: each["environment"]["DATABASE_URL"].partition("//")[2].partition(":")[0]
        for name, each in OURS.items()
    }
    assert users == dict.fromkeys(OURS, "exhaust_service") | {"migrate": "exhaust"}
    assert SERVICES["postgres"]["environment"]["POSTGRES_USER"] == "exhaust"
    assert SERVICES["login"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"}
    }
    assert all("login" in OURS[name]["depends_on"] for name in set(OURS) - {"migrate", "bucket"})


def test_redis_asks_for_a_password() -> None:
    words = command("redis")
    assert words[words.index("--requirepass") + 1] == "${REDIS_PASSWORD:?}"
    assert SERVICES["redis"]["environment"] == {"REDISCLI_AUTH": "${REDIS_PASSWORD:?}"}
    for each in OURS.values():
        assert each["environment"]["CELERY_BROKER_URL"].startswith("redis://:${REDIS_PASSWORD:?}@")


def test_dependencies_wait_for_health() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            must_complete = how["condition"] == "service_completed_successfully"
            assert must_complete or "healthcheck" in SERVICES[other], (name, other)


def test_redis_persists_and_never_evicts() -> None:
    command_line = " ".join(command("redis"))
    assert "--appendonly yes" in command_line
    assert "--maxmemory-policy noeviction" in command_line


def test_dev_file_overrides_known_services() -> None:
    assert set(DEVELOPMENT["services"]) <= set(SERVICES)
    for name in ("collector", "web"):
        assert DEVELOPMENT["services"][name]["environment"] == {"DEBUG": "true"}


def test_only_the_proxy_is_reached() -> None:
    published = {name for name, service in SERVICES.items() if "ports" in service}
    assert published == {"proxy"}
    assert {OURS[name]["environment"]["EXHAUST_BEHIND_PROXY"] for name in OURS} == {"true"}
    config = (ROOT / "config" / "chart" / "haproxy.cfg").read_text()
    for name in ("collector", "web"):
        assert f"presetenv {name.upper()}_ADDRESS {name}:8000" in config
    for name in SERVICES["proxy"]["environment"]:
        assert name in config
    settings = re.findall(r"^    presetenv (\w+)", config, re.M)
    assert {*SERVICES["proxy"]["environment"]} <= {*settings, "TLS_CERTIFICATE", "STORAGE_ADDRESS"}


def test_proxy_health_check_asks_readyz() -> None:
    _, *check = SERVICES["proxy"]["healthcheck"]["test"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = [word.replace("$$", "$").replace("/8000;", f"/{port};") for word in check]
        for status, code in ((200, 0), (503, 1)):
            process = subprocess.Popen(words)
            client, _ = server.accept()
            with client:
                sent = b""
                while not sent.endswith(b"\r\n\r\n"):
                    sent += client.recv(100)
                assert sent == b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n"
                client.sendall(f"HTTP/1.1 {status} -\r\n\r\n".encode())
            assert process.wait(10) == code


def test_image_installs_constraints() -> None:
    pinned = re.compile(r"^([\w.-]+)==([\w.]+)", re.M)
    locked = dict(pinned.findall((ROOT / "requirements.lock").read_text()))
    constraints = dict(pinned.findall((ROOT / "constraints.txt").read_text()))
    building = dict(pinned.findall((ROOT / "requirements.build.lock").read_text()))
    assert {"hatchling", "cyclonedx-bom"} <= set(building)
    assert {name: constraints.get(name, version) for name, version in locked.items()} == locked
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(re.findall(r"^[\w-]+", "\n".join(project["dependencies"]), re.M)) <= set(locked)
    for name in ("requirements.lock", "requirements.build.lock"):
        assert f"--require-hashes -r {name}" in DOCKERFILE


def test_commands_match_without_docker() -> None:
    (block,) = [each for each in blocks(OPERATIONS) if each.text.count("celery -A") == 5]
    typed = [shlex.split(line) for line in block.text.replace("\\\n", "").splitlines()]
    names = ("collector", "worker", "nightly", "deliver", "maintain", "beat")
    assert typed[1:] == [command(name) for name in names]
    (behind,) = [each for each in blocks(OPERATIONS) if "haproxy -W" in each.text]
    served, web, proxy = [
        shlex.split(line) for line in behind.text.replace("\\\n", "").splitlines() if line[0] != "#"
    ]
    for words, name, port in ((served, "collector", "8001"), (web, "web", "8002")):
        ours = {"0.0.0.0": "127.0.0.1", "8000": port}  # noqa: S104
        assert words == [ours.get(word, word) for word in command(name)]
    assert proxy[2:-1] == command("proxy")[:-1]
    assert (ROOT / proxy[-1]).is_file()
    assert [" ".join(command(name)[:3]) for name in ("migrate", "bucket")] == [
        part.strip() for part in " ".join(typed[0]).split("&&")
    ]
