"""Files to a real SFTP server: whole or not at all, to the pinned server, and in bounded time."""

import socket
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from exhaust.delivery import kinds, sftp
from exhaust.delivery.file_receivers import Access, Refused
from exhaust.delivery.http_client import AddressNotAllowed, NoAnswer, Unreachable
from tests.exhaust import sftp_server
from tests.exhaust.receiver import Receiver, Silent
from tests.exhaust.sftp_server import PASSWORD, USER, SFTPServer

CONTENT = bytes(range(256)) * 2_000  # half a megabyte
PATH = "2026-11-30/april/part-0001.csv"


@pytest.fixture(autouse=True)
def local_servers(settings: Any) -> None:
    settings.EXHAUST_PUSH_ALLOWED_NETWORKS = {"ORG_001": [ip_network("127.0.0.0/8")]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SFTPServer]:
    with SFTPServer(tmp_path / "theirs") as running:
        yield running


def make_access(server: SFTPServer | None = None, **overrides: Any) -> Access:
    values = {
        "kind": "sftp", "channel": "ORG_001", "url": server.url if server else "", "bucket": "",
        "region": "", "user": USER, "password": PASSWORD, "private_key": "",
        "host_key": server.fingerprint if server else "SHA256:x", **overrides,
    }  # fmt: skip
    return Access(**values)


def put(access: Access, content: bytes = CONTENT, attempt: int = 1, path: str = PATH) -> None:
    blocks = (content[start : start + 100_000] for start in range(0, len(content), 100_000))
    with kinds.connect(access) as receiver:
        receiver.put(path, blocks, len(content), "text/csv", attempt)


def test_file_appears_whole(server: SFTPServer) -> None:
    put(make_access(server))
    assert server.files == {PATH: CONTENT}
    assert server.renamed == [PATH]
    assert ".part-0001.csv.1.part" in server.names
    assert "part-0001.csv" not in server.names


@pytest.mark.parametrize("lacks_posix_rename", [False, True])
def test_retry_overwrites(server: SFTPServer, lacks_posix_rename: bool) -> None:
    server.lacks_posix_rename = lacks_posix_rename
    put(make_access(server), b"older")
    draft = server.folder / Path(PATH).with_name(".part-0001.csv.1.part")
    draft.write_bytes(b"left by an attempt that died")
    put(make_access(server), attempt=2)
    assert server.files == {PATH: CONTENT}


def test_private_key_logs_in(server: SFTPServer) -> None:
    text = server.user_key.export_private_key().decode()
    put(make_access(server, password="", private_key=text))
    assert server.files == {PATH: CONTENT}
    assert sftp.check_private_key(text) == ""
    locked = server.user_key.export_private_key("pkcs8-pem", passphrase="word").decode()
    for bad in ("hush", locked):
        assert "without a passphrase" in sftp.check_private_key(bad)


def test_wrong_password_is_refused(server: SFTPServer) -> None:
    with pytest.raises(Refused, match="does not let this user in"):
        put(make_access(server, password="other"))


def test_wrong_host_key_gets_no_password(server: SFTPServer) -> None:
    pinned = "SHA256:" + "A" * 43
    with pytest.raises(Refused, match="is pinned") as error:
        put(make_access(server, host_key=pinned))
    assert server.fingerprint in str(error.value)
    assert server.logins == 0


def test_unpinned_server_is_tested_first(server: SFTPServer) -> None:
    access = make_access(server, host_key="")
    with pytest.raises(Unreachable, match="test the destination first"):
        put(access)
    with kinds.connect(access, is_first=True) as receiver:
        assert receiver.host_key == server.fingerprint


def test_read_and_delete_leave_nothing(server: SFTPServer) -> None:
    with kinds.connect(make_access(server)) as receiver:
        receiver.put(PATH, iter([b"hello"]), 5, "text/plain", 1)
        assert receiver.read(PATH) == b"hello"
        receiver.delete(PATH)
    assert list(server.folder.iterdir()) == []


def test_full_server_says_so(server: SFTPServer) -> None:
    server.fault = sftp_server.run_full
    with pytest.raises(Refused, match="full"):
        put(make_access(server))
    assert server.files == {}


def test_cut_in_the_middle_shows_no_file(server: SFTPServer) -> None:
    server.fault = sftp_server.cut
    with pytest.raises(Unreachable, match="broke"):
        put(make_access(server))
    assert PATH not in server.files
    server.fault = lambda files: None
    put(make_access(server), attempt=2)
    assert server.files == {PATH: CONTENT}


def test_short_file_is_not_shown(server: SFTPServer) -> None:
    with kinds.connect(make_access(server)) as receiver, pytest.raises(Refused, match="2"):
        receiver.put(PATH, iter([b"12"]), 3, "text/csv", 1)
    assert server.files == {}


def test_hung_server_costs_seconds(server: SFTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "ANSWER_SECONDS", 0.5)
    server.fault = sftp_server.hang
    started_at = time.monotonic()
    with pytest.raises(NoAnswer, match=r"0\.5 seconds"):
        put(make_access(server))
    assert time.monotonic() - started_at < 10


def test_silent_and_refusing_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp, "CONNECT_SECONDS", 0.5)
    with Receiver([Silent()]) as silent:
        with pytest.raises(NoAnswer):
            put(make_access(url=f"sftp://127.0.0.1:{silent.port}"))
        port = silent.port
    with pytest.raises(Unreachable, match="refused"):
        put(make_access(url=f"sftp://127.0.0.1:{port}"))


@pytest.mark.parametrize(
    "url", ["sftp://127.0.0.1", "sftp://10.0.0.1:2222", "sftp://localhost", "sftp://[::1]"]
)
def test_private_networks_stay_closed(url: str) -> None:
    with pytest.raises(AddressNotAllowed):
        put(make_access(url=url, channel="ORG_002"))


def test_name_that_moves_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is public when it is saved, and private when it is connected to."""
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 22))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [address])
    with pytest.raises(AddressNotAllowed):
        put(make_access(url="sftp://files.example.org", channel="ORG_002"))
