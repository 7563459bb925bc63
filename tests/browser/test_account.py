"""A passkey in a real browser, with the authenticator that Chromium simulates."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PASSWORD = "a long enough one"
PHONE = {
    "protocol": "ctap2", "transport": "internal", "hasResidentKey": True,
    "hasUserVerification": True, "isUserVerified": True, "automaticPresenceSimulation": True,
}  # fmt: skip


def test_passkey_signs_in(page: Any, live_server: Any) -> None:
    get_user_model().objects.create_user("asha", password=PASSWORD)
    chromium = page.context.new_cdp_session(page)
    chromium.send("WebAuthn.enable")
    chromium.send("WebAuthn.addVirtualAuthenticator", {"options": PHONE})
    page.goto(f"{live_server.url}/console/sign-in")
    page.fill("#id_login", "asha")
    page.fill("#id_password", PASSWORD)
    page.click("button.main")

    page.goto(f"{live_server.url}/account/2fa/webauthn/add/")
    page.check("#id_passwordless")
    page.click("#mfa_webauthn_add")
    page.wait_for_url("**/recovery-codes/")
    page.click("text=Sign out")
    page.click("#passkey_login")

    page.wait_for_url("**/console/")
    assert "asha" in page.inner_text("header")
