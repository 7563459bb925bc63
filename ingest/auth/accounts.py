"""What django-allauth does with our users: sign-in, second factors, passwords, e-mails."""

import smtplib
from typing import Any
from urllib.parse import quote

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.forms import default_token_generator
from allauth.account.models import EmailAddress
from allauth.account.utils import user_pk_to_url_str
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.mfa.adapter import DefaultMFAAdapter
from allauth.mfa.models import Authenticator
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialLogin
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, Group
from django.db.models import Q
from django.http import HttpRequest
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext

from ingest import audit, logs
from ingest.auth import failures, sessions
from ingest.auth.keys import AccessDenied
from ingest.db.clock import read_clock
from ingest.limits import rate_limits, token_bucket
from ingest.privacy.encryption import decrypt, encrypt

log = logs.get_logger(__name__)
RECENT_SECONDS = 10 * 60  # for which a sign-in counts as a confirmation


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """Sign-in by a name and a password, by invitation only."""

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        return False

    def authenticate(self, request: HttpRequest, **credentials: Any) -> AbstractBaseUser | None:
        """Returns the user, None for a wrong password. Guesses of a network are slowed down.

        django-axes locks a name for a network. Here a network that guesses many names has to wait,
        except for names that signed in from it before.
        """
        caller = f"{credentials.get('username')} {token_bucket.get_client_network(request)}"
        user: AbstractBaseUser | None = None
        try:
            with rate_limits.throttle_auth_failures(request, caller):
                user = super().authenticate(request, **credentials)
                if user is None:
                    raise AccessDenied("unauthorized", "The name or the password is wrong.", 401)
        except AccessDenied:
            pass
        except rate_limits.RateLimited:
            raise self.validation_error("too_many_login_attempts") from None
        return user

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        """Leaves the count of wrong passwords to django-axes."""

    def get_client_ip(self, request: HttpRequest) -> str:
        return token_bucket.get_client_address(request)

    def is_reauthentication_required(self, *, app: str, **_: Any) -> bool:
        begun = context.request.session.get("begun", 0)
        return bool(read_clock().timestamp() - begun > RECENT_SECONDS)

    def get_reauthentication_methods(self, user: AbstractBaseUser | AnonymousUser) -> list[Any]:
        """Returns how the user confirms who they are; with neither password nor second factor
        by a new sign-in.
        """
        sign_in_again = {
            "id": "sign_in_again",
            "description": gettext("Sign in again"),
            "url": reverse("account_confirm"),
        }
        return super().get_reauthentication_methods(user) or [sign_in_again]

    def add_message(
        self, request: HttpRequest, level: int, message_template: str | None = None, *args: Any,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        if message_template not in {
            "account/messages/logged_in.txt",
            "account/messages/logged_out.txt",
        }:
            super().add_message(request, level, message_template, *args, **kwargs)

    def get_password_change_redirect_url(self, request: HttpRequest) -> str:
        return reverse("account")

    def get_reset_password_from_key_url(self, key: str) -> str:
        path = reverse("account_reset_password_from_key", args=["UID", "KEY"])
        return settings.EXHAUST_PUBLIC_URL + path.replace("UID-KEY", quote(key))

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Sends an e-mail. A mail server that fails is logged, and stops no sign-in."""
        site = {"name": "Exhaust", "domain": settings.EXHAUST_PUBLIC_URL}
        message = self.render_mail(
            template_prefix, email, {"email": email, "current_site": site, **context}
        )
        try:
            message.send()
        except (OSError, smtplib.SMTPException) as error:
            log.error("mail.failed", error=error)


class OrganisationAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    """Sign-in by an organisation's OpenID Connect provider, for users that exist."""

    def is_open_for_signup(self, request: HttpRequest, sociallogin: SocialLogin) -> bool:
        failures.count_failure("login.failed", request)
        return False

    def authenticate_by_email(
        self, sociallogin: SocialLogin
    ) -> tuple[AbstractBaseUser, str] | None:
        """Returns the one user with an e-mail address that the provider has verified."""
        for address in sociallogin.email_addresses:
            if address.verified:
                users = get_user_model().objects.filter(email__iexact=address.email)[:2]
                if len(users) == 1:
                    _confirm_address(users[0], address.email)
                    return users[0], address.email
        return None

    def pre_social_login(self, request: HttpRequest, sociallogin: SocialLogin) -> None:
        """Refuses all but a sign-in, and takes over the user's groups where a claim names them."""
        if sociallogin.state.get("process") != "login":
            raise ImmediateHttpResponse(redirect("account"))
        data = sociallogin.account.extra_data
        claims = {**data.get("id_token", {}), **data.get("userinfo", {})}
        if claims.get("sub") != data.get("id_token", claims).get("sub"):
            raise ImmediateHttpResponse(redirect("account_login"))
        if settings.EXHAUST_OIDC_GROUPS_CLAIM and sociallogin.is_existing:
            _take_over_groups(sociallogin.user, claims.get(settings.EXHAUST_OIDC_GROUPS_CLAIM))


def _confirm_address(user: Any, email: str) -> None:
    """Notes that the address is the user's; of an unconfirmed one allauth deletes the password."""
    email = email.lower()
    EmailAddress.objects.filter(Q(email=email) | Q(user=user)).delete()
    EmailAddress.objects.create(user=user, email=email, verified=True, primary=True)


def _take_over_groups(user: Any, claim: object) -> None:
    """Puts the user into the groups of that claim which exist here, and out of all others."""
    names = [claim] if isinstance(claim, str) else claim if isinstance(claim, list) else []
    groups = Group.objects.filter(name__in=[name for name in names if isinstance(name, str)])
    if set(groups) != set(user.groups.all()):
        user.groups.set(groups)
        audit.record(
            "user.changed", subject=user.get_username(), groups=[str(group) for group in groups]
        )


def make_password_link(user: Any) -> str:
    """Returns a link under which the user chooses a password, once and within three days."""
    key = f"{user_pk_to_url_str(user)}-{default_token_generator.make_token(user)}"
    return AccountAdapter().get_reset_password_from_key_url(key)


def invite(user: Any, channel: str = "") -> str:
    """Returns a link for a new user, and sends it by e-mail where the service sends any.

    The audit log names the channel whose administrator invites the user.
    """
    link = make_password_link(user)
    if user.email and settings.EXHAUST_SENDS_MAIL:
        context = {"user": user, "link": link, "public_url": settings.EXHAUST_PUBLIC_URL}
        AccountAdapter().send_mail("account/email/invitation", user.email, context)
    audit.record("user.invited", channel=channel, subject=user.get_username())
    return link


def remove_second_factors(user: Any) -> None:
    """Removes the second factors of a user who lost them, and ends the user's sessions."""
    Authenticator.objects.filter(user=user).delete()
    sessions.end_sessions(user)


class SecondFactorAdapter(DefaultMFAAdapter):  # type: ignore[misc]
    """Keeps secrets of second factors encrypted."""

    def encrypt(self, text: str) -> str:
        return encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        return decrypt(encrypted_text.encode()).decode()
