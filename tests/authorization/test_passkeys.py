"""Passkeys, with a key in software in place of a phone."""

import json
import re
from hashlib import sha256
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from fido2.cose import ES256
from fido2.utils import websafe_encode
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticatorData,
    CollectedClientData,
)

from ingest.models import AuditEvent
from tests.authorization.test_account import PASSWORD, sign_in

pytestmark = pytest.mark.django_db
HOST = "testserver"
FLAG = AuthenticatorData.FLAG


class Phone:
    """Makes and uses one passkey."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.id = b"one passkey of a phone"
        self.user_handle = b""

    def _write_client_data(self, kind: str, options: dict[str, Any]) -> CollectedClientData:
        challenge = options["publicKey"]["challenge"]
        return CollectedClientData.create(kind, challenge, f"http://{HOST}")

    def make(self, options: dict[str, Any]) -> str:
        client_data = self._write_client_data("webauthn.create", options)
        self.user_handle = options["publicKey"]["user"]["id"]
        public_key = ES256.from_cryptography_key(self.key.public_key())
        credential = AttestedCredentialData.create(b"\0" * 16, self.id, public_key)
        data = AuthenticatorData.create(
            sha256(HOST.encode()).digest(), FLAG.UP | FLAG.UV | FLAG.AT, 0, credential
        )
        attestation = AttestationObject.create("none", data, {})
        return self._write(
            clientDataJSON=websafe_encode(client_data),
            attestationObject=websafe_encode(attestation),
        )

    def use(self, options: dict[str, Any], host: str = HOST) -> str:
        client_data = self._write_client_data("webauthn.get", options)
        data = AuthenticatorData.create(sha256(host.encode()).digest(), FLAG.UP | FLAG.UV, 1)
        signature = self.key.sign(data + client_data.hash, ec.ECDSA(hashes.SHA256()))
        return self._write(
            clientDataJSON=websafe_encode(client_data),
            authenticatorData=websafe_encode(data),
            signature=websafe_encode(signature),
            userHandle=self.user_handle,
        )

    def _write(self, **response: Any) -> str:
        credential_id = websafe_encode(self.id)
        return json.dumps({
            "type": "public-key", "id": credential_id, "rawId": credential_id,
            "response": response, "clientExtensionResults": {"credProps": {"rk": True}},
        })  # fmt: skip


@pytest.fixture
def asha() -> User:
    return User.objects.create_user("asha", password=PASSWORD)


@pytest.fixture
def phone(asha: User) -> Phone:
    """A phone whose passkey asha has added."""
    client, phone = sign_in(), Phone()
    options = read_options(client.get(reverse("mfa_add_webauthn")), "creation_options")
    form = {"name": "phone", "passwordless": "on", "credential": phone.make(options)}
    answer = client.post(reverse("mfa_add_webauthn"), form)
    assert answer.status_code == 302, answer.content
    return phone


def read_options(answer: Any, name: str) -> dict[str, Any]:
    """What a page tells the browser to ask the phone for."""
    data = re.search(r'<script id="js_data"[^>]*>(.*?)</script>', answer.content.decode())
    assert data
    return json.loads(data[1])[name]


def fetch_options(client: Client) -> dict[str, Any]:
    answer = client.get(reverse("mfa_login_webauthn"), headers={"Accept": "application/json"})
    return answer.json()["request_options"]


def test_passkey_signs_in_alone(phone: Phone):
    client = Client()
    form = {"credential": phone.use(fetch_options(client))}

    answer = client.post(reverse("mfa_login_webauthn"), form)

    assert answer["Location"] == "/console/"
    assert client.get("/console/").status_code == 200
    assert AuditEvent.objects.last().action == "login.succeeded"
    again = Client().post(reverse("mfa_login_webauthn"), form)
    assert again["Location"] == reverse("account_login")


@pytest.mark.parametrize("fault", ["another host", "another key", "another challenge"])
def test_wrong_passkey_is_refused(phone: Phone, fault: str):
    client = Client()
    options = fetch_options(client)
    if fault == "another key":
        phone.key = Phone().key
    if fault == "another challenge":
        fetch_options(client)
    credential = phone.use(options, "evil.example" if fault == "another host" else HOST)

    answer = client.post(reverse("mfa_login_webauthn"), {"credential": credential})

    assert answer["Location"] == reverse("account_login")
    assert client.get("/console/").status_code == 302


def test_passkey_is_a_second_factor(phone: Phone):
    client = sign_in()
    assert client.get("/console/").status_code == 302
    options = read_options(client.get(reverse("mfa_authenticate")), "request_options")

    answer = client.post(reverse("mfa_authenticate"), {"credential": phone.use(options)})

    assert answer["Location"] == "/console/"
    assert client.get("/console/").status_code == 200
    assert Authenticator.objects.filter(type="webauthn").get().last_used_at
