"""Every setting, read from the environment once, top to bottom.

Nothing set means embedded: SQLite, Celery's filesystem broker and a folder for files, all under
`var/`. `DATABASE_URL`, `CELERY_BROKER_URL` and `S3_BUCKET` each move one part to a server.
Each variable may come from a file instead: `SECRET_KEY_FILE` names one that holds `SECRET_KEY`.
A wrong, half-set or misspelt variable stops the start with a sentence that names it.
"""

import os
import re
import secrets
import stat
import sys
from base64 import urlsafe_b64encode
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, reset_tzpath

import dj_email_url
from environs import EnvValidationError, FileAwareEnv, validate

# zones as the package tzdata has them, not the machine: the same days and offsets everywhere
reset_tzpath(())
ZoneInfo.clear_cache()

BASE_DIR = Path(__file__).resolve().parent.parent
env = FileAwareEnv(eager=False, strip_whitespace=True)


def setting_error(variable: str, remedy: str) -> SystemExit:
    """Ends the process with one sentence; the operator needs no traceback."""
    return SystemExit(f"{variable}: {remedy}")


for _name, _path in os.environ.items():
    _is_ours = _name.startswith(
        ("EXHAUST_", "S3_", "SECRET_KEY", "DATABASE_URL", "CELERY_BROKER", "EMAIL_URL")
    )
    if _is_ours and _name.endswith("_FILE") and not os.access(_path, os.R_OK):
        raise setting_error(_name, f"'{_path}' is no file that this process may read.")

# Where this installation stands -----------------------------------------------------------------

_user_data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
_is_clone = (BASE_DIR / "manage.py").exists()
#: Folder of the embedded parts, for the service's own user; empty means `var/` beside manage.py,
#: and `~/.local/share/exhaust` where there is none.
DATA_DIR = Path(
    env.str("EXHAUST_DATA_DIR", "") or (BASE_DIR / "var" if _is_clone else _user_data / "exhaust")
)
#: `postgresql://user:password@host:5432/name`, with any parameter of libpq as
#: `?sslmode=verify-full`; empty means SQLite in the data folder.
_database_url: str = env.str("DATABASE_URL", "")
#: `redis://host:6379/0`; empty means files in the data folder.
_broker_url: str = env.str("CELERY_BROKER_URL", "")
#: Address of the service in links; `https://` turns on secure cookies, HSTS and redirects.
EXHAUST_PUBLIC_URL: str = env.str("EXHAUST_PUBLIC_URL", "http://127.0.0.1:8000").rstrip("/")
#: Django's debug pages; never in production.
DEBUG: bool = env.bool("DEBUG", False)
#: Proxies in front of the service, one after another; `true` is one. With any, the service trusts
#: `X-Forwarded-Proto` and this many of the last entries of `X-Forwarded-For`.
_behind_proxy: str = env.str("EXHAUST_BEHIND_PROXY", "0")
#: Host names that requests may carry, besides that of the public URL and localhost.
_allowed_hosts: list[str] = env.list("ALLOWED_HOSTS", [])

# Secrets
#: Django's signing key; required with a server, else made once in the data folder.
_secret_key: str = env.str("SECRET_KEY", "")
#: Fernet keys for columns: the first encrypts, all decrypt; required with a server.
_encryption_keys: list[str] = env.list("EXHAUST_ENCRYPTION_KEYS", [])
#: Peppers of API keys: the first hashes, all verify; required with a server.
_key_pepper: str = env.str("EXHAUST_KEY_PEPPER", "")

# Sign-in
#: Address of your organisation's OpenID Connect provider; empty means sign-in by password alone.
EXHAUST_OIDC_URL: str = env.str("EXHAUST_OIDC_URL", "").rstrip("/")
#: Client id that the provider gave this service.
_oidc_client_id: str = env.str("EXHAUST_OIDC_CLIENT_ID", "")
#: Secret of that client.
_oidc_secret: str = env.str("EXHAUST_OIDC_CLIENT_SECRET", "")
#: Name of the provider on the sign-in page; empty means "your organisation".
EXHAUST_OIDC_NAME: str = env.str("EXHAUST_OIDC_NAME", "") or "your organisation"
#: Claim with the names of a user's groups; empty leaves groups to the admin.
EXHAUST_OIDC_GROUPS_CLAIM: str = env.str("EXHAUST_OIDC_GROUPS_CLAIM", "")
#: Mail server, as `submission://user:password@host:587/?_default_from_email=exhaust@example.org`;
#: empty sends no e-mail.
_email_url: str = env.str("EMAIL_URL", "")
#: Whom pages and e-mails tell people to ask, as `Asha Rao <asha@example.org>` or
#: `Help desk <https://help.example.org>`; empty names no one.
_administrator: str = env.str("EXHAUST_ADMINISTRATOR", "")
#: Longest life of a new API key, in days; 0 sets no limit.
EXHAUST_KEY_MAX_DAYS: int = env.int(
    "EXHAUST_KEY_MAX_DAYS", 0, validate=validate.Range(min=0, max=36_500)
)

