"""The rows of what arrived and of who may send and ask."""

from django.contrib.auth.models import Group
from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator
from django.db import models
from django.utils import timezone

from ingest.positions import Position, XidField

IDENTIFIER = r"^[A-Za-z0-9._-]{1,128}\Z"
identifier = RegexValidator(IDENTIFIER, "Letters, digits, '.', '_' and '-', up to 128.")


def age_recipient(value: str) -> None:
    """Raises `ValidationError` for what is no public key of age."""
    import pyrage  # needed by few processes

    try:
        pyrage.x25519.Recipient.from_str(value)
    except pyrage.RecipientError:
        raise ValidationError("No public key of age; `age-keygen` prints one: age1…") from None


class Channel(models.Model):
    """An owning organisation; the scope of every permission."""

    class Sealing(models.TextChoices):
        NONE = "", "as asked for"
        PASSWORD = "password", "AES-256 zip under the request's encryptionKey"
        PUBLICKEY = "publickey", "age, for the recipient below"

    id = models.AutoField(primary_key=True)
    identifier = models.CharField(max_length=128, unique=True, validators=[identifier])
    name = models.CharField(max_length=255, blank=True)
    private_sealing = models.CharField(
        default="",
        db_default="",
        max_length=16,
        choices=Sealing.choices,
        blank=True,
        help_text="How files that hold personal data must be sealed.",
    )
    recipient = models.CharField(
        default="",
        db_default="",
        max_length=128,
        blank=True,
        validators=[age_recipient],
        help_text="age1…, a public key.",
    )
    hash_device_ids = models.BooleanField(
        default=False,
        db_default=False,
        help_text="In response and private files, a keyed hash in place of each device id.",
    )
    sealed_secret = models.BinaryField(
        null=True, editable=False, help_text="What devices are hashed with, encrypted."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.identifier

    def clean(self) -> None:
        if self.private_sealing == self.Sealing.PUBLICKEY and not self.recipient:
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
                name="apikey_private_never_ingests",
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
        default=False, help_text="Keys, sinks, recurring requests, rejected events."
    )
    audit = models.BooleanField(default=False, help_text="Read the ledger.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["group", "channel"], name="role_once_each")]


class LedgerEntry(models.Model):
    """Who did what, when, from where. Only ever added to; see `ingest/ledger.py`.

    It names no row by a foreign key: it outlives what it speaks of.
    """

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(default=timezone.now, editable=False)
    action = models.CharField(max_length=64)
    outcome = models.CharField(max_length=32, default="done")
    actor = models.CharField(max_length=255, help_text="A key's name, a user's, or 'service'.")
    key = models.CharField(max_length=8, blank=True, help_text="The key's public id.")
    channel = models.CharField(max_length=128, blank=True)
    subject = models.CharField(max_length=255, blank=True, help_text="What it was done to.")
    address = models.CharField(max_length=64, blank=True, help_text="The caller's, shortened.")
    details = models.JSONField(default=dict)

    class Meta:
        verbose_name_plural = "ledger"
        indexes = [
            models.Index(fields=["channel", "at", "id"], name="ledger_in_time"),
            models.Index(fields=["at", "id"], name="ledger_of_day"),
        ]


class LedgerSeal(models.Model):
    """A day (UTC) of the ledger, digested with the day before; see `ingest/seals.py`."""

    day = models.DateField(unique=True)
    entries = models.IntegerField()
    previous = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, help_text="SHA-256, in hex.")
    sealed_at = models.DateTimeField(default=timezone.now)


class Refusal(models.Model):
    """Failed tries to get in, counted until their hour is over; see `ingest/refusals.py`."""

    hour = models.DateTimeField()
    action = models.CharField(max_length=64)
    address = models.CharField(max_length=64, blank=True)
    count = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["hour", "action", "address"], name="refusal_once_each")
        ]


