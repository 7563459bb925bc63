"""Files of jobs, and the links that open them."""

from typing import ClassVar

from django.db import models
from django.db.models import Case, Exists, F, OuterRef, Q, Value, When
from django.db.models.functions import Now

from exhaust.models.jobs import Job
from ingest.db.clock import read_clock


class File(models.Model):
    """One file of an exhaust. It exists for others because its job says SUCCESS.

    `withdrawn_at` is also when a user deleted it.
    """

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="files", db_index=False)
    part = models.IntegerField(default=1)
    key = models.CharField(max_length=255, unique=True)
    name = models.CharField(max_length=400, help_text="What a download is called.")
    content_type = models.CharField(max_length=128)
    row_count = models.BigIntegerField()
    byte_count = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=read_clock)
    deleted_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(
        null=True, help_text="When a participant in it withdrew consent or was erased."
    )

    class Meta:
        constraints = [
            # a job whose file was withdrawn may make another
            models.UniqueConstraint(
                fields=["job", "part"],
                condition=models.Q(withdrawn_at__isnull=True),
                name="file_of_job",
            )
        ]
        indexes = [
            models.Index(fields=["job"], name="file_by_job"),
            models.Index(
                fields=["withdrawn_at"],
                condition=models.Q(withdrawn_at__isnull=False, deleted_at__isnull=True),
                name="file_to_remove",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_available(self) -> bool:
        return self.deleted_at is None and self.withdrawn_at is None

    @property
    def format(self) -> str:
        """As its key ends: `csv.gz`, and `json` for a manifest."""
        return self.key.rpartition("/")[2].partition(".")[2]


AVAILABLE_FILE = Q(deleted_at__isnull=True, withdrawn_at__isnull=True)
# The one rule by which a link opens its file now. The database's clock decides what has expired.
# A subquery and no join: an UPDATE that waited for another one looks at the link again.
USABLE_LINK = Q(expires_at__gt=Now(), revoked_at__isnull=True, use_count__lt=F("max_uses")) & Q(
    Exists(File.objects.filter(AVAILABLE_FILE, pk=OuterRef("file")))
)


class _LinkManager(models.Manager["Link"]):
    def get_queryset(self) -> "models.QuerySet[Link]":
        """Returns links with `is_usable`."""
        is_usable = Case(When(USABLE_LINK, then=Value(True)), default=Value(False))
        return super().get_queryset().annotate(is_usable=is_usable)  # type: ignore[no-redef]


class Link(models.Model):
    """A way to a file until its expiry.

    The digest of its token is stored, and the encrypted token, so that it can be shown again; a
    revoked link has no token.
    """

    MAX_USES = 100  # of a private file
    UNLIMITED = 2**31 - 1
    is_usable: bool  # the manager reads it with the row

    objects: ClassVar[_LinkManager] = _LinkManager()

    file = models.ForeignKey(File, on_delete=models.PROTECT, related_name="links")
    digest = models.CharField(max_length=64, unique=True, null=True, editable=False)  # noqa: DJ001
    encrypted_token = models.BinaryField(null=True, editable=False)
    issued_at = models.DateTimeField(default=read_clock)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    use_count = models.IntegerField(default=0, help_text="Downloads through our own address.")
    max_uses = models.IntegerField(db_default=MAX_USES, default=MAX_USES)
    created_by = models.CharField(
        max_length=255, default="", db_default="", help_text="The user, or the key with its id."
    )
    is_shared = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Whether a person made it to share; no answer of the API shows it.",
    )