# Files
#: Bucket of the files; empty means a folder in the data folder.
S3_BUCKET: str = env.str("S3_BUCKET", "")
#: Address of an S3 server that is not AWS.
S3_ENDPOINT_URL: str = env.str("S3_ENDPOINT_URL", "")
#: Address of the bucket as downloaders see it; empty means the endpoint itself.
S3_PUBLIC_ENDPOINT_URL: str = env.str("S3_PUBLIC_ENDPOINT_URL", "") or S3_ENDPOINT_URL
#: Region of the bucket.
S3_REGION: str = env.str("S3_REGION", "us-east-1")
#: KMS key of private files; empty means the bucket's own encryption.
S3_PRIVATE_KMS_KEY_ID: str = env.str("S3_PRIVATE_KMS_KEY_ID", "")
#: Credential of the bucket; empty means the machine's role.
_aws_id: str = env.str("AWS_ACCESS_KEY_ID", "")
#: Secret of that credential.
_aws_secret: str = env.str("AWS_SECRET_ACCESS_KEY", "")

# The archive
#: Folder of the archive, in the data folder unless absolute, or `s3://bucket/prefix`; empty
#: archives nothing.
EXHAUST_ARCHIVE_URL: str = env.str("EXHAUST_ARCHIVE_URL", "").rstrip("/")
#: Age of events, in days since their arrival, at which they are archived.
EXHAUST_ARCHIVE_AFTER_DAYS: int = env.int(
    "EXHAUST_ARCHIVE_AFTER_DAYS", 30, validate=validate.Range(min=1, max=36_500)
)
#: Processes that make the archived rows of one file, the worker's own included.
EXHAUST_PROCESSES: int = env.int("EXHAUST_PROCESSES", 1, validate=validate.Range(min=1, max=64))
#: Engine that makes large archived files in parts: `processes` of the worker's machine, or
#: `ray://host:port`; empty for none.
EXHAUST_ENGINE: str = env.str("EXHAUST_ENGINE", "").rstrip("/")

