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
    path("", home.home, name="home"),
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
    path("<str:channel>/", home.start, name="start"),
    path("<str:channel>/jobs", exports.listing, name="jobs"),
    path(JOB, exports.one, name="job"),
    path(f"{JOB}/cancel", exports.cancel, name="cancel"),
    path(f"{JOB}/retry", exports.retry, name="retry"),
    path(f"{JOB}/files/<int:part>", exports.download, name="download"),
    path(f"{JOB}/files/<int:part>/link", exports.link, name="link"),
    path(f"{JOB}/files/<int:part>/revoke", exports.revoke, name="revoke-link"),
    path("<str:channel>/ask", new_export.ask, name="ask"),
    path("<str:channel>/ask/preview", new_export.preview, name="preview"),
    path("<str:channel>/ask/conversations", new_export.conversations, name="search"),
    path("<str:channel>/recurring", schedules.listing, name="recurring"),
    path("<str:channel>/recurring/new", schedules.new, name="recurring-new"),
    path("<str:channel>/recurring/one/<str:name>", schedules.change, name="recurring-one"),
    path("<str:channel>/recurring/one/<str:name>/<str:what>", schedules.act, name="recurring-act"),
    path("<str:channel>/pictures", charts.pictures, name="pictures"),
    path("<str:channel>/conversations", conversations.listing, name="conversations"),
    path("<str:channel>/conversations/one", conversations.one, name="conversation"),
    path("<str:channel>/participants", participants.participants, name="participants"),
    path("<str:channel>/rejected", rejected.listing, name="rejected"),
    path("<str:channel>/rejected/<int:pk>", rejected.one, name="rejected-one"),
    path("<str:channel>/rejected/again", rejected.again, name="replay"),
    path("<str:channel>/sinks", destinations.listing, name="sinks"),
    path("<str:channel>/sinks/new", destinations.new, name="sink-new"),
    path("<str:channel>/sinks/one/<str:name>", destinations.one, name="sink-one"),
    path("<str:channel>/sinks/one/<str:name>/change", destinations.change, name="sink-change"),
    path("<str:channel>/sinks/one/<str:name>/<str:what>", destinations.act, name="sink-act"),
    path("<str:channel>/keys", keys.listing, name="keys"),
    path("<str:channel>/keys/<str:public_id>/revoke", keys.revoke, name="revoke"),
    path("<str:channel>/ledger", participants.entries, name="ledger"),
    path("<path:rest>", home.nowhere),
]
