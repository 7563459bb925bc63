"""Channels side by side, each with one row of everything there is.

All names of a channel have its two letters in the same places, so that an answer about a channel's
object can be compared with an answer about a missing one. `SECRET-<letters>` is in every text that
no request names.
"""

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.utils import timezone

from exhaust.feed import cursor, pages
from exhaust.files import links, storage
from exhaust.models import (
    Callback,
    CallbackSecret,
    ChatWebhook,
    DeadLetter,
    Delivery,
    Destination,
    File,
    Job,
    Link,
    Notice,
    NoticeChoice,
    OwnDataset,
    SavedView,
    Schedule,
    Transition,
)
from ingest.auth import keys
from ingest.models import (
    Application,
    AppUser,
    Channel,
    Conversation,
    DerivationState,
    Erasure,
    Participant,
    RejectedDay,
    RejectedEvent,
    RejectedWord,
    Session,
    StoredEvent,
)
from ingest.privacy.encryption import encrypt

MOMENT = datetime(2022, 4, 1, 4, tzinfo=UTC)
SCOPES = ("ingest", "export:response", "export:private", "pull", "erase")
READING = SCOPES[1:4]


@dataclass(frozen=True)
class Names:
    """The names of a channel's objects; with letters that no channel has, names of no object."""

    letters: str

    @property
    def channel(self) -> str:
        return {"bb": "Org.One", "cc": "org.one", "dd": "Org.Two"}.get(self.letters, "Org.Non")

    @property
    def tag(self) -> str:
        return f"tag-{self.letters}"

    @property
    def request_id(self) -> str:
        return (self.letters * 16).upper()

    @property
    def private_id(self) -> str:
        return (self.letters * 15).upper() + "99"

    @property
    def conversation(self) -> str:
        return f"conversation-{self.letters}"

    @property
    def application(self) -> str:
        return f"application-{self.letters}"

    @property
    def schedule(self) -> str:
        return f"schedule-{self.letters}"

    @property
    def destination(self) -> str:
        return f"destination-{self.letters}"

    @property
    def device(self) -> str:
        return f"device-{self.letters}"

    @property
    def event(self) -> str:
        return str(UUID(self.letters * 16))

    @property
    def session(self) -> str:
        return str(UUID("1111" + self.letters * 14))

    @property
    def secret(self) -> str:
        return f"SECRET-{self.letters}"


OWN, TWIN, OTHER, NONE = Names("bb"), Names("cc"), Names("dd"), Names("ee")


@dataclass(frozen=True)
class Tenant:
    """A stored channel, with a link's token and its cursors."""

    names: Names
    channel: Channel
    token: str
    cursors: dict[str, str]


def make_tenant(names: Names) -> Tenant:
    """Makes the channel with one row of everything."""
    channel = Channel.objects.create(identifier=names.channel, name=f"{names.secret} organisation")
    conversation = Conversation.objects.create(
        channel=channel, identifier=names.conversation, name=f"{names.secret} bot"
    )
    application, _ = keys.create_application(names.application, channel, name=names.secret)
    event = StoredEvent.objects.create(
        xid=1,
        occurred_at=MOMENT,
        received_at=MOMENT,
        channel=channel,
        conversation=conversation,
        application=application,
        is_answer=True,
        identity=UUID(names.event),
        source="telemetry",
        type="ASSESS",
        device_id=names.device,
        session_id=f"{names.secret}-session",
        payload={"eid": "ASSESS", "said": names.secret},
    )
    DerivationState.objects.create(
        channel=channel, xid=1, event_id=event.pk, derived_at=timezone.now()
    )
    rejected = RejectedEvent.objects.create(
        channel=channel,
        application=application,
        source="telemetry",
        received_at=MOMENT,
        position=0,
        reason="invalid",
        detail=f"{names.secret} rejected",
        digest=names.letters * 32,
        size=3,
        encrypted_body=encrypt(names.secret.encode()),
    )
    RejectedWord.objects.create(rejected_event=rejected, digest=1)
    RejectedDay.objects.create(channel=channel, day=MOMENT.date(), row_count=1, byte_count=3)
    Participant.objects.create(
        channel=channel,
        device_id=names.device,
        user_name=f"{names.secret} person",
        encrypted_phone=encrypt(b"+910000000001"),
        consent=True,
        consent_at=MOMENT,
        updated_at=MOMENT,
    )
    Session.objects.create(
        xid=1,
        modified_at=MOMENT,
        key=UUID(names.session),
        channel=channel,
        is_client_session=False,
        device_id=names.device,
        sender_session_id=f"{names.secret}-session",
        landing_url=f"https://{names.secret}.example/",
        started_at=timezone.now() - timedelta(hours=2),
        ended_at=timezone.now() - timedelta(hours=1),
        closes_at=timezone.now() - timedelta(minutes=30),
        closed=True,
        event_count=1,
        answer_count=1,
        types={"ASSESS": 1},
        buckets=[],
    )
    AppUser.objects.create(
        xid=1,
        modified_at=MOMENT,
        channel=channel,
        device_id=names.device,
        identifier=names.device,
        anonymous=True,
        first_seen_at=MOMENT,
        last_seen_at=MOMENT,
        attributes={"email": {"value": names.secret, "set_at": 1}},
    )
    token = _submit_job(names, channel)
    _make_destination(names, channel)
    _define_dataset(names, channel)
    _save_view(names, channel)
    cursors = {
        resource: cursor.encode(
            [1, 1], pages.query_fingerprint(pages.FeedQuery(channel.pk, resource))
        )
        for resource in ("events", "sessions", "users")
    }
    return Tenant(names, channel, token, cursors)