# Limits of requests
#: Longest range of a request, in days.
EXHAUST_MAX_DAYS: int = env.int("EXHAUST_MAX_DAYS", 366, validate=validate.Range(min=1))
#: Lifetime of a download link.
EXHAUST_LINK_SECONDS: int = env.int(
    "EXHAUST_LINK_SECONDS", 86_400, validate=validate.Range(min=1, max=604_800)
)
#: Most rows of a file; a job beyond it fails.
EXHAUST_MAX_ROWS: int = env.int("EXHAUST_MAX_ROWS", 50_000_000, validate=validate.Range(min=1))
#: Longest attempt; a job beyond it fails.
EXHAUST_MAX_SECONDS: int = env.int(
    "EXHAUST_MAX_SECONDS", 14_400, validate=validate.Range(min=1, max=2_000_000)
)
#: Size at which a file continues in its next part; 0 never splits.
EXHAUST_PART_BYTES: int = env.int("EXHAUST_PART_BYTES", 5 * 1024**3, validate=validate.Range(min=0))
#: Jobs of a channel that run at once.
EXHAUST_MAX_RUNNING_PER_CHANNEL: int = env.int(
    "EXHAUST_MAX_RUNNING_PER_CHANNEL", 2, validate=validate.Range(min=1)
)
#: Jobs of a channel that may wait for a worker, and as many that may wait for their time.
EXHAUST_MAX_QUEUED_PER_CHANNEL: int = env.int(
    "EXHAUST_MAX_QUEUED_PER_CHANNEL", 100, validate=validate.Range(min=1)
)
#: Hour at which the daily maintenance and the jobs of the priority `nightly` begin.
EXHAUST_DAILY_HOUR: int = env.int("EXHAUST_DAILY_HOUR", 2, validate=validate.Range(min=0, max=23))
#: Time zone of that hour.
EXHAUST_DAILY_TIMEZONE: str = env.str("EXHAUST_DAILY_TIMEZONE", "UTC")
#: Lifetime of a file, and of the record of a delivery.
EXHAUST_FILE_RETENTION_DAYS: int = env.int(
    "EXHAUST_FILE_RETENTION_DAYS", 30, validate=validate.Range(min=1)
)
#: Lifetime of the record of an ended job, once its files are deleted, and of a dead letter.
EXHAUST_JOB_RETENTION_DAYS: int = env.int(
    "EXHAUST_JOB_RETENTION_DAYS", 365, validate=validate.Range(min=1, max=36_500)
)
#: Time that a stopping worker gives its jobs before it releases them.
EXHAUST_WORKER_SHUTDOWN_SECONDS: int = env.int(
    "EXHAUST_WORKER_SHUTDOWN_SECONDS", 30, validate=validate.Range(min=1)
)
#: Bearer token of `/metrics`; empty turns it off.
EXHAUST_METRICS_TOKEN: str = env.str("EXHAUST_METRICS_TOKEN", "")
#: Port on which a worker serves its own metrics; 0 serves none.
EXHAUST_METRICS_PORT: int = env.int(
    "EXHAUST_METRICS_PORT", 0, validate=validate.Range(min=0, max=65_535)
)
#: Lifetime of events, longer than that of files; 0 keeps them for ever.
EXHAUST_EVENT_RETENTION_DAYS: int = env.int(
    "EXHAUST_EVENT_RETENTION_DAYS", 0, validate=validate.Range(min=0, max=36_500)
)
#: Lifetime of rejected events.
EXHAUST_REJECTED_RETENTION_DAYS: int = env.int(
    "EXHAUST_REJECTED_RETENTION_DAYS", 30, validate=validate.Range(min=1, max=36_500)
)
#: Private networks that a channel's destinations and callbacks may reach: `ORG_001=10.1.2.0/24`.
_push_networks: list[str] = env.list("EXHAUST_PUSH_ALLOWED_NETWORKS", [])
#: Time from a document's arrival until its destination has it, while the receiver answers.
EXHAUST_PUSH_SECONDS: int = env.int(
    "EXHAUST_PUSH_SECONDS", 5, validate=validate.Range(min=1, max=60)
)
#: Factor of all rate limits; 0 turns them off.
EXHAUST_RATE_LIMIT_MULTIPLIER: float = env.float(
    "EXHAUST_RATE_LIMIT_MULTIPLIER", 1.0, validate=validate.Range(min=0)
)
#: Connections of a process, and so the requests that a web process works on at once.
EXHAUST_DATABASE_POOL_SIZE: int = env.int(
    "EXHAUST_DATABASE_POOL_SIZE", 8, validate=validate.Range(min=1)
)
#: Address of an OpenTelemetry collector, as `http://otel:4318`; empty sends no traces.
OTEL_EXPORTER_OTLP_ENDPOINT: str = env.str("OTEL_EXPORTER_OTLP_ENDPOINT", "")
#: Least level that is logged.
_log_level: str = env.str(
    "EXHAUST_LOG_LEVEL", "INFO", validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"])
)
#: A folder of the fault campaign; makes processes fail on purpose.
FAILPOINTS: str = env.str("EXHAUST_FAILPOINTS", "")

try:
    env.seal()
except EnvValidationError as error:
    messages = cast(dict[str, list[str]], error.error_messages)
    raise SystemExit(
        "\n".join(f"{name}: {' '.join(reasons)}" for name, reasons in sorted(messages.items()))
    ) from error

CLIENT_VARIABLES = {
    f"EXHAUST_{name}" for name in ("URL", "KEY", "CHANNEL", "APPLICATION", "SECRET")
}
known_variables = CLIENT_VARIABLES | set(env.dump())
for _name in sorted(os.environ):
    _known = _name.removesuffix("_FILE") in known_variables
    if _name.startswith(("EXHAUST_", "S3_")) and not _known:
        _similar = get_close_matches(_name, known_variables, n=1, cutoff=0.75)
        raise setting_error(
            _name,
            f"there is no such setting; did you mean {_similar[0]}?"
            if _similar
            else "there is no such setting; README.md lists them all.",
        )

if DEBUG and EXHAUST_PUBLIC_URL.startswith("https://"):
    raise setting_error(
        "DEBUG",
        "shows the service's insides to its callers; leave it out under an https:// address.",
    )
if bool(_aws_id) != bool(_aws_secret):
    missing = "AWS_SECRET_ACCESS_KEY" if _aws_id else "AWS_ACCESS_KEY_ID"
    raise setting_error(missing, "must be set, its other half is.")
if bool(EXHAUST_OIDC_URL) != bool(_oidc_client_id):
    missing = "EXHAUST_OIDC_CLIENT_ID" if EXHAUST_OIDC_URL else "EXHAUST_OIDC_URL"
    raise setting_error(missing, "must be set, its other half is.")
