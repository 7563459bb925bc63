"""Who may send and ask: channels, keys, applications, and the roles of people."""

from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models

IDENTIFIER = r"^[A-Za-z0-9._-]{1,128}\Z"
validate_identifier = RegexValidator(IDENTIFIER, "Letters, digits, '.', '_' and '-', up to 128.")


def validate_age_recipient(value: str) -> None:
    """Raises `ValidationError` for what is no public key of age."""
    import pyrage  # needed by few processes

    try:
        pyrage.x25519.Recipient.from_str(value)
    except pyrage.RecipientError:
        raise ValidationError("No public key of age; `age-keygen` prints one: age1…") from None


class Channel(models.Model):
    """An owning organisation; the scope of every permission."""

    class Encryption(models.TextChoices):
        NONE = "", "as asked for"
        PASSWORD = "password", "AES-256 zip under the request's encryptionKey"
        PUBLICKEY = "publickey", "age, for the recipient below"

    id = models.AutoField(primary_key=True)
    identifier = models.CharField(max_length=128, unique=True, validators=[validate_identifier])
    name = models.CharField(max_length=255, blank=True)
    private_encryption = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=Encryption.choices,
        blank=True,
        help_text="How files that hold personal data must be sealed.",
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
    encrypted_secret = models.BinaryField(
        null=True, editable=False, help_text="What devices are hashed with, encrypted."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.identifier

    def clean(self) -> None:
        if self.private_encryption == self.Encryption.PUBLICKEY and not self.recipient:
            raise ValidationError({"recipient": "Needed where private files are sealed for it."})


class ApiKey(models.Model):
    """A caller. The key itself is shown once; here lies its keyed digest."""

    SCOPES = ("ingest", "export:response", "export:private", "pull", "erase", "audit")

    name = models.CharField(max_length=128)
    public_id = models.CharField(max_length=8, unique=True)
    digest = models.CharField(max_length=64)
    scopes = models.CharField(max_length=255, help_text="Separated by blanks.")
    channels = models.ManyToManyField(Channel, related_name="keys")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    networks = models.CharField(
        max_length=1000,
        blank=True,
        default="",
        db_default="",
        help_text="Where it may be used from, separated by blanks; empty is anywhere.",
    )

    class Meta:
        constraints = [
            # whoever can write events must not read phones
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
    """What the people of a group may do in a channel. Superusers may do everything everywhere."""

    group = models.ForeignKey(Group, on_delete=models.CASCADE, related_name="roles")
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="roles")
    submit_response = models.BooleanField(
        default=False, help_text="Ask for what holds no people's names, and download it."
    )
    submit_private = models.BooleanField(
        default=False, help_text="Ask for files of people, and download them."
    )
    administer = models.BooleanField(
        default=False, help_text="Keys, destinations, recurring requests, rejected events."
    )
    audit = models.BooleanField(default=False, help_text="Read the ledger.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["group", "channel"], name="role_unique")]


class Application(models.Model):
    """A registered sender of a source that has no keys of ours: its id is in every call."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT)
    identifier = models.CharField(max_length=128, unique=True, validators=[validate_identifier])
    name = models.CharField(max_length=255, blank=True)
    secret_digest = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Of the password in HTTP Basic."
    )
    cookie_digest = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Of the cookie every call must carry."
    )
    strict_hash = models.BooleanField(
        default=False, help_text="Refuse a batch whose hashCode is not its body's."
    )
    allowed_origins = models.TextField(
        blank=True, help_text="Origins of web pages that may send, one a line."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    disabled_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.identifier
