import os
import runpy
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core import management
from django.db import OperationalError

ROOT = Path(__file__).parent.parent.parent
SETTINGS = ROOT / "config" / "settings.py"
KNOWN = [
    "EXHAUST_DATA_DIR",
    "DATABASE_URL",
    "CELERY_BROKER_URL",
    "EXHAUST_PUBLIC_URL",
    "DEBUG",
    "EXHAUST_BEHIND_PROXY",
    "ALLOWED_HOSTS",
    "SECRET_KEY",
    "EXHAUST_ENCRYPTION_KEYS",
    "EXHAUST_KEY_PEPPER",
    "S3_BUCKET",
    "S3_ENDPOINT_URL",
    "S3_PUBLIC_ENDPOINT_URL",
    "S3_REGION",
    "S3_PRIVATE_KMS_KEY_ID",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "EXHAUST_MAX_DAYS",
    "EXHAUST_LINK_SECONDS",
    "EXHAUST_MAX_ROWS",
    "EXHAUST_PART_BYTES",
    "EXHAUST_MAX_SECONDS",
    "EXHAUST_MAX_RUNNING_PER_CHANNEL",
    "EXHAUST_MAX_QUEUED_PER_CHANNEL",
    "EXHAUST_EVENT_RETENTION_DAYS",
    "EXHAUST_REJECTED_RETENTION_DAYS",
    "EXHAUST_FILE_RETENTION_DAYS",
    "EXHAUST_JOB_RETENTION_DAYS",
    "EXHAUST_ARCHIVE_URL",
    "EXHAUST_ARCHIVE_AFTER_DAYS",
    "EXHAUST_PROCESSES",
    "EXHAUST_ENGINE",
    "EXHAUST_DAILY_HOUR",
    "EXHAUST_DAILY_TIMEZONE",
    "EMAIL_URL",
    "EXHAUST_ADMINISTRATOR",
    "EXHAUST_KEY_MAX_DAYS",
    "EXHAUST_OIDC_CLIENT_ID",
    "EXHAUST_OIDC_CLIENT_SECRET",
    "EXHAUST_OIDC_GROUPS_CLAIM",
    "EXHAUST_OIDC_NAME",
    "EXHAUST_OIDC_URL",
    "EXHAUST_METRICS_PORT",
    "EXHAUST_METRICS_TOKEN",
    "EXHAUST_WORKER_SHUTDOWN_SECONDS",
    "EXHAUST_FAILPOINTS",
    "EXHAUST_PUSH_ALLOWED_NETWORKS",
    "EXHAUST_PUSH_SECONDS",
    "EXHAUST_DATABASE_POOL_SIZE",
    "EXHAUST_RATE_LIMIT_MULTIPLIER",
    "EXHAUST_LOG_LEVEL",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
]
FERNET = Fernet.generate_key().decode()
STRONG, PEPPER = token_urlsafe(50), token_urlsafe(50)
SECRETS = {"SECRET_KEY": STRONG, "EXHAUST_KEY_PEPPER": PEPPER, "EXHAUST_ENCRYPTION_KEYS": FERNET}
POSTGRESQL = "postgresql://me:pass@db.example:5433/exhaust"


@pytest.fixture
def var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs with a folder of the test's own and without other variables."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EXHAUST_DATA_DIR", str(tmp_path / "var"))
    return tmp_path / "var"