if EXHAUST_PUBLIC_URL.startswith("https://") and EXHAUST_OIDC_URL.startswith("http://"):
    raise setting_error(
        "EXHAUST_OIDC_URL", "write https://; on the way http:// lets anyone sign in."
    )
if FAILPOINTS and EXHAUST_PUBLIC_URL.startswith("https://"):
    raise setting_error("EXHAUST_FAILPOINTS", "makes processes fail on purpose; only tests set it.")
if OTEL_EXPORTER_OTLP_ENDPOINT:
    try:
        import_module("opentelemetry.instrumentation.django")
    except ImportError:
        raise setting_error(
            "OTEL_EXPORTER_OTLP_ENDPOINT", "needs the extra otel: pip install '.[otel]'."
        ) from None
try:
    ZoneInfo(EXHAUST_DAILY_TIMEZONE)
except (ZoneInfoNotFoundError, ValueError, OSError):
    raise setting_error(
        "EXHAUST_DAILY_TIMEZONE", "unknown time zone; write one like UTC or Asia/Kolkata."
    ) from None
if 0 < EXHAUST_EVENT_RETENTION_DAYS <= EXHAUST_FILE_RETENTION_DAYS:
    # a withdrawal finds the files of a person by their events
    raise setting_error(
        "EXHAUST_EVENT_RETENTION_DAYS", "must be more than EXHAUST_FILE_RETENTION_DAYS, or 0."
    )
_archive_scheme, _separator, _archive_path = EXHAUST_ARCHIVE_URL.rpartition("://")
if _separator and (_archive_scheme != "s3" or not re.match("[^/]", _archive_path)):
    raise setting_error("EXHAUST_ARCHIVE_URL", "write a folder or s3://bucket/prefix.")
if EXHAUST_ARCHIVE_URL and 0 < EXHAUST_EVENT_RETENTION_DAYS <= EXHAUST_ARCHIVE_AFTER_DAYS:
    raise setting_error(
        "EXHAUST_ARCHIVE_AFTER_DAYS",
        "must be less than EXHAUST_EVENT_RETENTION_DAYS, or events are deleted before.",
    )
if not re.fullmatch(r"|processes|ray://[^/:@\s]+:[0-9]{1,5}", EXHAUST_ENGINE):
    raise setting_error(
        "EXHAUST_ENGINE", "write processes, or ray://host:port such as ray://ray-head:10001."
    )
if EXHAUST_ENGINE and not EXHAUST_ARCHIVE_URL:
    raise setting_error("EXHAUST_ARCHIVE_URL", "must be set: an engine makes archived rows.")
if EXHAUST_ENGINE.startswith("ray:") and find_spec("ray") is None:
    raise setting_error("EXHAUST_ENGINE", "needs the extra ray: pip install '.[ray]'.")
_has_bucket = bool(S3_BUCKET or _separator)
if S3_PUBLIC_ENDPOINT_URL and not _has_bucket:
    raise setting_error("S3_BUCKET", "must be set, since an S3 endpoint is.")
if S3_PRIVATE_KMS_KEY_ID and not _has_bucket:
    raise setting_error("S3_BUCKET", "must be set, since a KMS key for its private files is.")
for _name, _url in (
    ("EXHAUST_PUBLIC_URL", EXHAUST_PUBLIC_URL),
    ("EXHAUST_OIDC_URL", EXHAUST_OIDC_URL),
    ("S3_ENDPOINT_URL", S3_ENDPOINT_URL),
    ("S3_PUBLIC_ENDPOINT_URL", S3_PUBLIC_ENDPOINT_URL),
):
    try:
        _parts = urlsplit(_url)
    except ValueError:
        _parts = urlsplit("")
    if (_url or _name == "EXHAUST_PUBLIC_URL") and (
        _parts.scheme not in {"http", "https"} or not _parts.hostname
    ):
        raise setting_error(_name, f"'{_url}' is no http:// or https:// address.")

_words = {"": "0", "true": "1", "yes": "1", "on": "1", "false": "0", "no": "0", "off": "0"}
_proxies = _words.get(_behind_proxy.lower(), _behind_proxy)
if not re.fullmatch("[0-9]", _proxies):
    raise setting_error(
        "EXHAUST_BEHIND_PROXY", "write how many proxies are in front of the service; true is one."
    )
EXHAUST_BEHIND_PROXY = int(_proxies)
has_server = bool(_database_url or _broker_url or S3_BUCKET)


# The data folder is its owner's alone: all that this process makes is 0600, its folders 0700
os.umask(0o077)


