import django.core.validators
import django.db.models.deletion
import django.utils.timezone
import ingest.models.accounts
import ingest.models.fields
from django.db import migrations, models

from ingest.feed.restore import create_functions


def create_positions(apps, schema_editor):
    """The functions that the columns made below have as their default."""
    create_functions(0)


def compress_payloads(apps, schema_editor):
    """lz4 about doubles the rate at which payloads are read; where it is not built in, pglz stays."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("""
            DO $$ BEGIN
                ALTER TABLE ingest_storedevent ALTER COLUMN payload SET COMPRESSION lz4;
            EXCEPTION WHEN feature_not_supported THEN NULL;
            END $$
        """)


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [
        migrations.RunPython(create_positions, migrations.RunPython.noop),
        migrations.CreateModel(
            name="AuditDigest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("day", models.DateField(unique=True)),
                ("entries", models.IntegerField()),
                ("previous", models.CharField(blank=True, max_length=64)),
                ("digest", models.CharField(help_text="SHA-256, in hex.", max_length=64)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
        ),
        migrations.CreateModel(
            name="Channel",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                (
                    "identifier",
                    models.CharField(
                        max_length=128,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[A-Za-z0-9._-]{1,128}\\Z",
                                "Letters, digits, '.', '_' and '-', up to 128.",
                            )
                        ],
                    ),
                ),
                ("name", models.CharField(blank=True, max_length=255)),
                (
                    "private_encryption",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("", "as asked for"),
                            ("password", "AES-256 zip under the request's encryptionKey"),
                            ("publickey", "age, for the recipient below"),
                        ],
                        db_default="",
                        default="",
                        help_text="Encryption that private files must have.",
                        max_length=16,
                    ),
                ),
                (
                    "recipient",
                    models.CharField(
                        blank=True,
                        db_default="",
                        default="",
                        help_text="age1…, a public key.",
                        max_length=128,
                        validators=[ingest.models.accounts.validate_age_recipient],
                    ),
                ),
                (
                    "hash_device_ids",
                    models.BooleanField(
                        db_default=False,
                        default=False,
                        help_text="In response and private files, a keyed hash in place of each device id.",
                    ),
                ),
                (
                    "encrypted_secret",
                    models.BinaryField(
                        help_text="The secret of device hashes, encrypted.", null=True
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name="AuditEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "recorded_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                ("action", models.CharField(max_length=64)),
                ("outcome", models.CharField(default="done", max_length=32)),
                (
                    "actor",
                    models.CharField(
                        help_text="A key's name, a user's, or 'service'.", max_length=255
                    ),
                ),
                (
                    "key",
                    models.CharField(blank=True, help_text="The key's public id.", max_length=8),
                ),
                ("channel", models.CharField(blank=True, max_length=128)),
                (
                    "subject",
                    models.CharField(blank=True, help_text="Object of the action.", max_length=255),
                ),
                (
                    "address",
                    models.CharField(
                        blank=True, help_text="The caller's network.", max_length=64
                    ),
                ),
                ("details", models.JSONField(default=dict)),
            ],
            options={
                "verbose_name": "audit event",
                "indexes": [
                    models.Index(
                        fields=["channel", "recorded_at", "id"], name="auditevent_channel_time"
                    ),
                    models.Index(fields=["recorded_at", "id"], name="auditevent_time"),
                ],
            },
        ),
        migrations.CreateModel(
            name="AuthFailureCount",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("hour", models.DateTimeField()),
                ("action", models.CharField(max_length=64)),
                ("address", models.CharField(blank=True, max_length=64)),
                ("count", models.BigIntegerField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("hour", "action", "address"), name="authfailurecount_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="DerivationState",
            fields=[
                (
                    "channel",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="ingest.channel",
                    ),
                ),
                ("xid", ingest.models.fields.XidField(default=0)),
                ("event_id", models.BigIntegerField(default=0)),
                ("derived_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="PruneState",
            fields=[
                (
                    "channel",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to="ingest.channel",
                    ),
                ),
                ("xid", ingest.models.fields.XidField(default=0)),
                ("event_id", models.BigIntegerField(default=0)),
                ("pruned_before", models.DateTimeField(help_text="Every pruned event did.")),
                (
                    "pruned_xid",
                    ingest.models.fields.XidField(
                        default=0,
                        help_text='Position of the last pruning: readers below it saw the pruned events.',
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Application",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                (
                    "identifier",
                    models.CharField(
                        max_length=128,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[A-Za-z0-9._-]{1,128}\\Z",
                                "Letters, digits, '.', '_' and '-', up to 128.",
                            )
                        ],
                    ),
                ),
                ("name", models.CharField(blank=True, max_length=255)),
                (
                    "secret_digest",
                    models.CharField(
                        blank=True,
                        editable=False,
                        help_text="Digest of the password in HTTP Basic.",
                        max_length=64,
                    ),
                ),
                (
                    "cookie_digest",
                    models.CharField(
                        blank=True,
                        editable=False,
                        help_text="Digest of the cookie that every call needs.",
                        max_length=64,
                    ),
                ),
                (
                    "strict_hash",
                    models.BooleanField(
                        default=False, help_text='Reject a batch whose hashCode does not match its body.'
                    ),
                ),
                (
                    "allowed_origins",
                    models.TextField(
                        blank=True, help_text="Origins of web pages that may send, one a line."
                    ),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("disabled_at", models.DateTimeField(blank=True, null=True)),
                (
                    "channel",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to="ingest.channel"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Conversation",
            fields=[
                ("id", models.AutoField(primary_key=True, serialize=False)),
                ("identifier", models.CharField(max_length=255)),
                ("name", models.CharField(blank=True, max_length=255)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Erasure",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "subject",
                    models.CharField(help_text="Keyed hash of the device id.", max_length=64),
                ),
                ("requested_at", models.DateTimeField(help_text="Time of the last request.")),
                (
                    "finished_at",
                    models.DateTimeField(help_text="Empty while it is unfinished.", null=True),
                ),
                ("counts", models.JSONField(default=dict, help_text="Erased rows, by kind.")),
                (
                    "encrypted_device_id",
                    models.BinaryField(
                        help_text="The device id, encrypted, while it is unfinished.", null=True
                    ),
                ),
                (
                    "last_event",
                    models.BigIntegerField(
                        default=0, editable=False, help_text="Events up to this id are erased."
                    ),
                ),
                (
                    "last_rejected",
                    models.BigIntegerField(
                        default=0,
                        editable=False,
                        help_text="Rejected events up to this id were searched.",
                    ),
                ),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Participant",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("device_id", models.CharField(max_length=255)),
                ("user_name", models.CharField(blank=True, max_length=255)),
                ("encrypted_phone", models.BinaryField(null=True)),
                ("consent", models.BooleanField(help_text="Unknown means no.", null=True)),
                ("consent_at", models.DateTimeField(null=True)),
                (
                    "withdrawn_at",
                    models.DateTimeField(
                        help_text="When consent, or the phone, was last withdrawn, by our clock.",
                        null=True,
                    ),
                ),
                ("updated_at", models.DateTimeField()),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="RejectedEvent",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("source", models.CharField(max_length=32)),
                ("received_at", models.DateTimeField()),
                ("position", models.IntegerField(help_text="Index in its batch, from 0.")),
                ("reason", models.CharField(max_length=64)),
                ("detail", models.TextField()),
                (
                    "digest",
                    models.CharField(help_text="SHA-256 of the bytes as sent.", max_length=64),
                ),
                ("size", models.IntegerField(help_text="Bytes as sent.")),
                (
                    "encrypted_body",
                    models.BinaryField(help_text="The first 256 KiB as sent, encrypted."),
                ),
                (
                    "replayed_at",
                    models.DateTimeField(help_text="When a replay accepted it.", null=True),
                ),
                (
                    "application",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.application",
                    ),
                ),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
            options={
                "verbose_name": "rejected event",
            },
        ),
        migrations.CreateModel(
            name="Role",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "submit_response",
                    models.BooleanField(
                        default=False,
                        help_text='Request and download non-personal datasets.',
                    ),
                ),
                (
                    "submit_private",
                    models.BooleanField(
                        default=False, help_text="Request and download private files."
                    ),
                ),
                (
                    "administer",
                    models.BooleanField(
                        default=False,
                        help_text="Keys, destinations, recurring requests, rejected events.",
                    ),
                ),
                ("audit", models.BooleanField(default=False, help_text="Read the audit log.")),
                (
                    "channel",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="roles",
                        to="ingest.channel",
                    ),
                ),
                (
                    "group",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="roles",
                        to="auth.group",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Session",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "xid",
                    ingest.models.fields.XidField(
                        db_default=ingest.models.fields.CurrentPosition(), editable=False
                    ),
                ),
                ("version", models.IntegerField(default=1, help_text="Grows with every change.")),
                ("modified_at", models.DateTimeField()),
                ("key", models.UUIDField()),
                (
                    "is_client_session",
                    models.BooleanField(help_text="Made by the sender and stored as it is."),
                ),
                ("device_id", models.TextField(blank=True)),
                ("user_id", models.TextField(blank=True)),
                (
                    "sender_session_id",
                    models.TextField(blank=True, help_text="The first one seen."),
                ),
                ("landing_url", models.TextField(blank=True)),
                ("started_at", models.DateTimeField(help_text="Of the first event.")),
                ("ended_at", models.DateTimeField(help_text="Of the last event.")),
                (
                    "closes_at",
                    models.DateTimeField(help_text="When no event can extend it any more."),
                ),
                (
                    "closed",
                    models.BooleanField(
                        db_default=False,
                        editable=False,
                        help_text="It holds every event that arrived before its close.",
                    ),
                ),
                ("event_count", models.IntegerField()),
                ("answer_count", models.IntegerField()),
                ("types", models.JSONField(help_text="Events by type.")),
                ("buckets", models.JSONField(editable=False, help_text="Parts that it is summed from.")),
                (
                    "application",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="ingest.application",
                    ),
                ),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
                (
                    "parent",
                    models.ForeignKey(
                        db_index=False,
                        help_text="The session that this one was merged into.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.session",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="StoredEvent",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "xid",
                    ingest.models.fields.XidField(
                        db_default=ingest.models.fields.CurrentPosition(), editable=False
                    ),
                ),
                ("superseded_xid", ingest.models.fields.XidField(editable=False, null=True)),
                ("occurred_at", models.DateTimeField()),
                ("received_at", models.DateTimeField()),
                ("is_answer", models.BooleanField()),
                ("identity", models.UUIDField()),
                ("source", models.TextField()),
                ("type", models.TextField()),
                ("device_id", models.TextField()),
                ("session_id", models.TextField()),
                ("note", models.TextField(db_default="")),
                ("payload", models.JSONField()),
                (
                    "application",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="ingest.application",
                    ),
                ),
                (
                    "channel",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="ingest.channel",
                    ),
                ),
                (
                    "conversation",
                    models.ForeignKey(
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.DO_NOTHING,
                        to="ingest.conversation",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="AppUser",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                (
                    "xid",
                    ingest.models.fields.XidField(
                        db_default=ingest.models.fields.CurrentPosition(), editable=False
                    ),
                ),
                ("version", models.IntegerField(default=1, help_text="Grows with every change.")),
                ("modified_at", models.DateTimeField()),
                ("user_id", models.TextField(blank=True)),
                ("device_id", models.TextField(blank=True, help_text="The first one seen.")),
                ("device_seen_at", models.DateTimeField(editable=False, null=True)),
                (
                    "identifier",
                    models.TextField(
                        help_text="The user id, or the device id where there is none."
                    ),
                ),
                ("anonymous", models.BooleanField(help_text="Known by a device alone.")),
                ("first_seen_at", models.DateTimeField()),
                ("last_seen_at", models.DateTimeField()),
                (
                    "attributes",
                    models.JSONField(help_text="By name: the value and the time it was set."),
                ),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="ingest.channel",
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(fields=["channel", "xid", "id"], name="appuser_arrival"),
                    models.Index(fields=["channel", "device_id"], name="appuser_device"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("channel", "identifier", "anonymous"), name="appuser_identity"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=128)),
                ("public_id", models.CharField(max_length=8, unique=True)),
                ("digest", models.CharField(max_length=64)),
                ("scopes", models.CharField(help_text="Separated by blanks.", max_length=255)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, null=True)),
                ("last_used_at", models.DateTimeField(blank=True, null=True)),
                (
                    "networks",
                    models.CharField(
                        blank=True,
                        db_default="",
                        default="",
                        help_text="Networks it may be used from, separated by blanks; empty for any.",
                        max_length=1000,
                    ),
                ),
                ("channels", models.ManyToManyField(related_name="keys", to="ingest.channel")),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("scopes__contains", "ingest"), _negated=True),
                            models.Q(
                                models.Q(("scopes__contains", "export:private"), _negated=True),
                                models.Q(("scopes__contains", "pull"), _negated=True),
                                models.Q(("scopes__contains", "erase"), _negated=True),
                                models.Q(("scopes__contains", "audit"), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="apikey_ingest_stands_alone",
                    )
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="conversation",
            constraint=models.UniqueConstraint(
                fields=("channel", "identifier"), name="conversation_identity"
            ),
        ),
        migrations.AddIndex(
            model_name="erasure",
            index=models.Index(
                condition=models.Q(("finished_at", None)),
                fields=["requested_at"],
                name="erasure_unfinished",
            ),
        ),
        migrations.AddConstraint(
            model_name="erasure",
            constraint=models.UniqueConstraint(
                fields=("channel", "subject"), name="erasure_identity"
            ),
        ),
        migrations.AddIndex(
            model_name="participant",
            index=models.Index(
                condition=models.Q(("withdrawn_at__isnull", False)),
                fields=["channel", "withdrawn_at"],
                name="participant_withdrawn",
            ),
        ),
        migrations.AddIndex(
            model_name="participant",
            index=models.Index(
                condition=models.Q(("consent", False)),
                fields=["channel", "device_id"],
                name="participant_consent_refused",
            ),
        ),
        migrations.AddIndex(
            model_name="participant",
            index=models.Index(
                condition=models.Q(("consent", False)),
                fields=["channel", "updated_at"],
                name="participant_refused_at",
            ),
        ),
        migrations.AddConstraint(
            model_name="participant",
            constraint=models.UniqueConstraint(
                fields=("channel", "device_id"), name="participant_identity"
            ),
        ),
        migrations.AddIndex(
            model_name="rejectedevent",
            index=models.Index(
                fields=["channel", "reason", "received_at"], name="rejectedevent_reason"
            ),
        ),
        migrations.AddConstraint(
            model_name="rejectedevent",
            constraint=models.UniqueConstraint(
                fields=("channel", "source", "digest"), name="rejectedevent_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="role",
            constraint=models.UniqueConstraint(fields=("group", "channel"), name="role_unique"),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(fields=["channel", "xid", "id"], name="session_arrival"),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(fields=["channel", "device_id", "ended_at"], name="session_device"),
        ),
        migrations.AddIndex(
            model_name="session",
            index=models.Index(
                condition=models.Q(("closed", False)), fields=["closes_at"], name="session_unclosed"
            ),
        ),
        migrations.AddConstraint(
            model_name="session",
            constraint=models.UniqueConstraint(fields=("channel", "key"), name="session_identity"),
        ),
        migrations.AddIndex(
            model_name="storedevent",
            index=models.Index(fields=["channel", "xid", "id"], name="storedevent_arrival"),
        ),
        migrations.AddIndex(
            model_name="storedevent",
            index=models.Index(
                condition=models.Q(("conversation__isnull", False)),
                fields=["conversation", "occurred_at", "id"],
                name="storedevent_conversation",
            ),
        ),
        migrations.AddIndex(
            model_name="storedevent",
            index=models.Index(
                condition=models.Q(("superseded_xid__isnull", False)),
                fields=["channel", "superseded_xid"],
                name="storedevent_superseded",
            ),
        ),
        migrations.AddIndex(
            model_name="storedevent",
            index=models.Index(
                condition=models.Q(
                    models.Q(("device_id", ""), _negated=True),
                    models.Q(("source", "desk"), _negated=True),
                ),
                fields=["channel", "device_id", "occurred_at"],
                name="storedevent_device",
            ),
        ),
        migrations.AddIndex(
            model_name="storedevent",
            index=models.Index(
                condition=models.Q(("source", "desk")),
                fields=["channel", "device_id"],
                name="storedevent_desk_device",
            ),
        ),
        migrations.AddConstraint(
            model_name="storedevent",
            constraint=models.UniqueConstraint(
                condition=models.Q(("superseded_xid__isnull", True)),
                fields=("identity",),
                name="storedevent_one_current",
            ),
        ),
        migrations.RunPython(compress_payloads, migrations.RunPython.noop),
    ]
