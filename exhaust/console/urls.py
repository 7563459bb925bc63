from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from exhaust.console import (
    charts,
    conversations,
    destinations,
    exports,
    home,
    keys,
    new_export,
    participants,
    rejected,
    schedules,
)

app_name = "console"
JOB = "<str:channel>/jobs/<str:tag>/<str:request_id>"

urlpatterns = [
    path("", home.choose_channel, name="home"),
    path(
        "sign-in",
        LoginView.as_view(
            template_name="console/sign_in.html",
            redirect_authenticated_user=True,
            next_page="console:home",
        ),
        name="sign-in",
    ),
    path("sign-out", LogoutView.as_view(next_page="console:sign-in"), name="sign-out"),
    path("<str:channel>/", home.redirect_to_first_page, name="start"),
    path("<str:channel>/jobs", exports.list_jobs, name="jobs"),
    path(JOB, exports.show_job, name="job"),
    path(f"{JOB}/cancel", exports.cancel_job, name="cancel"),
    path(f"{JOB}/retry", exports.retry_job, name="retry"),
    path(f"{JOB}/files/<int:part>", exports.download_file, name="download"),
    path(f"{JOB}/files/<int:part>/link", exports.create_link, name="link"),
    path(f"{JOB}/files/<int:part>/revoke", exports.revoke_link, name="revoke-link"),
    path("<str:channel>/ask", new_export.create_request, name="ask"),
    path("<str:channel>/ask/preview", new_export.show_preview, name="preview"),
    path("<str:channel>/ask/conversations", new_export.search_conversations, name="search"),
    path("<str:channel>/recurring", schedules.list_schedules, name="recurring"),
    path("<str:channel>/recurring/new", schedules.create_schedule, name="recurring-new"),
    path("<str:channel>/recurring/one/<str:name>", schedules.edit_schedule, name="recurring-one"),
    path(
        "<str:channel>/recurring/one/<str:name>/<str:action>",
        schedules.act_on_schedule,
        name="recurring-act",
    ),
    path("<str:channel>/pictures", charts.show_charts, name="pictures"),
    path("<str:channel>/conversations", conversations.list_conversations, name="conversations"),
    path("<str:channel>/conversations/one", conversations.show_conversation, name="conversation"),
    path("<str:channel>/participants", participants.list_participants, name="participants"),
    path("<str:channel>/rejected", rejected.list_rejected, name="rejected"),
    path("<str:channel>/rejected/<int:pk>", rejected.show_rejected, name="rejected-one"),
    path("<str:channel>/rejected/again", rejected.again, name="replay"),
    path("<str:channel>/destinations", destinations.list_destinations, name="destinations"),
    path("<str:channel>/destinations/new", destinations.create_destination, name="destination-new"),
    path(
        "<str:channel>/destinations/one/<str:name>",
        destinations.show_destination,
        name="destination-one",
    ),
    path(
        "<str:channel>/destinations/one/<str:name>/change",
        destinations.edit_destination,
        name="destination-change",
    ),
    path(
        "<str:channel>/destinations/one/<str:name>/<str:action>",
        destinations.act_on_destination,
        name="destination-act",
    ),
    path("<str:channel>/keys", keys.list_or_create_keys, name="keys"),
    path("<str:channel>/keys/<str:public_id>/revoke", keys.revoke_key, name="revoke"),
    path("<str:channel>/ledger", participants.list_audit_events, name="ledger"),
    path("<path:path>", home.not_found),
]