def make_private(path: Path, variable: str) -> None:
    """Takes the rights of other users of the machine from a folder and all in it, or a file.

    It looks inside only where the folder itself was open. Stops the start where that is not ours.
    """
    try:
        status = path.stat()
        if not status.st_mode & 0o077:
            return
        if status.st_mode & stat.S_ISVTX:  # as /tmp, which is all users'
            raise PermissionError
        for each in [*path.rglob("*"), path]:
            with suppress(FileNotFoundError):  # of a process that runs already
                if not each.is_symlink():
                    each.chmod(each.stat().st_mode & 0o700)
    except PermissionError:
        raise setting_error(
            variable,
            f"other users of this machine may look into '{path}'; name one of your own, or run"
            f" chmod -R go-rwx '{path}' as its owner.",
        ) from None


DATA_DIR.mkdir(parents=True, exist_ok=True)
make_private(DATA_DIR, "EXHAUST_DATA_DIR")


def require_strong(variable: str, value: str, least_length: int, command: str) -> None:
    """Stops the start for a secret that a machine can guess."""
    if value.startswith("django-insecure-"):
        weakness = "is the one of a development"
    elif len(value) < least_length:
        weakness = f"has only {len(value)} characters"
    elif len(set(value)) < 10:
        weakness = f"has only {len(set(value))} different characters"
    else:
        return
    raise setting_error(variable, f"{weakness}; make a good one: {command}")


def load_secret(variable: str, given_value: str, make: Any) -> str:
    """The variable's value; embedded, one that is made once and kept in `var/`."""
    if given_value:
        return given_value
    if has_server:
        raise setting_error(
            variable, "must be set as soon as a database, broker or S3 server is named."
        )
    path = DATA_DIR / f"{variable.lower().removeprefix('exhaust_')}.txt"
    if not path.exists():
        draft = path.with_suffix(f".{secrets.token_hex(4)}")
        draft.write_text(make())
        try:
            path.hardlink_to(draft)  # two processes at first start agree on one
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()


MAKING = "openssl rand -base64 50 | tr -d '\\n'"
SECRET_KEY = load_secret("SECRET_KEY", _secret_key, lambda: secrets.token_urlsafe(50))
require_strong("SECRET_KEY", SECRET_KEY, 50, MAKING)
EXHAUST_KEY_PEPPER = load_secret(
    "EXHAUST_KEY_PEPPER", _key_pepper, lambda: secrets.token_urlsafe(50)
)
_peppers = EXHAUST_KEY_PEPPER.split(",")
if not all(_peppers):
    raise setting_error(
        "EXHAUST_KEY_PEPPER", "one of its peppers is empty; the first one makes, all verify."
    )
# a weak one that is no longer the first still verifies, or you could not rotate it away
require_strong("EXHAUST_KEY_PEPPER", _peppers[0], 50, MAKING)
if SECRET_KEY in _peppers:
    raise setting_error(
        "SECRET_KEY", f"is a pepper too, so one leak opens both; make its own: {MAKING}"
    )
EXHAUST_ENCRYPTION_KEYS = load_secret(
    "EXHAUST_ENCRYPTION_KEYS",
    ",".join(_encryption_keys),
    lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode(),
).split(",")
if not all(re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) for key in EXHAUST_ENCRYPTION_KEYS):
    raise setting_error(
        "EXHAUST_ENCRYPTION_KEYS",
        "each key is 32 bytes in urlsafe base64; the first one encrypts, all decrypt.",
    )
require_strong(
    "EXHAUST_ENCRYPTION_KEYS",
    EXHAUST_ENCRYPTION_KEYS[0],
    44,
    "openssl rand -base64 32 | tr '+/' '-_'",
)

# Django -----------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",  # for allauth's pages
    "rest_framework",
    "axes",
    "drf_spectacular_sidecar",  # Swagger UI's files
    "exhaust.console",  # its pages replace those of allauth
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "ingest",
    "exhaust",
]
MIDDLEWARE = [
    "ingest.logs.RequestIdMiddleware",
    "ingest.http.security_headers.SecurityHeadersMiddleware",
    "ingest.http.middleware.repeat_lost_reads",
    "ingest.http.middleware.ActorMiddleware",
    "ingest.limits.rate_limits.add_rate_limit_headers",
    "ingest.http.middleware.HttpsMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "ingest.http.security_headers.SessionLifetimeMiddleware",
    "ingest.http.middleware.HostMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "ingest.auth.preferences.apply_settings",
    "django.contrib.messages.middleware.MessageMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    # the 20,000 that breaches show most often
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
]
# Ten wrong passwords for a name lock it for 15 minutes for the network that sent them. The first
# wrong one after that deletes the record of them. The audit log keeps the lock.
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False  # or a guesser locks a name for ever
AXES_RESET_ON_SUCCESS = False  # or an attacker resets the count by signing in as themselves
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_CLIENT_IP_CALLABLE = "ingest.limits.token_bucket.get_network_address"
AXES_LOCKOUT_TEMPLATE = "console/locked.html"
AXES_VERBOSE = False

