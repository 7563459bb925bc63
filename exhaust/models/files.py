"""Files of jobs, and the links that open them."""

from django.db import models
from django.utils import timezone

from exhaust.models.jobs import Job


class File(models.Model):
    """One file of an exhaust. It exists for others because its job says SUCCESS."""

    job = models.ForeignKey(Job, on_delete=models.PROTECT, related_name="files", db_index=False)
    part = models.IntegerField(default=1)
    key = models.CharField(max_length=255, unique=True)
    name = models.CharField(max_length=400, help_text="What a download is called.")
    content_type = models.CharField(max_length=128)
    row_count = models.BigIntegerField()
    byte_count = models.BigIntegerField()
    sha256 = models.CharField(max_length=64)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(
        null=True, help_text="When somebody in it withdrew consent or was erased."
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
    def format(self) -> str:
        """As its key ends: `csv.gz`, and `json` for a manifest."""
        return self.key.rpartition("/")[2].partition(".")[2]


class Link(models.Model):
    """A way to a file until its expiry.

    A bucket's address is signed on read and nowhere kept. Of our own the digest is kept, and the
    token encrypted, to be told again; a link that was revoked has it no more.
    """

    MAX_USES = 100

    file = models.ForeignKey(File, on_delete=models.PROTECT, related_name="links")
    digest = models.CharField(max_length=64, unique=True, null=True, editable=False)  # noqa: DJ001
    encrypted_token = models.BinaryField(null=True, editable=False)
    issued_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    use_count = models.IntegerField(default=0, help_text="Downloads through our own address.")
    max_uses = models.IntegerField(db_default=100, default=MAX_USES)
