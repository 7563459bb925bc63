"""Ways to sign in, in a real browser: a passkey, an app, an organisation; and a leaked link."""

from typing import Any

import pytest
from django.contrib.auth import get_user_model

from exhaust.files import links
from ingest.models import AuditEvent
from tests.authorization.test_account import compute_code
from tests.exhaust.factories import PRIVATE, make_finished
from tests.openid_provider import serve_provider

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PASSWORD = "a long enough one"
PHONE = {
    "protocol": "ctap2", "transport": "internal", "hasResidentKey": True,
    "hasUserVerification": True, "isUserVerified": True, "automaticPresenceSimulation": True,
}  # fmt: skip


def make_asha() -> None:
    get_user_model().objects.create_user("asha", "asha@example.org", PASSWORD)


def sign_in(page: Any, live_server: Any) -> None:
    page.goto(f"{live_server.url}/console/sign-in")
    page.fill("#id_login", "asha")
    page.fill("#id_password", PASSWORD)
    page.click("button.main")


def test_passkey_signs_in(page: Any, live_server: Any) -> None:
    make_asha()
    chromium = page.context.new_cdp_session(page)
    chromium.send("WebAuthn.enable")
    chromium.send("WebAuthn.addVirtualAuthenticator", {"options": PHONE})
    sign_in(page, live_server)

    page.goto(f"{live_server.url}/account/2fa/webauthn/add/")
    page.check("#id_passwordless")
    page.click("#mfa_webauthn_add")
    page.wait_for_url("**/recovery-codes/")
    page.click("text=Sign out")
    page.click("#passkey_login")

    page.wait_for_url("**/console/")
    assert "asha" in page.inner_text("header")


def test_app_and_organisation_sign_in(page: Any, live_server: Any, settings: Any) -> None:
    make_asha()
    sign_in(page, live_server)
    page.click("header >> text=asha")
    page.click("text=Apps, passkeys and recovery codes")
    page.click("text=Activate")
    secret = page.input_value("#authenticator_secret")
    page.fill("#id_code", compute_code(secret))
    page.click("main button >> text=Activate")
    page.wait_for_url("**/recovery-codes/")
    recovery_code = page.input_value("#recovery_codes").split()[0]
    page.click("text=Sign out")

    # the app's code follows the password
    sign_in(page, live_server)
    page.fill("#id_code", "000000")
    page.click("main button.main")
    assert "Incorrect code" in page.inner_text("main")
    page.fill("#id_code", compute_code(secret, 1))
    page.click("main button.main")
    page.wait_for_url("**/console/")
    page.click("text=Sign out")

    # a code also follows the organisation's sign-in; without the phone, one for recovery
    with serve_provider() as provider:
        settings.SOCIALACCOUNT_PROVIDERS = provider.settings
        page.goto(f"{live_server.url}/console/sign-in")
        page.click("text=Sign in with Example")
        page.click("text=Go on as Asha")
        page.wait_for_url("**/2fa/authenticate/")
        page.fill("#id_code", recovery_code)
        page.click("main button.main")
        page.wait_for_url("**/console/")
    assert "asha" in page.inner_text("header")


def test_leaked_addresses_of_a_private_file(page: Any, live_server: Any, settings: Any) -> None:
    settings.EXHAUST_PUBLIC_URL = live_server.url
    job = make_finished(dataset=PRIVATE)
    link = links.share(job.files.get(), 3600, 1)
    assert link is not None
    address = links.build_url(link)
    own_address = f"/console/ORG_001/exports/{job.tag}/{job.request_id}/files/1"

    # the console's own address opens nothing without a sign-in, nor with another person's
    page.goto(f"{live_server.url}{own_address}")
    assert "/console/sign-in?next=" in page.url
    make_asha()
    sign_in(page, live_server)
    assert page.goto(f"{live_server.url}{own_address}").status == 404
    page.click("text=Sign out")

    # a share link is its own proof: as often as was chosen, on record, and then never again
    with page.expect_download():
        page.evaluate(f"location.assign({address!r})")
    assert AuditEvent.objects.filter(action="file.downloaded").count() == 1
    page.goto(address)
    assert "This link does not work" in page.inner_text("main")
