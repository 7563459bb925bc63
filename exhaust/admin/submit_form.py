"""The form of the admin that submits as the API does."""

from collections.abc import Sequence
from typing import Any

from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from exhaust.datasets import DATASETS, summary, survey
from exhaust.datasets.base import Dataset
from exhaust.datasets.layout import TIMESTAMPS, find_column_errors
from exhaust.datasets.own import find_dataset, unknown_dataset
from exhaust.datasets.zones import find_zone_name
from exhaust.files import encryption
from exhaust.files.formats import FORMATS
from exhaust.jobs import schedules, submit
from exhaust.jobs.submit import Submission
from exhaust.models import Job, OwnDataset
from ingest.auth import roles
from ingest.db.clock import read_clock
from ingest.events import RequestError, format_count
from ingest.models import IDENTIFIER, IDENTIFIER_RULE, Channel, Conversation


def list_dataset_choices(user: Any) -> list[tuple[str, str]]:
    """Returns the built-in datasets, and the own ones of the user's channels."""
    channels = roles.permitted_channels(user, None).values()
    own = OwnDataset.objects.filter(channel__in=channels).order_by("name")
    names = dict.fromkeys([*DATASETS, *own.values_list("name", flat=True)])
    return [(name, name) for name in names]


def explain_rejection(user: Any, name: str, channel: Channel) -> str:
    """Returns why the user may not request the dataset in the channel; empty where they may."""
    dataset = find_dataset(channel.pk, name)
    if dataset is None:
        return unknown_dataset(channel.pk)
    right: roles.Permission = "submit_private" if dataset.is_private else "submit_response"
    if roles.has_permission(user, right, channel.identifier):
        return ""
    return "You may not ask for this dataset in this channel."


# the field of the form: its name in datasetConfig
CONFIG_NAMES = {
    "conversation": "conversationId", "first_day": "startDate", "last_day": "endDate",
    "zone": "timezone", "types": "types", "application": "application", "since": "since",
    "rows": "rows", "answers": "answers", "by": "by", "columns": "columns", "layout": "layout",
    "timestamps": "timestamps",
}  # fmt: skip


class LinesField(forms.CharField):
    """A list of texts, one a line."""

    def __init__(self, help_text: Any) -> None:
        super().__init__(
            required=False, widget=forms.Textarea(attrs={"rows": 3}), help_text=help_text
        )

    def clean(self, value: Any) -> Any:
        return [line.strip() for line in super().clean(value).splitlines() if line.strip()]


def make_choice(values: Sequence[str], help_text: Any) -> forms.ChoiceField:
    """Returns the field of one of these values; empty stands for the dataset's default."""
    choices = [("", _("By default")), *((value, value) for value in values)]
    return forms.ChoiceField(choices=choices, required=False, help_text=help_text)