# E-mail
try:
    _email: dict[str, Any] = dj_email_url.parse(_email_url or "dummy:")
    EMAIL_BACKEND: str = _email["EMAIL_BACKEND"]
except (KeyError, ValueError):
    raise setting_error("EMAIL_URL", "write submission://user:password@host:587.") from None
globals().update(_email)  # EMAIL_HOST and its like
EXHAUST_SENDS_MAIL = bool(_email_url)
_contact = re.fullmatch(
    r"([^<>]+?)\s*<(?:(https?://[^\s<>]+)|([^@\s<>]+@[^@\s<>]+))>", _administrator
)
if _administrator and _contact is None:
    raise setting_error(
        "EXHAUST_ADMINISTRATOR", "write a name and an e-mail or web address: Asha <asha@x.example>."
    )
#: The administrator's name and the address of a link to them.
EXHAUST_ADMINISTRATOR: tuple[str, str] = ("", "")
if _contact is not None:
    EXHAUST_ADMINISTRATOR = (_contact[1], _contact[2] or f"mailto:{_contact[3]}")
EMAIL_TIMEOUT = 10

# Accounts: allauth signs people in, by one page for the console and the admin
CSRF_FAILURE_VIEW = "ingest.http.pages.reject_old_form"
LOGIN_URL = LOGOUT_REDIRECT_URL = "account_login"
LOGIN_REDIRECT_URL = "console:home"
ACCOUNT_ADAPTER = "ingest.auth.accounts.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username"}
ACCOUNT_EMAIL_VERIFICATION = "none"  # an invitation's link verifies the address
ACCOUNT_EMAIL_NOTIFICATIONS = True  # of changes to a password or a second factor
ACCOUNT_EMAIL_UNKNOWN_ACCOUNTS = False
ACCOUNT_EMAIL_SUBJECT_PREFIX = ""
ACCOUNT_SESSION_REMEMBER = True  # for SESSION_COOKIE_AGE
ACCOUNT_REAUTHENTICATION_METHODS = ["password", "mfa"]
ACCOUNT_REAUTHENTICATION_TIMEOUT = 10 * 60
# passwords are django-axes' and our own limits'; codes of a second factor are counted here
ACCOUNT_RATE_LIMITS = {"login": None, "login_failed": "10/15m/key"}
MFA_ADAPTER = "ingest.auth.accounts.SecondFactorAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_ALLOW_UNVERIFIED_EMAIL = True  # there is no sign-up by strangers
MFA_TOTP_ISSUER = "Exhaust"
MFA_TOTP_TOLERANCE = 1  # steps of 30 seconds, for clocks that differ
MFA_PASSKEY_LOGIN_ENABLED = True
#: Superusers need a second factor wherever others reach the service.
EXHAUST_SECOND_FACTOR_REQUIRED = EXHAUST_PUBLIC_URL.startswith("https://")
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not EXHAUST_SECOND_FACTOR_REQUIRED
SOCIALACCOUNT_ADAPTER = "ingest.auth.accounts.OrganisationAdapter"
SOCIALACCOUNT_LOGIN_ON_GET = True  # our content policy lets no form lead to another site
SOCIALACCOUNT_EMAIL_AUTHENTICATION_AUTO_CONNECT = True  # from then on by the provider's own id
SOCIALACCOUNT_PROVIDERS = {
    "openid_connect": {
        "OAUTH_PKCE_ENABLED": True,
        "APPS": [
            {
                "provider_id": "organisation",
                "name": EXHAUST_OIDC_NAME,
                "client_id": _oidc_client_id,
                "secret": _oidc_secret,
                "settings": {"server_url": EXHAUST_OIDC_URL},
            }
        ]
        if EXHAUST_OIDC_URL
        else [],
    }
}
CACHES = {  # counts of all processes; it keeps a code of a second factor from being used twice
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "ingest_cacheentry",
        "OPTIONS": {"MAX_ENTRIES": 100_000},
    }
}

# Languages of the pages: a user's own, else the browser's. The API answers in English.
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("hi", "हिन्दी"), ("ar", "العربية")]
# before the libraries' own, which translate some of the same words in another way
LOCALE_PATHS = [BASE_DIR / "exhaust" / "locale", BASE_DIR / "ingest" / "locale"]
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
STATIC_ROOT = DATA_DIR / "static"
WHITENOISE_USE_FINDERS = True  # a fresh clone serves its pages without collectstatic
APPEND_SLASH = False  # a redirect would drop the body of a POST