class Application(models.Model):
    """A registered sender of a dialect that has no keys of ours: its id is in every call."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT)
    identifier = models.CharField(max_length=128, unique=True, validators=[identifier])
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


class Conversation(models.Model):
    """A bot; made nameless at the first sight of one of its events."""

    id = models.AutoField(primary_key=True)
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    identifier = models.CharField(max_length=255)
    name = models.CharField(max_length=255, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "identifier"], name="conversation_identity")
        ]

    def __str__(self) -> str:
        return self.name or self.identifier


class StoredEvent(models.Model):
    """An event's row. Never rewritten, but for learning which position superseded it."""

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=Position(), editable=False)
    superseded_xid = XidField(null=True, editable=False)
    occurred_at = models.DateTimeField()
    received_at = models.DateTimeField()
    # no database constraint on these three: none is ever deleted, and the check costs every row
    channel = models.ForeignKey(
        Channel, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    conversation = models.ForeignKey(
        Conversation, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    application = models.ForeignKey(
        Application, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    is_answer = models.BooleanField()
    identity = models.UUIDField()
    dialect = models.TextField()
    type = models.TextField()
    device_id = models.TextField()
    session_id = models.TextField()
    note = models.TextField(db_default="")
    payload = models.JSONField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["identity"],
                condition=models.Q(superseded_xid__isnull=True),
                name="storedevent_one_living",
            )
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="storedevent_arrival"),
            models.Index(
                fields=["conversation", "occurred_at", "id"],
                condition=models.Q(conversation__isnull=False),
                name="storedevent_conversation",
            ),
            models.Index(  # empty where the first one wins
                fields=["channel", "superseded_xid"],
                condition=models.Q(superseded_xid__isnull=False),
                name="storedevent_superseded",
            ),
            models.Index(  # what lies in a session
                fields=["channel", "device_id", "occurred_at"],
                condition=~models.Q(device_id="") & ~models.Q(dialect="desk"),
                name="storedevent_of_device",
            ),
            models.Index(
                fields=["channel", "device_id"],
                condition=models.Q(dialect="desk"),
                name="storedevent_of_desk_device",
            ),
        ]


class Rejected(models.Model):
    """What of a batch was no event, kept with the reason; its bytes are sealed."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    application = models.ForeignKey(Application, null=True, on_delete=models.PROTECT)
    dialect = models.CharField(max_length=32)
    received_at = models.DateTimeField()
    position = models.IntegerField(help_text="Place in its batch, from 0.")
    reason = models.CharField(max_length=64)
    detail = models.TextField()
    digest = models.CharField(max_length=64, help_text="SHA-256 of the bytes as sent.")
    size = models.IntegerField(help_text="Bytes as sent.")
    sealed = models.BinaryField(help_text="The first 256 KiB as sent, encrypted.")
    replayed_at = models.DateTimeField(null=True, help_text="When it went in after all.")

    class Meta:
        verbose_name_plural = "rejected"
        constraints = [
            # a sender that resends for ever fills one row
            models.UniqueConstraint(
                fields=["channel", "dialect", "digest"], name="rejected_once_each"
            )
        ]
        indexes = [models.Index(fields=["channel", "reason", "received_at"], name="rejected_why")]


class Participant(models.Model):
    """A person seen in a channel, by device id."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    device_id = models.CharField(max_length=255)
    user_name = models.CharField(max_length=255, blank=True)
    sealed_phone = models.BinaryField(null=True)
    consent = models.BooleanField(null=True, help_text="Unknown means no.")
    consent_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(
        null=True, help_text="When consent, or the phone, was last taken back, by our clock."
    )
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "device_id"], name="participant_identity")
        ]
        indexes = [
            models.Index(
                fields=["channel", "withdrawn_at"],
                condition=models.Q(withdrawn_at__isnull=False),
                name="participant_withdrawn",
            ),
            models.Index(  # asked of every answer that is read
                fields=["channel", "device_id"],
                condition=models.Q(consent=False),
                name="participant_refused",
            ),
        ]

    def __str__(self) -> str:
        return self.device_id