@pytest.fixture
def read(var: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Reads the settings anew under the given variables."""

    def _read(**variables: str) -> dict[str, Any]:
        with monkeypatch.context() as environment:
            for name, value in variables.items():
                environment.setenv(name, value)
            return runpy.run_path(str(SETTINGS))

    return _read


def failure(read: Any, **variables: str) -> str:
    with pytest.raises(SystemExit) as caught:
        read(**variables)
    return str(caught.value)


def test_archive_outlives_its_hot_window(read: Any):
    message = failure(
        read,
        EXHAUST_ARCHIVE_URL="archive",
        EXHAUST_ARCHIVE_AFTER_DAYS="60",
        EXHAUST_EVENT_RETENTION_DAYS="60",
    )
    assert message.startswith("EXHAUST_ARCHIVE_AFTER_DAYS: ")
    assert read(EXHAUST_ARCHIVE_AFTER_DAYS="60", EXHAUST_EVENT_RETENTION_DAYS="60")


def test_archive_alone_may_be_in_a_bucket(read: Any):
    settings = read(
        EXHAUST_ARCHIVE_URL="s3://past/events/", S3_ENDPOINT_URL="http://s3.internal:9000"
    )
    assert settings["EXHAUST_ARCHIVE_URL"] == "s3://past/events"
    assert settings["S3_BUCKET"] == ""


# No variable set ----------------------------------------------------------------------------------


def test_nothing_set_means_embedded(read: Any, var: Path):
    settings = read()

    assert settings["DATABASES"]["default"]["ENGINE"] == "django.db.backends.sqlite3"
    assert settings["DATABASES"]["default"]["NAME"] == str(var / "exhaust.sqlite3")
    assert settings["CELERY_BROKER_URL"] == "filesystem://localhost//"
    assert settings["CELERY_WORKER_POOL"] == "solo"
    assert (var / "broker" / "messages").is_dir()
    assert (var / "broker" / "control").is_dir()
    assert settings["FILES_DIR"] == var / "files"
    assert settings["S3_BUCKET"] == ""
    assert settings["EXHAUST_PUBLIC_URL"] == "http://127.0.0.1:8000"
    assert settings["DEBUG"] is False
    assert (settings["EXHAUST_MAX_DAYS"], settings["EXHAUST_LINK_SECONDS"]) == (366, 86_400)
    assert settings["EXHAUST_FILE_RETENTION_DAYS"] == 30
    assert "SECURE_SSL_REDIRECT" not in settings
    assert "SECURE_PROXY_SSL_HEADER" not in settings


def test_empty_variable_counts_as_unset(read: Any, var: Path):
    valued = (
        "EVENT",
        "EXHAUST_",
        "DEBUG",
        "BEHIND",
        "EXHAUST_DATABASE_POOL_SIZE",
        "LOG",
        "EXHAUST_METRICS_PORT",
        "PUBLIC",
        "RATE",
        "WORKER",
    )
    texts = {name: "" for name in KNOWN if not name.startswith(valued)}

    assert read(**texts)["DATABASES"] == read()["DATABASES"]
    assert read(**texts)["SECRET_KEY"] == read()["SECRET_KEY"]


def test_secrets_are_made_once_for_the_owner(read: Any, var: Path):
    first, second = read(), read()

    for name in SECRETS:
        secret_file = var / f"{name.lower().removeprefix('exhaust_')}.txt"
        assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
        assert first[name] == second[name]
        secret = first[name][0] if name == "EXHAUST_ENCRYPTION_KEYS" else first[name]
        assert secret_file.read_text() == secret
        assert len(secret) >= 44
    assert (
        len({first["SECRET_KEY"], first["EXHAUST_KEY_PEPPER"], *first["EXHAUST_ENCRYPTION_KEYS"]})
        == 3
    )
    assert sorted(path.name for path in var.glob("*.*")) == [
        "encryption_keys.txt",
        "key_pepper.txt",
        "secret_key.txt",
    ]


def test_given_secret_writes_no_file(read: Any, var: Path):
    settings = read(**SECRETS)

    assert (settings["SECRET_KEY"], settings["EXHAUST_KEY_PEPPER"]) == (STRONG, PEPPER)
    assert settings["EXHAUST_ENCRYPTION_KEYS"] == [FERNET]
    assert list(var.glob("*.txt")) == []


def test_concurrent_starts_agree_on_secrets(var: Path):
    # given an empty folder, when three processes start at once
    program = (
        "import django; django.setup(); from django.conf import settings;"
        "from django.core.management import call_command; call_command('check');"
        "print(settings.SECRET_KEY, settings.EXHAUST_KEY_PEPPER, settings.EXHAUST_ENCRYPTION_KEYS)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name not in KNOWN},
        "EXHAUST_DATA_DIR": str(var),
        "DJANGO_SETTINGS_MODULE": "config.settings",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in started]

    # then all of them work, with the same secrets
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert len(list(var.glob("*.txt"))) == 3


# servers ----------------------------------------------------------------------------------------


def test_one_variable_selects_each_server(read: Any, var: Path):
    settings = read(
        **SECRETS,
        DATABASE_URL=POSTGRESQL,
        CELERY_BROKER_URL="redis://redis.example:6379/0",
        S3_BUCKET="exhaust",
        S3_ENDPOINT_URL="http://s3.internal:9000",
        S3_PUBLIC_ENDPOINT_URL="https://files.example",
    )

    database = settings["DATABASES"]["default"]
    assert database["ENGINE"] == "ingest.db.postgresql"
    assert (database["HOST"], database["PORT"]) == ("db.example", "5433")
    assert (database["NAME"], database["PASSWORD"]) == ("exhaust", "pass")
    assert database["OPTIONS"]["pool"]["max_size"] == 8
    assert settings["CELERY_BROKER_URL"] == "redis://redis.example:6379/0"
    assert "CELERY_WORKER_POOL" not in settings
    assert not (var / "broker").exists()
    assert settings["S3_PUBLIC_ENDPOINT_URL"] == "https://files.example"


def test_url_parameters_reach_libpq(read: Any):
    url = (
        "postgresql://me@one.example:5433,two.example/exhaust?sslmode=verify-full"
        "&sslrootcert=/nonexistent.pem&target_session_attrs=read-write&connect_timeout=7"
        "&application_name=mine&options=-c%20geqo%3Doff&keepalives_idle=3"
    )

    database = read(**SECRETS, DATABASE_URL=url)["DATABASES"]["default"]

    assert (database["HOST"], database["PORT"]) == ("one.example,two.example", "5433,")
    assert database["OPTIONS"] == {
        "pool": {"max_size": 8, "timeout": 10},
        "prepare_threshold": 5,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
        "sslmode": "verify-full",
        "sslrootcert": "/nonexistent.pem",
        "keepalives_idle": "3",
        "target_session_attrs": "read-write",
        "connect_timeout": "7",
        "application_name": "mine",
        "options": "-c geqo=off",
    }


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("sslmod=require", "libpq has no parameter 'sslmod'; did you mean sslmode?"),
        ("nope=1", "libpq has no parameter 'nope'; PostgreSQL's manual lists them."),
        ("sslmode=requre", 'invalid sslmode value: "requre".'),
        ("target_session_attrs=rw", 'invalid target_session_attrs value: "rw".'),
    ],
)
def test_unknown_url_parameter_stops_start(read: Any, query: str, sentence: str):
    url = f"{POSTGRESQL}?{query}"

    assert failure(read, **SECRETS, DATABASE_URL=url) == f"DATABASE_URL: {sentence}"


def test_command_without_connection_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any) -> None:
        raise OperationalError("DATABASE_URL: cannot connect: refused.")

    monkeypatch.setattr(management, "execute_from_command_line", fail)

    with pytest.raises(SystemExit, match=r"^DATABASE_URL: cannot connect: refused\.$"):
        runpy.run_path(str(ROOT / "manage.py"), run_name="__main__")


def test_url_may_name_a_socket(read: Any):
    url = "postgresql:///exhaust?host=/run/postgresql"

    assert read(**SECRETS, DATABASE_URL=url)["DATABASES"]["default"]["HOST"] == "/run/postgresql"


def test_links_default_to_s3_endpoint(read: Any):
    settings = read(**SECRETS, S3_BUCKET="b", S3_ENDPOINT_URL="http://s3.internal:9000")

    assert settings["S3_PUBLIC_ENDPOINT_URL"] == "http://s3.internal:9000"


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize(
    "server",
    [
        {"DATABASE_URL": POSTGRESQL},
        {"CELERY_BROKER_URL": "redis://redis.example/0"},
        {"S3_BUCKET": "exhaust"},
    ],
    ids=lambda server: next(iter(server)),
)
def test_servers_require_given_secrets(read: Any, var: Path, server: dict[str, str], missing: str):
    others = {name: value for name, value in SECRETS.items() if name != missing}

    sentence = failure(read, **server, **others)

    assert sentence == (
        f"{missing}: must be set as soon as a database, broker or S3 server is named."
    )
    assert list(var.glob("*.txt")) == []


def test_https_url_secures_cookies(read: Any):
    settings = read(
        EXHAUST_PUBLIC_URL="https://exhaust.example/", ALLOWED_HOSTS="a.example,b.example"
    )

    assert settings["EXHAUST_PUBLIC_URL"] == "https://exhaust.example"
    assert settings["SESSION_COOKIE_SECURE"] is settings["CSRF_COOKIE_SECURE"] is True
    assert settings["SECURE_SSL_REDIRECT"] is True
    assert settings["SECURE_HSTS_SECONDS"] == 31_536_000
    assert settings["SECURE_HSTS_INCLUDE_SUBDOMAINS"] is True
    assert settings["CSRF_TRUSTED_ORIGINS"] == ["https://exhaust.example"]
    assert settings["SESSION_COOKIE_NAME"] == "__Host-session"
    assert settings["CSRF_COOKIE_NAME"] == "__Host-csrf"
    assert settings["ALLOWED_HOSTS"] == [
        *("exhaust.example", "127.0.0.1", "localhost", "[::1]", "a.example", "b.example")
    ]


@pytest.mark.parametrize(
    ("value", "proxies"),
    [("", 0), ("false", 0), ("0", 0), ("true", 1), ("True", 1), ("on", 1), ("1", 1), ("2", 2)],
)
def test_behind_proxy_is_a_number(read: Any, value: str, proxies: int):
    assert read(EXHAUST_BEHIND_PROXY=value)["EXHAUST_BEHIND_PROXY"] == proxies


def test_forwarded_scheme_needs_a_proxy(read: Any):
    assert read(EXHAUST_BEHIND_PROXY="true")["SECURE_PROXY_SSL_HEADER"] == (
        "HTTP_X_FORWARDED_PROTO",
        "https",
    )
    assert "SECURE_PROXY_SSL_HEADER" not in read(EXHAUST_BEHIND_PROXY="false")


def test_encryption_keys_keep_their_order(read: Any):
    other = Fernet.generate_key().decode()

    assert read(EXHAUST_ENCRYPTION_KEYS=f"{other},{FERNET}")["EXHAUST_ENCRYPTION_KEYS"] == [
        other,
        FERNET,
    ]


# wrong or half-set ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "sentence", "variables"),
    [
        ("AWS_SECRET_ACCESS_KEY", "must be set, its other half is.", {"AWS_ACCESS_KEY_ID": "a"}),
        ("AWS_ACCESS_KEY_ID", "must be set, its other half is.", {"AWS_SECRET_ACCESS_KEY": "a"}),
        (
            "S3_BUCKET",
            "must be set, since an S3 endpoint is.",
            {"S3_ENDPOINT_URL": "http://s3.internal:9000"},
        ),
        (
            "S3_BUCKET",
            "must be set, since a KMS key for its private files is.",
            {"S3_PRIVATE_KMS_KEY_ID": "alias/exhaust-private"},
        ),
        (
            "S3_ENDPOINT_URL",
            "'s3.internal:9000' is no http:// or https:// address.",
            {"S3_BUCKET": "b", "S3_ENDPOINT_URL": "s3.internal:9000"},
        ),
        (
            "S3_PUBLIC_ENDPOINT_URL",
            "'files.example' is no http:// or https:// address.",
            {"S3_BUCKET": "b", "S3_PUBLIC_ENDPOINT_URL": "files.example"},
        ),
        (
            "CELERY_BROKER_URL",
            "write redis://host:6379/0, or leave it empty.",
            {**SECRETS, "CELERY_BROKER_URL": "amqp://rabbit.example"},
        ),
    ],
    ids=lambda part: part if isinstance(part, str) and part.isupper() else "",
)
def test_a_half_set_variable_stops_the_start(
    read: Any, variable: str, sentence: str, variables: dict[str, str]
):
    assert failure(read, **variables) == f"{variable}: {sentence}"


@pytest.mark.parametrize(
    "url", ["exhaust.example", "ftp://exhaust.example", "https://", "//x", "", "http://[::1"]
)
def test_a_wrong_public_url_stops_the_start(read: Any, url: str):
    assert failure(read, EXHAUST_PUBLIC_URL=url).startswith("EXHAUST_PUBLIC_URL: ")


@pytest.mark.parametrize("variable", ["S3_ENDPOINT_URL", "S3_PUBLIC_ENDPOINT_URL"])
@pytest.mark.parametrize("url", ["http://[::1", "https://", "http:///bucket"])
def test_s3_url_without_host_stops_start(read: Any, variable: str, url: str):
    variables = {**SECRETS, "S3_BUCKET": "b", variable: url}

    assert failure(read, **variables).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "mysql://db.example/exhaust",
        "oracle://db.example/exhaust",
        "unknown://db.example/exhaust",
        "postgresql://db.example:5432/",
        "postgresql://db.example:port/exhaust",
        "postgresql://[db/exhaust",
        "postgresql://db.example/exhaust?sslmode",
        "postgresql://db.example%zz/exhaust",
        "sqlite:",
        "db.example:5432/exhaust",
    ],
)
def test_wrong_database_url_hides_password(read: Any, url: str):
    url = url.replace("//db", "//me:hunter2@db")

    sentence = failure(read, **SECRETS, DATABASE_URL=url)

    assert sentence.startswith("DATABASE_URL: ")
    assert "hunter2" not in sentence


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EXHAUST_MAX_DAYS", "many"),
        ("EXHAUST_MAX_DAYS", "0"),
        ("EXHAUST_MAX_DAYS", "-1"),
        ("EXHAUST_MAX_DAYS", "1.5"),
        ("EXHAUST_LINK_SECONDS", "0"),
        ("EXHAUST_LINK_SECONDS", "604801"),
        ("EXHAUST_FILE_RETENTION_DAYS", "0"),
        ("EXHAUST_JOB_RETENTION_DAYS", "0"),
        ("EXHAUST_DAILY_HOUR", "24"),
        ("EXHAUST_DAILY_TIMEZONE", "Mars/Olympus"),
        ("EXHAUST_DAILY_TIMEZONE", "../UTC"),
        ("EXHAUST_FILE_RETENTION_DAYS", ""),
        ("EXHAUST_MAX_ROWS", "0"),
        ("EXHAUST_MAX_SECONDS", "0"),
        ("EXHAUST_MAX_SECONDS", "2000001"),
        ("EXHAUST_PART_BYTES", "-1"),
        ("EXHAUST_MAX_RUNNING_PER_CHANNEL", "0"),
        ("EXHAUST_MAX_QUEUED_PER_CHANNEL", "0"),
        ("EXHAUST_DATABASE_POOL_SIZE", "0"),
        ("EXHAUST_EVENT_RETENTION_DAYS", "30"),
        ("EXHAUST_EVENT_RETENTION_DAYS", "-1"),
        ("EXHAUST_ARCHIVE_AFTER_DAYS", "0"),
        ("EXHAUST_PROCESSES", "0"),
        ("EXHAUST_ENGINE", "dask://head:8786"),
        ("EXHAUST_ENGINE", "ray://head"),
        ("EXHAUST_ARCHIVE_URL", "gs://bucket/prefix"),
        ("EXHAUST_ARCHIVE_URL", "s3:///prefix"),
        ("EXHAUST_REJECTED_RETENTION_DAYS", "0"),
        ("EXHAUST_METRICS_PORT", "65536"),
        ("EXHAUST_WORKER_SHUTDOWN_SECONDS", "0"),
        ("EXHAUST_RATE_LIMIT_MULTIPLIER", "-1"),
        ("EXHAUST_LOG_LEVEL", "LOUD"),
        ("DEBUG", "perhaps"),
        ("EXHAUST_BEHIND_PROXY", "perhaps"),
        ("EXHAUST_BEHIND_PROXY", "-1"),
        ("EXHAUST_BEHIND_PROXY", "10.0.0.0/8"),
    ],
)
def test_value_out_of_range_stops_start(read: Any, variable: str, value: str):
    assert variable in failure(read, **{variable: value})


def test_traces_need_their_extra(read: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.django", None)
    assert read()["OTEL_EXPORTER_OTLP_ENDPOINT"] == ""
    assert failure(read, OTEL_EXPORTER_OTLP_ENDPOINT="http://otel:4318") == (
        "OTEL_EXPORTER_OTLP_ENDPOINT: needs the extra otel: pip install '.[otel]'."
    )


def test_debug_is_not_for_https(read: Any):
    assert read(DEBUG="true")["DEBUG"] is True
    assert failure(read, DEBUG="true", EXHAUST_PUBLIC_URL="https://exhaust.example") == (
        "DEBUG: shows the service's insides to its callers; leave it out under an https:// address."
    )


@pytest.mark.parametrize("variable", ["SECRET_KEY", "EXHAUST_KEY_PEPPER"])
@pytest.mark.parametrize(
    ("value", "weakness"),
    [
        ("short", "has only 5 characters"),
        ("0123456789" * 4 + "012345678", "has only 49 characters"),
        ("012345678" * 10, "has only 9 different characters"),
        ("django-insecure-" + STRONG, "is the one of a development"),
    ],
    ids=["short", "nearly", "alike", "development"],
)
def test_weak_secret_stops_the_start(read: Any, variable: str, value: str, weakness: str):
    assert failure(read, **{**SECRETS, variable: value}) == (
        f"{variable}: {weakness}; make a good one: openssl rand -base64 50 | tr -d '\\n'"
    )


def test_weak_encryption_key_stops_the_start(read: Any):
    assert failure(read, EXHAUST_ENCRYPTION_KEYS="A" * 43 + "=") == (
        "EXHAUST_ENCRYPTION_KEYS: has only 2 different characters; make a good one: openssl rand"
        " -base64 32 | tr '+/' '-_'"
    )


def test_secret_key_is_no_pepper(read: Any):
    peppers = f"{PEPPER},{STRONG}"
    assert failure(read, SECRET_KEY=STRONG, EXHAUST_KEY_PEPPER=peppers).startswith(
        "SECRET_KEY: is a pepper too"
    )


def test_old_pepper_may_be_weak(read: Any):
    """Or nobody could rotate it away."""
    assert read(EXHAUST_KEY_PEPPER=f"{PEPPER},weak")["EXHAUST_KEY_PEPPER"] == f"{PEPPER},weak"


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


def test_data_folder_is_its_owners(read: Any, var: Path):
    read(EXHAUST_METRICS_TOKEN="t" * 40)
    connection = sqlite3.connect(var / "exhaust.sqlite3")
    connection.execute("CREATE TABLE a (b)")
    connection.close()

    assert modes(var) == {0o700, 0o600}


def test_open_data_folder_is_closed(read: Any, var: Path):
    (var / "files").mkdir(parents=True, mode=0o755)
    (var / "files" / "a.csv").write_text("")
    for path in (var / "files" / "a.csv", var / "files", var):
        path.chmod(0o755)

    read()

    assert modes(var) <= {0o700, 0o600}


def test_shared_folder_is_no_data_folder(read: Any, var: Path):
    var.mkdir()
    var.chmod(0o1777)

    assert failure(read).startswith(
        f"EXHAUST_DATA_DIR: other users of this machine may look into '{var}'"
    )
    assert stat.S_IMODE(var.stat().st_mode) == 0o1777


def test_failpoints_are_not_for_production(read: Any, tmp_path: Path):
    assert read(EXHAUST_FAILPOINTS=str(tmp_path))["FAILPOINTS"] == str(tmp_path)
    message = failure(
        read, EXHAUST_FAILPOINTS=str(tmp_path), EXHAUST_PUBLIC_URL="https://exhaust.example"
    )
    assert message.startswith("EXHAUST_FAILPOINTS: ")


def test_all_wrong_values_are_told_at_once(read: Any):
    sentence = failure(read, EXHAUST_MAX_DAYS="many", EXHAUST_LOG_LEVEL="LOUD")

    assert "EXHAUST_MAX_DAYS" in sentence
    assert "EXHAUST_LOG_LEVEL" in sentence


@pytest.mark.parametrize(
    "keys",
    ["short", "ä" * 44, FERNET[:-1], FERNET[:-4], f"{FERNET},", f",{FERNET}", f"{FERNET};{FERNET}"],
    ids=["short", "not ASCII", "unpadded", "cut", "comma behind", "comma before", "semicolon"],
)
def test_malformed_encryption_key_is_hidden(read: Any, keys: str):
    sentence = failure(read, EXHAUST_ENCRYPTION_KEYS=keys)

    assert sentence == (
        "EXHAUST_ENCRYPTION_KEYS: each key is 32 bytes in urlsafe base64;"
        " the first one encrypts, all decrypt."
    )


def test_failed_start_names_the_variable(var: Path):
    completed = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**os.environ, "EXHAUST_MAX_DAYS": "many"},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert completed.returncode != 0
    assert "EXHAUST_MAX_DAYS" in completed.stderr


def test_https_asks_superusers_for_a_factor(read: Any):
    assert read()["EXHAUST_SECOND_FACTOR_REQUIRED"] is False
    assert read(EXHAUST_PUBLIC_URL="https://x.example")["EXHAUST_SECOND_FACTOR_REQUIRED"] is True


def test_mail_server_is_read(read: Any):
    url = "submission://us:p%40ss@mail.example:587/?_default_from_email=exhaust@x.example"
    settings = read(EMAIL_URL=url)

    assert (settings["EMAIL_HOST"], settings["EMAIL_PORT"]) == ("mail.example", 587)
    assert (settings["EMAIL_HOST_PASSWORD"], settings["EMAIL_USE_TLS"]) == ("p@ss", True)
    assert settings["DEFAULT_FROM_EMAIL"] == "exhaust@x.example"
    assert settings["EMAIL_TIMEOUT"] == 10
    assert settings["EXHAUST_SENDS_MAIL"] is True
    assert read()["EMAIL_BACKEND"].endswith("dummy.EmailBackend")


@pytest.mark.parametrize(
    ("text", "contact"),
    [
        ("", ("", "")),
        ("Asha Rao <asha@x.example>", ("Asha Rao", "mailto:asha@x.example")),
        ("Desk<https://help.example/new>", ("Desk", "https://help.example/new")),
    ],
)
def test_administrator_is_read(read: Any, text: str, contact: tuple[str, str]):
    assert read(EXHAUST_ADMINISTRATOR=text)["EXHAUST_ADMINISTRATOR"] == contact


@pytest.mark.parametrize("text", ["Asha", "<a@x.example>", "Asha <javascript:alert(1)>", "A <a b>"])
def test_wrong_administrator_stops_start(read: Any, text: str):
    assert failure(read, EXHAUST_ADMINISTRATOR=text).startswith("EXHAUST_ADMINISTRATOR: write")


@pytest.mark.parametrize("url", ["mail.example", "http://mail.example", "smtp://mail.example:x"])
def test_wrong_mail_server_stops_the_start(read: Any, url: str):
    assert failure(read, EMAIL_URL=url) == "EMAIL_URL: write submission://user:password@host:587."


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"EXHAUST_OIDC_URL": "https://x.example"}, "EXHAUST_OIDC_CLIENT_ID: must be set"),
        ({"EXHAUST_OIDC_CLIENT_ID": "us"}, "EXHAUST_OIDC_URL: must be set"),
        ({"EXHAUST_OIDC_URL": "x", "EXHAUST_OIDC_CLIENT_ID": "us"}, "EXHAUST_OIDC_URL: 'x' is no"),
        (
            {
                "EXHAUST_OIDC_URL": "http://x.example",
                "EXHAUST_OIDC_CLIENT_ID": "us",
                "EXHAUST_PUBLIC_URL": "https://x.example",
            },
            "EXHAUST_OIDC_URL: write https://",
        ),
    ],
)
def test_wrong_provider_stops_the_start(read: Any, variables: dict[str, str], error: str):
    assert failure(read, **variables).startswith(error)


def test_provider_is_read(read: Any):
    settings = read(EXHAUST_OIDC_URL="https://x.example/", EXHAUST_OIDC_CLIENT_ID="us")

    (app,) = settings["SOCIALACCOUNT_PROVIDERS"]["openid_connect"]["APPS"]
    assert app["settings"] == {"server_url": "https://x.example"}
    assert app["name"] == "your organisation"
    assert read()["SOCIALACCOUNT_PROVIDERS"]["openid_connect"]["APPS"] == []


def test_every_variable_is_tried_here():
    # a variable that these tests do not know would leak in from outside
    source = SETTINGS.read_text()
    read_names = {part.split('"')[1] for part in source.split("env.")[1:] if '"' in part[:12]}
    named = {name for name in KNOWN if f'"{name}"' in source}

    assert read_names <= set(KNOWN)
    assert named == set(KNOWN)


# misspelt, and from files ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misspelt", "intended"),
    [
        ("EXHAUST_MAX_DAY", "EXHAUST_MAX_DAYS"),
        ("EXHAUST_PUBLICURL", "EXHAUST_PUBLIC_URL"),
        ("S3_BUKET", "S3_BUCKET"),
        ("EXHAUST_KEY_PEPER_FILE", "EXHAUST_KEY_PEPPER"),
    ],
)
def test_misspelt_variable_stops_the_start(read: Any, misspelt: str, intended: str, tmp_path: Path):
    (tmp_path / "value").write_text("1")

    assert failure(read, **{misspelt: str(tmp_path / "value")}) == (
        f"{misspelt}: there is no such setting; did you mean {intended}?"
    )


def test_unknown_variable_stops_the_start(read: Any):
    assert failure(read, EXHAUST_FAVOURITE_COLOUR="1") == (
        "EXHAUST_FAVOURITE_COLOUR: there is no such setting; README.md lists them all."
    )


def test_client_variables_are_known(read: Any):
    read(EXHAUST_URL="http://127.0.0.1:8000", EXHAUST_KEY="k", EXHAUST_CHANNEL="ORG_001")


def test_secrets_come_from_files(read: Any, tmp_path: Path):
    for name, value in SECRETS.items():
        (tmp_path / name).write_text(f"{value}\n")

    settings = read(
        DATABASE_URL=POSTGRESQL, **{f"{name}_FILE": str(tmp_path / name) for name in SECRETS}
    )

    assert settings["SECRET_KEY"] == SECRETS["SECRET_KEY"]
    assert settings["EXHAUST_KEY_PEPPER"] == SECRETS["EXHAUST_KEY_PEPPER"]
    assert settings["EXHAUST_ENCRYPTION_KEYS"] == [FERNET]


def test_missing_secret_file_stops_the_start(read: Any, tmp_path: Path):
    path = str(tmp_path / "none")

    assert failure(read, SECRET_KEY_FILE=path) == (
        f"SECRET_KEY_FILE: '{path}' is no file that this process may read."
    )


def test_wrong_setting_is_one_sentence(var: Path):
    completed = subprocess.run(
        [sys.executable, "manage.py", "check"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "EXHAUST_MAX_DAYS": "many"},
    )  # fmt: skip

    assert (completed.returncode, completed.stderr) == (
        1,
        "EXHAUST_MAX_DAYS: Not a valid integer.\n",
    )
