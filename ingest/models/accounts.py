"""Channels, API keys, applications and roles."""

import re
from contextlib import suppress
from typing import Any

from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models

from ingest.db.clock import read_clock
from ingest.events import RequestError

# clients take '.' and '..' out of an address, and so never reach what bears such a name
IDENTIFIER = r"^(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,128}\Z"
IDENTIFIER_RULE = "Letters, digits, '.', '_' and '-', up to 128; not '.' and not '..'."
validate_identifier = RegexValidator(IDENTIFIER, IDENTIFIER_RULE)


def validate_age_recipient(value: str) -> None:
    """Raises `ValidationError` for a malformed public key of age."""
    import pyrage  # few processes need it

    try:
        pyrage.x25519.Recipient.from_str(value)
    except pyrage.RecipientError:
        raise ValidationError("Not a public key of age; `age-keygen` prints one: age1…") from None


_HOST = re.compile(r"(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]+)?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def validate_origins(text: str) -> None:
    """Raises `ValidationError` for a line that is not what a browser sends as `Origin`."""
    for line in text.split():
        scheme, _, rest = line.lower().partition("://")
        host = rest.partition("/")[0].removesuffix(_DEFAULT_PORTS.get(scheme, "/"))
        with suppress(UnicodeError):
            host = host if host.isascii() else host.encode("idna").decode()
        if not scheme.isascii() or not _HOST.fullmatch(host):
            raise ValidationError(f"{line} is no origin; write https://shop.example, one a line.")
        if line != (sent := f"{scheme}://{host}"):
            raise ValidationError(f"{line} never matches; browsers send {sent}.")


class Channel(models.Model):
    """A tenant; the scope of every permission."""

    class Encryption(models.TextChoices):
        NONE = "", "as asked for"
        PASSWORD = "password", "AES-256 zip under the request's encryptionKey"
        PUBLICKEY = "publickey", "age, for the recipient below"

    id = models.AutoField(primary_key=True)
    identifier = models.CharField(max_length=128, unique=True, validators=[validate_identifier])
    name = models.CharField(max_length=255, blank=True)
    organization = models.CharField(
        default="",
        db_default="",
        max_length=255,
        blank=True,
        help_text="The name of its organization in pull's metadata; empty for the channel's own.",
    )
    private_encryption = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=Encryption.choices,
        blank=True,
        help_text="Encryption that private files must have.",
    )
    recipient = models.CharField(
        default="",
        db_default="",
        max_length=128,
        blank=True,
        validators=[validate_age_recipient],
        help_text="age1…, a public key.",
    )
    hash_device_ids = models.BooleanField(
        default=False,
        db_default=False,
        help_text="In response and private files, a keyed hash in place of each device id.",
    )
    requires_second_factor = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Roles in this channel give nothing until their user has a second factor.",
    )
    encrypted_secret = models.BinaryField(
        null=True, editable=False, help_text="The secret of device hashes, encrypted."
    )
    created_at = models.DateTimeField(default=read_clock, editable=False)

    def __str__(self) -> str:
        return self.identifier

    def clean(self) -> None:
        if self.private_encryption == self.Encryption.PUBLICKEY and not self.recipient:
            raise ValidationError({"recipient": "Required for private files encrypted with age."})


class ApiKey(models.Model):
    """An API key. Its text is shown once; its keyed digest is stored."""

    SCOPES = ("ingest", "export:response", "export:private", "pull", "erase", "audit")

    name = models.CharField(max_length=128)
    public_id = models.CharField(max_length=8, unique=True)
    digest = models.CharField(max_length=64)
    scopes = models.CharField(max_length=255, help_text="Separated by blanks.")
    channels = models.ManyToManyField(Channel, related_name="keys")
    created_at = models.DateTimeField(default=read_clock, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    networks = models.CharField(
        max_length=1000,
        blank=True,
        default="",
        db_default="",
        help_text="Networks it may be used from, separated by blanks; empty for any.",
    )
    created_by = models.CharField(
        max_length=255, default="", db_default="", help_text="The user who made it."
    )

    class Meta:
        constraints = [
            # a key that writes events must not read phones
            models.CheckConstraint(
                name="apikey_ingest_stands_alone",
                condition=~models.Q(scopes__contains="ingest")
                | ~models.Q(scopes__contains="export:private")
                & ~models.Q(scopes__contains="pull")
                & ~models.Q(scopes__contains="erase")
                & ~models.Q(scopes__contains="audit"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.public_id})"


class Role(models.Model):
    """Permissions of a group in a channel. Superusers have all of them everywhere."""

    group = models.ForeignKey(Group, on_delete=models.CASCADE, related_name="roles")
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="roles")
    submit_response = models.BooleanField(
        default=False, help_text="Request and download non-personal datasets."
    )
    submit_private = models.BooleanField(
        default=False, help_text="Request and download private files."
    )
    administer = models.BooleanField(
        default=False, help_text="Keys, destinations, recurring requests, rejected events."
    )
    audit = models.BooleanField(default=False, help_text="Read the audit log.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["group", "channel"], name="role_unique")]


class Application(models.Model):
    """A registered sender of a source that has no keys of ours: its id is in every call."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT)
    identifier = models.CharField(max_length=128, unique=True, validators=[validate_identifier])
    name = models.CharField(max_length=255, blank=True)
    secret_digest = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Digest of the password in HTTP Basic."
    )
    cookie_digest = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="Digest of the cookie that every call needs.",
    )
    strict_hash = models.BooleanField(
        default=False, help_text="Reject a batch whose hashCode does not match its body."
    )
    allowed_origins = models.TextField(
        blank=True, help_text="Origins of web pages that may send, one a line."
    )
    created_at = models.DateTimeField(default=read_clock, editable=False)
    disabled_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.identifier

    def clean(self) -> None:
        try:
            validate_origins(self.allowed_origins)
        except ValidationError as error:
            raise ValidationError({"allowed_origins": error}) from None


def find_excess(row: Any, limit: int) -> str:
    """Returns why the channel can have no further row like this; empty where it can, or has it."""
    saved = type(row).objects.filter(channel=row.channel_id)
    if saved.count() < limit or saved.filter(name=row.name).exists():
        return ""
    return f"A channel has at most {limit} {row._meta.verbose_name_plural}; delete one."


def require_room(row: Any, limit: int) -> None:
    """Raises `RequestError` (409) for excess. Others count after this transaction."""
    Channel.objects.select_for_update(no_key=True).get(pk=row.channel_id)
    if remedy := find_excess(row, limit):
        raise RequestError("conflict", f"name: {remedy}", 409)
