"""An organisation's OpenID Connect provider, made up for tests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

CLIENT_ID = "exhaust"


class Provider:
    """Answers as a provider does. `claims` are those of the person who signs in there."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.claims: dict[str, Any] = {
            "sub": "4711", "email": "asha@example.org", "email_verified": True,
        }  # fmt: skip
        self.token_claims: dict[str, Any] = {}
        self.asked: list[dict[str, list[str]]] = []

    def describe(self) -> dict[str, str]:
        endpoints = {"authorization": "authorize", "token": "token", "userinfo": "userinfo"}
        addresses = {f"{name}_endpoint": f"{self.issuer}/{end}" for name, end in endpoints.items()}
        return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys", **addresses}

    def give_token(self, body: str) -> dict[str, str]:
        self.asked.append(parse_qs(body))
        now = int(time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 60, **self.claims}
        token = jwt.encode(claims | self.token_claims, self.key, "RS256", {"kid": "one"})
        return {"access_token": "opaque", "token_type": "Bearer", "id_token": token}

    @property
    def settings(self) -> dict[str, Any]:
        """The value of `SOCIALACCOUNT_PROVIDERS` that names this provider."""
        app = {"provider_id": "organisation", "name": "Example", "client_id": CLIENT_ID,
               "secret": "hush", "settings": {"server_url": self.issuer}}  # fmt: skip
        return {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}


@contextmanager
def serve_provider() -> Iterator[Provider]:
    """Runs a provider on a free port; its page has a link that signs the person in."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/authorize":
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                back = urlencode({"code": "once", "state": query["state"]})
                link = f'<a href="{query["redirect_uri"]}?{back}">Go on as Asha</a>'
                self._answer(link.encode(), "text/html")
            else:
                is_description = url.path.endswith("/openid-configuration")
                document = provider.describe() if is_description else provider.claims
                self._answer(json.dumps(document).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(json.dumps(provider.give_token(body.decode())).encode())

        def _answer(self, body: bytes, content_type: str = "application/json") -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = Provider(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield provider
        server.shutdown()