_host = urlsplit(EXHAUST_PUBLIC_URL).hostname or ""
ALLOWED_HOSTS = [_host, "127.0.0.1", "localhost", "[::1]", *_allowed_hosts]
CSRF_TRUSTED_ORIGINS = [EXHAUST_PUBLIC_URL]
X_FRAME_OPTIONS = "DENY"
SECURE_REFERRER_POLICY = "same-origin"  # "no-referrer" takes the Origin that forms need
SESSION_ENGINE = "ingest.auth.sessions"
SESSION_COOKIE_HTTPONLY = True
MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"  # a cookie holds names
SESSION_COOKIE_AGE = 30 * 60  # ingest/http/security_headers.py ends it sooner
if EXHAUST_PUBLIC_URL.startswith("https://"):
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = True
    # a browser accepts these from this host only, and over https
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-session", "__Host-csrf"
    SECURE_REDIRECT_EXEMPT = [
        r"^healthz$",
        r"^readyz$",
        r"^metrics$",
    ]  # probes call the process directly
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True
if EXHAUST_BEHIND_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Database ---------------------------------------------------------------------------------------

DATABASE_URL_FORM = (
    "write postgresql://user:password@host:5432/name?sslmode=verify-full or sqlite:///path; write"
    " a special character of the password as %40."
)


def read_postgresql_url(url: str) -> dict[str, str]:
    """The URL in libpq's words, as `sslmode`. One that libpq would refuse stops the start."""
    from psycopg import ProgrammingError, conninfo, pq  # embedded needs no driver

    try:
        words = cast(dict[str, str], conninfo.conninfo_to_dict(url))
    except ProgrammingError as error:  # its text may hold the password
        unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
        if not unknown:
            raise setting_error("DATABASE_URL", DATABASE_URL_FORM) from None
        known = [each.keyword.decode() for each in pq.Conninfo.get_defaults()]
        similar = get_close_matches(unknown[1], known, n=1)
        remedy = f" did you mean {similar[0]}?" if similar else " PostgreSQL's manual lists them."
        raise setting_error(
            "DATABASE_URL", f"libpq has no parameter '{unknown[1]}';{remedy}"
        ) from None
    if not words.get("dbname") and "service" not in words:
        raise setting_error("DATABASE_URL", "names no database: postgresql://user@host:5432/name.")
    if not all(port.isdecimal() for port in filter(None, words.get("port", "").split(","))):
        raise setting_error("DATABASE_URL", DATABASE_URL_FORM)
    values = {name: value for name, value in words.items() if name not in {"hostaddr", "port"}}
    attempt = pq.PGconn.connect_start(conninfo.make_conninfo(**values | {"host": "/"}).encode())
    reason = attempt.get_error_message().strip()
    attempt.finish()
    if ".s.PGSQL." not in reason:  # it did not come so far as to look for a socket
        raise setting_error("DATABASE_URL", f"{reason}.")
    return words


def load_postgresql(words: dict[str, str]) -> dict[str, Any]:
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host"}
    names["PORT"] = "port"
    return {
        "ENGINE": "ingest.db.postgresql",
        **{key: words.pop(name, "") for key, name in names.items()},
        "OPTIONS": {
            "pool": {"max_size": EXHAUST_DATABASE_POOL_SIZE, "timeout": 10},
            # of each host; callers wait meanwhile
            "connect_timeout": "2",
            # give up a silent server within a lease of 30 seconds
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
            # planning the long statement of each batch would cost an eighth of the rate
            "prepare_threshold": 5,
            **words,
        },
    }


def load_database(url: str) -> dict[str, Any]:
    scheme, separator, path = url.partition("://")
    if scheme in {"postgresql", "postgres"} and separator:
        return load_postgresql(read_postgresql_url(url))
    if url and not (scheme == "sqlite" and path.startswith("/")):
        raise setting_error("DATABASE_URL", DATABASE_URL_FORM)
    file = Path(unquote(path[1:])) if url else DATA_DIR / "exhaust.sqlite3"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        make_private(file, "DATABASE_URL")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(file),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        },
        # in-memory test databases cannot be shared with a live server's threads and processes
        "TEST": {"NAME": str(DATA_DIR / "test.sqlite3")},
    }


DATABASES = {"default": load_database(_database_url)}

# Metrics: each process writes a file, and a scrape adds them up -----------------------------------

if EXHAUST_METRICS_TOKEN or EXHAUST_METRICS_PORT:
    _metrics = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR", DATA_DIR / "metrics"))
    _is_worker = "celery" in Path(sys.argv[0]).parts[-2:] and "worker" in sys.argv
    _worker_folder = f"worker-{EXHAUST_METRICS_PORT}"
    if _is_worker and EXHAUST_METRICS_PORT and _metrics.name != _worker_folder:
        _metrics /= _worker_folder  # its port shows it; the web's page shows all others
    _metrics.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(_metrics)