def _submit_job(names: Names, channel: Channel) -> str:
    """Requests with their files; the token of a link to the private one."""
    schedule = Schedule.objects.create(
        channel=channel,
        name=names.schedule,
        cron="0 6 * * *",
        dataset="uci-response-exhaust",
        conversation=names.conversation,
        window="yesterday",
        tag=names.tag,
        requested_by=f"{names.secret} requester",
        next_at=timezone.now() + timedelta(days=1),
        last_error=f"{names.secret} error",
    )
    token = ""
    for dataset, request_id in (
        ("uci-response-exhaust", names.request_id),
        ("uci-private-exhaust", names.private_id),
    ):
        job = Job.objects.create(
            channel=channel,
            tag=names.tag,
            request_id=request_id,
            dataset=dataset,
            config={
                "type": dataset,
                "conversationId": names.conversation,
                "startDate": "2022-04-01",
                "endDate": "2022-04-02",
                "note": names.secret,
            },
            fingerprint="f" * 64,
            requested_by=f"{names.secret} requester",
            status=Job.Status.SUCCESS,
            status_message=f"{names.secret} message",
            schedule=schedule,
            callback_url=f"https://{names.secret}.example/hook",
            watermark=5,
            completed_at=timezone.now(),
        )
        Transition.objects.create(
            job=job, status=Job.Status.SUCCESS, attempt=1, message=f"{names.secret} moved"
        )
        Callback.objects.create(
            channel=channel,
            kind=Delivery.Kind.CALLBACK,
            job=job,
            job_status=Job.Status.SUCCESS,
            url=job.callback_url,
            next_at=timezone.now() + timedelta(days=9),
            error=f"{names.secret} callback",
        )
        key = f"response/{job.pk}/1-{names.letters}.csv"
        storage.get_storage().put(key, io.BytesIO(names.secret.encode()), "text/csv")
        file = File.objects.create(
            job=job,
            key=key,
            name=f"{names.secret}.csv",
            content_type="text/csv",
            row_count=1,
            byte_count=len(names.secret),
            sha256="0" * 64,
        )
        link = links.get_or_create(file)
        assert link is not None
        token = links.build_url(link).split("/")[-2]
    Erasure.objects.create(
        channel=channel, subject=names.secret.ljust(64, "0"), requested_at=timezone.now()
    )
    CallbackSecret.objects.create(channel=channel, encrypted_secret=encrypt(names.secret.encode()))
    user = User.objects.create(username=names.secret)
    NoticeChoice.objects.create(channel=channel, user=user)
    Notice.objects.create(channel=channel, kind="export_failed", key=names.secret, user=user)
    ChatWebhook.objects.create(channel=channel, encrypted_url=encrypt(names.secret.encode()))
    return token


def _save_view(names: Names, channel: Channel) -> None:
    user = User.objects.create_user(f"viewer-{names.letters}")
    SavedView.objects.create(user=user, channel=channel, name=names.secret, query="text=a")


def _define_dataset(names: Names, channel: Channel) -> None:
    definition = {
        "name": f"own-{names.letters}",
        "title": f"{names.secret} dataset",
        "columns": [{"header": f"{names.secret} column", "path": "type"}],
    }
    OwnDataset.objects.create(channel=channel, name=definition["name"], definition=definition)


def _make_destination(names: Names, channel: Channel) -> None:
    destination = Destination.objects.create(
        channel=channel,
        name=names.destination,
        url=f"https://{names.secret}.example/hook",
        user=f"{names.secret} user",
        disabled_reason=f"{names.secret} off",
    )
    Delivery.objects.create(
        channel=channel,
        destination=destination,
        status="dead",
        error=f"{names.secret} delivery",
    )
    DeadLetter.objects.create(
        destination=destination,
        row=1,
        xid=1,
        document_id=f"{names.secret} document",
        answer=400,
        reason=f"{names.secret} reason",
    )


def make_key(*channels: Channel, scopes: tuple[str, ...] = READING) -> str:
    return keys.create_key("caller", scopes, channels)[1]


OWNED: tuple[tuple[Any, str], ...] = (
    (Channel, "identifier"),
    (Conversation, "channel__identifier"),
    (Application, "channel__identifier"),
    (StoredEvent, "channel__identifier"),
    (DerivationState, "channel__identifier"),
    (RejectedEvent, "channel__identifier"),
    (RejectedWord, "rejected_event__channel__identifier"),
    (RejectedDay, "channel__identifier"),
    (Participant, "channel__identifier"),
    (Session, "channel__identifier"),
    (AppUser, "channel__identifier"),
    (Job, "channel__identifier"),
    (Transition, "job__channel__identifier"),
    (File, "job__channel__identifier"),
    (Link, "file__job__channel__identifier"),
    (Schedule, "channel__identifier"),
    (CallbackSecret, "channel__identifier"),
    (OwnDataset, "channel__identifier"),
    (ChatWebhook, "channel__identifier"),
    (Notice, "channel__identifier"),
    (NoticeChoice, "channel__identifier"),
    (SavedView, "channel__identifier"),
    (Destination, "channel__identifier"),
    (Delivery, "channel__identifier"),
    (DeadLetter, "destination__channel__identifier"),
)


def rows_of(*names: Names) -> list[Any]:
    """All that these channels have, to see whether a call changed it."""
    identifiers = [each.channel for each in names]
    return [
        (
            model.__name__,
            list(model.objects.filter(**{f"{path}__in": identifiers}).order_by("pk").values()),
        )
        for model, path in OWNED
    ]