class SubmitForm(forms.ModelForm):
    """The `request` of the API as a form."""

    user: Any = None  # the user of the form
    dataset = forms.ChoiceField()
    # `JobAdmin.get_form` narrows both to the user's channels
    conversation = forms.ModelChoiceField(Conversation.objects.none(), required=False)
    channel = forms.ModelChoiceField(Channel.objects.none(), required=False)
    first_day = forms.DateField(widget=forms.DateInput({"type": "date"}))
    last_day = forms.DateField(widget=forms.DateInput({"type": "date"}), help_text="Included.")
    zone = forms.CharField(
        initial="UTC", help_text="The time zone of the days: UTC, Asia/Kolkata, …"
    )
    output_format = forms.ChoiceField(choices=[(name, name) for name in FORMATS], initial="csv")
    tag = forms.RegexField(
        IDENTIFIER,
        error_messages={"invalid": IDENTIFIER_RULE},
        help_text="To find the request again by the API.",
    )
    encryption_key = forms.CharField(
        required=False,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Encrypts the file; forgotten when the job ends. " + encryption.PASSWORD_RULE,
    )
    types = LinesField(_("Event types, one a line, for datasets that take them; none means all."))
    application = forms.CharField(
        required=False, max_length=128, help_text=_("An application's id. Empty means all.")
    )
    since = forms.CharField(
        required=False,
        max_length=32,
        help_text=_("The request id of an earlier job: only rows that arrived after it."),
    )
    rows = make_choice(survey.ROWS, _("Of a survey, a row for each of these."))
    answers = make_choice(survey.ANSWERS, _("Of several answers in a row of a survey, these."))
    by = make_choice(summary.BY, _("The period of a summary's counts."))
    columns = LinesField(_("Headers of the file's columns, one a line; none means all."))
    layout = forms.CharField(
        required=False, max_length=64, help_text=_("A named list of columns, such as uci-2022.")
    )
    timestamps = make_choice(TIMESTAMPS, _("Times in UTC, or in the zone of the days."))
    priority = forms.TypedChoiceField(
        choices=Job.Priority.choices, coerce=int, required=False, initial=0
    )
    not_before = forms.DateTimeField(
        required=False, help_text=_("The earliest start, in UTC, up to 31 days ahead.")
    )
    force_new = forms.BooleanField(
        required=False, help_text=_("A new job, even if the same request has one today.")
    )
    callback_url = forms.CharField(
        required=False, help_text=_("Receives a signed POST when the job ends.")
    )
    deliver_to = forms.CharField(
        required=False, max_length=128, help_text=_("The destination that gets the files.")
    )

    class Meta:
        model = Job
        fields = ["tag", "output_format", "encryption"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["dataset"].choices = list_dataset_choices(self.user)  # type: ignore[attr-defined]

    def clean_zone(self) -> str:
        try:
            return find_zone_name(str(self.cleaned_data["zone"]))
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        first, last = cleaned.get("first_day"), cleaned.get("last_day")
        if first and last and not 1 <= (last - first).days + 1 <= settings.EXHAUST_MAX_DAYS:
            self.add_error(
                "last_day",
                "From the first to the last day, at most"
                f" {format_count(settings.EXHAUST_MAX_DAYS, 'day')}.",
            )
        conversation = cleaned.get("conversation")
        channel = conversation.channel if conversation else cleaned.get("channel")
        name = cleaned.get("dataset", "")
        dataset = find_dataset(channel.pk, name) if channel else DATASETS.get(name)
        if dataset:
            for remedy in dataset.find_errors({"conversationId"} if conversation else ()).values():
                self.add_error("conversation", remedy)
        if not channel:
            self.add_error("channel", "Choose a conversation, or a channel.")
        elif reason := name and explain_rejection(self.user, name, channel):
            self.add_error("dataset", reason)
        not_before = cleaned.get("not_before")
        if not_before and not_before > read_clock() + submit.MAX_DELAY:
            days = submit.MAX_DELAY.days
            self.add_error("not_before", f"At most {days} days from now; submit it later.")
        if dataset and channel and not self.errors:
            self._check_configuration(dataset)
        return cleaned

    def _check_configuration(self, dataset: Dataset) -> None:
        """Adds the errors that the API finds in the same request."""
        submission = self.build_submission("")
        config = submission.config
        form_names = {wire: name for name, wire in CONFIG_NAMES.items()} | {
            "callbackUrl": "callback_url",
            "deliverTo": "deliver_to",
        }
        errors = dataset.find_errors(config) | find_column_errors(dataset, config)
        for wire, remedy in errors.items():
            self.add_error(form_names[wire], remedy)
        try:
            submit.check_configuration(submission)
        except RequestError as error:
            path, _separator, remedy = error.detail.partition(": ")
            name = form_names.get(path.rpartition(".")[2])
            self.add_error(name, remedy if name else error.detail)

    def build_submission(self, requested_by: str) -> Submission:
        """Returns the request of the checked fields."""
        cleaned = self.cleaned_data
        conversation: Conversation | None = cleaned["conversation"]
        channel: Channel = conversation.channel if conversation else cleaned["channel"]
        config = {wire: cleaned[name] for name, wire in CONFIG_NAMES.items() if cleaned[name]}
        if conversation:
            config["conversationId"] = conversation.identifier
        for day in ("startDate", "endDate"):
            config[day] = config[day].isoformat()
        priority = int(cleaned["priority"] or Job.Priority.INTERACTIVE)
        is_nightly = priority == Job.Priority.NIGHTLY
        return Submission(
            channel_id=channel.pk,
            channel=channel.identifier,
            tag=cleaned["tag"],
            dataset=cleaned["dataset"],
            config={"type": cleaned["dataset"]} | config,
            requested_by=requested_by,
            output_format=cleaned["output_format"],
            priority=priority,
            not_before=cleaned["not_before"] or (schedules.next_night() if is_nightly else None),
            force_new=cleaned["force_new"],
            callback_url=cleaned["callback_url"],
            deliver_to=cleaned["deliver_to"],
            encryption=cleaned["encryption"],
            encryption_key=cleaned["encryption_key"],
        )