class Erasure(models.Model):
    """That a person was erased: the certificate, and what keeps a late copy of the profile out.

    It holds nothing of the person: `subject` is a hash under the channel's secret.
    """

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    subject = models.CharField(max_length=64, help_text="Keyed hash of the device id.")
    asked_at = models.DateTimeField(help_text="When it was asked for last.")
    finished_at = models.DateTimeField(null=True, help_text="When nothing was left.")
    counts = models.JSONField(default=dict, help_text="What was erased, in all.")
    sealed_device = models.BinaryField(
        null=True, editable=False, help_text="The device id, encrypted, until it is finished."
    )
    last_event = models.BigIntegerField(
        default=0, editable=False, help_text="Events up to here are to be erased."
    )
    last_rejected = models.BigIntegerField(
        default=0, editable=False, help_text="Rejected ones up to here were looked through."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "subject"], name="erasure_identity")
        ]
        indexes = [
            models.Index(
                fields=["asked_at"],
                condition=models.Q(finished_at=None),
                name="erasure_unfinished",
            )
        ]

    def __str__(self) -> str:
        return self.subject


class Deriver(models.Model):
    """How far sessions and users of a channel are derived: the position of its last event read."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    derived_at = models.DateTimeField(null=True)


class Horizon(models.Model):
    """Where a channel's feed begins: its events up to this position were pruned."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True)
    xid = XidField(default=0)
    event_id = models.BigIntegerField(default=0)
    arrived_before = models.DateTimeField(help_text="So did all that was pruned.")
    pruned_xid = XidField(
        default=0, help_text="The last pruning's own position: readers below it saw what it took."
    )


class Session(models.Model):
    """A device's events with no long pause between them, or a session its sender made.

    `xid` is the position of the last change, so that a reader of the feed meets it again.
    """

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=Position(), editable=False)
    version = models.IntegerField(default=1, help_text="Grows with every change.")
    modified_at = models.DateTimeField()
    key = models.UUIDField()
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    application = models.ForeignKey(
        Application, null=True, on_delete=models.DO_NOTHING, db_constraint=False, db_index=False
    )
    parent = models.ForeignKey(
        "self",
        null=True,
        on_delete=models.PROTECT,
        db_index=False,
        help_text="The session that this one became a part of.",
    )
    given = models.BooleanField(help_text="Made by its sender and taken as it is.")
    device_id = models.TextField(blank=True)
    user_id = models.TextField(blank=True)
    sender_session_id = models.TextField(blank=True, help_text="The first one seen.")
    landing_url = models.TextField(blank=True)
    started_at = models.DateTimeField(help_text="Of the first event.")
    ended_at = models.DateTimeField(help_text="Of the last event.")
    closes_at = models.DateTimeField(help_text="When no event can extend it any more.")
    closed = models.BooleanField(
        db_default=False, editable=False, help_text="All that came until its close is in it."
    )
    event_count = models.IntegerField()
    answer_count = models.IntegerField()
    types = models.JSONField(help_text="Events by type.")
    pieces = models.JSONField(editable=False, help_text="What it is summed from.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "key"], name="session_identity"),
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="session_arrival"),
            models.Index(fields=["channel", "device_id", "ended_at"], name="session_of_device"),
            models.Index(
                fields=["closes_at"], condition=models.Q(closed=False), name="session_to_close"
            ),
        ]

    def __str__(self) -> str:
        return str(self.key)


class AppUser(models.Model):
    """Who used an application: a user id its sender gave, or a device nobody signed in on."""

    id = models.BigAutoField(primary_key=True)
    xid = XidField(db_default=Position(), editable=False)
    version = models.IntegerField(default=1, help_text="Grows with every change.")
    modified_at = models.DateTimeField()
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    user_id = models.TextField(blank=True)
    device_id = models.TextField(blank=True, help_text="The first one seen.")
    device_seen_at = models.DateTimeField(null=True, editable=False)
    identifier = models.TextField(help_text="The user id, or the device id where there is none.")
    anonymous = models.BooleanField(help_text="Known by a device alone.")
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    attributes = models.JSONField(help_text="By name: the value and when it was set.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["channel", "identifier", "anonymous"], name="appuser_identity"
            )
        ]
        indexes = [
            models.Index(fields=["channel", "xid", "id"], name="appuser_arrival"),
            models.Index(fields=["channel", "device_id"], name="appuser_of_device"),
        ]

    def __str__(self) -> str:
        return self.identifier
