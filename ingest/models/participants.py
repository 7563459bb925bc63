"""Participants, and their erasures."""

from django.db import models

from ingest.models.accounts import Channel


class Participant(models.Model):
    """A person seen in a channel, by device id."""

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    device_id = models.CharField(max_length=255)
    user_name = models.CharField(max_length=255, blank=True)
    encrypted_phone = models.BinaryField(null=True)
    phone_digest = models.BigIntegerField(
        null=True, editable=False, help_text="The start of the phone's hash under a channel's key."
    )
    consent = models.BooleanField(null=True, help_text="Unknown means no.")
    consent_at = models.DateTimeField(null=True)
    earlier_consents = models.JSONField(
        null=True, editable=False, help_text="Consents before, each until when; the newest 20."
    )
    withdrawn_at = models.DateTimeField(
        null=True, help_text="When consent, or the phone, was last withdrawn, by our clock."
    )
    files_pending = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Whether files of before `withdrawn_at` are still to be found.",
    )
    updated_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "device_id"], name="participant_identity")
        ]
        indexes = [
            models.Index(
                fields=["channel"],
                condition=models.Q(files_pending=True),
                name="participant_files_pending",
            ),
            models.Index(
                fields=["channel", "withdrawn_at"],
                condition=models.Q(withdrawn_at__isnull=False),
                name="participant_withdrawn",
            ),
            models.Index(  # asked of every answer that is read
                fields=["channel", "device_id"],
                condition=models.Q(consent=False),
                name="participant_consent_refused",
            ),
            models.Index(
                fields=["channel", "updated_at"],
                condition=models.Q(consent=False),
                name="participant_refused_at",
            ),
            models.Index(
                fields=["channel", "phone_digest"],
                condition=models.Q(phone_digest__isnull=False),
                name="participant_phone",
            ),
            models.Index(  # rows of before there was a digest
                fields=["channel", "id"],
                condition=models.Q(phone_digest__isnull=True, encrypted_phone__isnull=False),
                name="participant_phone_unhashed",
            ),
        ]

    def __str__(self) -> str:
        return self.device_id


class Erasure(models.Model):
    """An erasure: the certificate, which also keeps a late copy of the profile from being stored.

    It holds no personal data: `subject` is a hash under the channel's secret.
    """

    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, db_index=False)
    subject = models.CharField(max_length=64, help_text="Keyed hash of the device id.")
    requested_at = models.DateTimeField(help_text="Time of the last request.")
    finished_at = models.DateTimeField(null=True, help_text="Empty while it is unfinished.")
    counts = models.JSONField(default=dict, help_text="Erased rows, by kind.")
    searched = models.JSONField(
        default=dict,
        db_default={},
        help_text="Exports whose files were searched; rejected events that were searched, that"
        " were decrypted for it, and that have no key any more.",
    )
    encrypted_device_id = models.BinaryField(
        null=True, editable=False, help_text="The device id, encrypted, while it is unfinished."
    )
    last_event = models.BigIntegerField(
        default=0, editable=False, help_text="Events up to this id are erased."
    )
    last_rejected = models.BigIntegerField(
        default=0, editable=False, help_text="Rejected events up to this id were searched."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "subject"], name="erasure_identity")
        ]
        indexes = [
            models.Index(
                fields=["requested_at"],
                condition=models.Q(finished_at=None),
                name="erasure_unfinished",
            )
        ]

    def __str__(self) -> str:
        return self.subject