# Celery: a message only says "look now"; the record of a job is its row -------------------------

CELERY_BROKER_URL = _broker_url or "filesystem://localhost//"
if urlsplit(CELERY_BROKER_URL).scheme not in {"redis", "rediss", "filesystem"}:
    raise setting_error("CELERY_BROKER_URL", "write redis://host:6379/0, or leave it empty.")
if CELERY_BROKER_URL.startswith("filesystem"):
    _broker = DATA_DIR / "broker"
    for _folder in ("messages", "control"):
        (_broker / _folder).mkdir(parents=True, exist_ok=True)
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {
        "data_folder_in": str(_broker / "messages"),
        "data_folder_out": str(_broker / "messages"),
        "control_folder": str(_broker / "control"),
        "polling_interval": 0.1,
    }
    CELERY_WORKER_POOL = "solo"
else:
    CELERY_BROKER_TRANSPORT_OPTIONS = {"socket_keepalive": True, "health_check_interval": 10}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CHANNEL_ERROR_RETRY = True  # also by a Redis that refuses writes
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = EXHAUST_WORKER_SHUTDOWN_SECONDS  # then its jobs are released
CELERY_WORKER_MAX_TASKS_PER_CHILD = 1000
CELERY_WORKER_MAX_MEMORY_PER_CHILD = 512_000  # KiB; a child that grew is replaced between jobs
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = TIME_ZONE
CELERY_BEAT_SCHEDULE_FILENAME = str(DATA_DIR / "celerybeat-schedule")
STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # WhiteNoise warns of a missing one

# Files ------------------------------------------------------------------------------------------

FILES_DIR = DATA_DIR / "files"  # of the files, without a bucket

# Pushing: private receivers that the operator allows, to one channel each ------------------------

EXHAUST_PUSH_ALLOWED_NETWORKS: dict[str, list[IPv4Network | IPv6Network]] = {}
for _entry in _push_networks:
    _channel, _, _network = _entry.rpartition("=")
    try:
        if not _channel.strip():
            raise ValueError
        EXHAUST_PUSH_ALLOWED_NETWORKS.setdefault(_channel.strip(), []).append(
            ip_network(_network.strip())
        )
    except ValueError:
        raise setting_error(
            "EXHAUST_PUSH_ALLOWED_NETWORKS",
            f"'{_entry.strip()}' is no channel and its network; write ORG_001=10.1.2.0/24 or"
            " ORG_001=fd00:1::/64, and a comma between two.",
        ) from None

# APIs -------------------------------------------------------------------------------------------

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["ingest.auth.keys.KeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["ingest.http.parsers.JSONParser"],
    "UNAUTHENTICATED_USER": None,
    "EXCEPTION_HANDLER": "ingest.http.problems.handle_exception",
    "DEFAULT_SCHEMA_CLASS": "exhaust.openapi.document.ApiSchema",
    "URL_FORMAT_OVERRIDE": None,  # a sample has its own formats
}
SPECTACULAR_SETTINGS = {  # read by exhaust/openapi
    "TITLE": "Exhaust",
    "VERSION": "1",
    "DESCRIPTION": "Takes in what people say to bots and what apps record, and gives it back.",
    "OAS_VERSION": "3.1.0",
    "POSTPROCESSING_HOOKS": [],
    "SCHEMA_PATH_PREFIX": "",
    "ENFORCE_NON_BLANK_FIELDS": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
}

# Logs: an event's name and ids, never a payload, a phone or a link ------------------------------

LOGGING_CONFIG = "ingest.logs.configure_logging"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"lines": {"()": "ingest.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines"}},
    "root": {"handlers": ["stderr"], "level": _log_level},
    "loggers": {
        "axes": {"level": "ERROR"},  # its lines name users and addresses
        # Django's own handlers would write plain text where DEBUG is on
        "django": {"handlers": [], "level": _log_level},
        # else a line for each message, every few seconds
        "celery.app.trace": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        "django.security.DisallowedHost": {"level": "CRITICAL"},  # `host.refused` says it
        "django.request": {"level": "ERROR"},  # a 4xx is the caller's error
        "botocore": {"level": "WARNING"},
        "boto3": {"level": "WARNING"},
        "asyncssh": {"level": "WARNING"},
        "s3transfer": {"level": "WARNING"},
        "urllib3": {"level": "ERROR"},  # its warnings hold a receiver's whole address
    },
}
