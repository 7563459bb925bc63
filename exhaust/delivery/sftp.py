"""Files to an SFTP server, through asyncssh.

The server's key is pinned by its fingerprint. A file is written under a name of its own attempt
and renamed, so that no reader finds half of it.
"""

import asyncio
import socket
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from posixpath import dirname, join, split
from time import monotonic
from types import TracebackType
from typing import TypeVar

import asyncssh

from exhaust.delivery import http_client
from exhaust.delivery.file_receivers import Access, Refused
from exhaust.delivery.http_client import NoAnswer, Unreachable
from ingest.events import format_count

CONNECT_SECONDS = 15.0
ANSWER_SECONDS = 30.0  # for a block of 1 MiB, too
CLOSE_SECONDS = 2.0
T = TypeVar("T")


class _Client(asyncssh.SSHClient):
    """Accepts the pinned key of the server alone; without a pinned one, any."""

    def __init__(self, pinned: str) -> None:
        self.shown = ""
        self._pinned = pinned

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.shown = key.get_fingerprint()
        return self._pinned in ("", self.shown)


class SFTPReceiver:
    """A session with a server. Its event loop runs during calls only, in the thread of its owner.

    The time that the channel's storage takes in between is not the server's.
    """

    def __init__(self, access: Access, *, is_first: bool = False) -> None:
        self.host_key = ""
        self._access = access
        self._is_first = is_first
        self._made_folders: list[str] = []
        self._runner = asyncio.Runner()
        # asyncssh's own tasks end with the error that a call of ours raises
        self._runner.get_loop().set_exception_handler(lambda *_: None)

    def __enter__(self) -> "SFTPReceiver":
        try:
            self._connect()
        except BaseException:
            self._runner.close()
            raise
        return self

    def _connect(self) -> None:
        access = self._access
        if not access.host_key and not self._is_first:
            raise Unreachable("The server's key is not known yet; test the destination first.")
        target = http_client.parse_url(access.url, access.channel, http_client.SFTP)
        client = _Client(access.host_key)
        try:
            sock = http_client.open_socket(
                target.host, target.port, access.channel, monotonic() + CONNECT_SECONDS
            )
        except OSError as error:
            kind = NoAnswer if isinstance(error, TimeoutError) else Unreachable
            raise kind(http_client.describe_error(error)) from error
        try:
            self._connection, self._client = self._run(
                self._log_in(sock, client, target.host, target.port), CONNECT_SECONDS
            )
        except Unreachable as error:
            sock.close()
            if client.shown and access.host_key not in ("", client.shown):
                raise Refused(
                    f"The server shows the key {client.shown}, and {access.host_key} is pinned. If"
                    " its owner confirms the new one, save it as hostKey."
                ) from error
            raise
        except BaseException:
            sock.close()
            raise
        self.host_key = client.shown

    async def _log_in(
        self, sock: socket.socket, client: _Client, host: str, port: int
    ) -> tuple[asyncssh.SSHClientConnection, asyncssh.SFTPClient]:
        access = self._access
        key = asyncssh.import_private_key(access.private_key) if access.private_key else None
        connection = await asyncssh.connect(
            host,
            port,
            sock=sock,
            client_factory=lambda: client,
            known_hosts=lambda *_: ([], [], []),
            server_host_key_algs="default",
            username=access.user,
            password=access.password or None,
            client_keys=[key] if key else None,
            # nothing of the account that the service runs as
            config=None,
            agent_path=None,
            gss_host=None,
        )
        return connection, await connection.start_sftp_client()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.abort()
        with suppress(Unreachable, Refused):
            self._run(self._connection.wait_closed(), CLOSE_SECONDS)
        self._runner.close()

    def _run(self, call: Awaitable[T], seconds: float = 0.0) -> T:
        seconds = seconds or ANSWER_SECONDS
        try:
            return self._runner.run(asyncio.wait_for(call, seconds))
        except TimeoutError:
            raise NoAnswer(f"No answer within {seconds:g} seconds.") from None
        except (asyncssh.Error, OSError) as error:
            raise _explain(error) from error

    def put(
        self, path: str, blocks: Iterator[bytes], byte_count: int, content_type: str, attempt: int
    ) -> None:
        self._make_folders(dirname(path))
        for earlier in range(1, attempt):
            self._remove_quietly(_draft_path(path, earlier))
        draft = _draft_path(path, attempt)
        try:
            self._write(draft, blocks)
            if (size := self._run(self._client.getsize(draft))) != byte_count:
                raise Refused(f"The server kept {size} of {format_count(byte_count, 'byte')}.")
            self._run(self._rename(draft, path))
        except NoAnswer:  # the next call would wait as long
            raise
        except BaseException:
            self._remove_quietly(draft)
            raise

    def _write(self, draft: str, blocks: Iterator[bytes]) -> None:
        file = self._run(self._client.open(draft, "wb"))
        for block in blocks:
            self._run(file.write(block))
        self._run(file.close())

    async def _rename(self, draft: str, path: str) -> None:
        try:
            await self._client.posix_rename(draft, path)
        except asyncssh.SFTPOpUnsupported:  # then an existing file is in its way
            with suppress(asyncssh.SFTPError):
                await self._client.remove(path)
            await self._client.rename(draft, path)

    def _make_folders(self, folder: str) -> None:
        missing = []
        while folder not in ("", "/") and not self._run(self._client.isdir(folder)):
            missing.append(folder)
            folder = dirname(folder)
        for each in reversed(missing):
            try:
                self._run(self._client.mkdir(each))
            except Refused:
                if not self._run(self._client.isdir(each)):  # another delivery made it
                    raise
            else:
                self._made_folders.append(each)

    def _remove_quietly(self, path: str) -> None:
        with suppress(Refused, Unreachable):
            self._run(self._client.remove(path), CLOSE_SECONDS)

    def read(self, path: str) -> bytes:
        return self._run(self._read(path))

    async def _read(self, path: str) -> bytes:
        async with self._client.open(path, "rb") as file:
            content = await file.read(http_client.MAX_ANSWER_BYTES)
            return content if isinstance(content, bytes) else content.encode()

    def delete(self, path: str) -> None:
        self._run(self._client.remove(path))
        while self._made_folders:
            with suppress(Refused):  # it has other files by now
                self._run(self._client.rmdir(self._made_folders.pop()))


def _draft_path(path: str, attempt: int) -> str:
    folder, name = split(path)
    return join(folder, f".{name}.{attempt}.part")


def check_private_key(text: str) -> str:
    """Returns why it is no private key without a passphrase; empty where it is one."""
    try:
        asyncssh.import_private_key(text)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
        return "Write a private key without a passphrase, as ssh-keygen makes it."
    return ""


_REFUSALS: dict[type[Exception], str] = {
    asyncssh.PermissionDenied: "The server does not let this user in.",
    asyncssh.SFTPNoSpaceOnFilesystem: "The server is full.",
    asyncssh.SFTPQuotaExceeded: "The user's quota is full.",
    asyncssh.SFTPPermissionDenied: "The user may not write there.",
    asyncssh.SFTPNoSuchFile: "There is no such folder or file.",
    asyncssh.SFTPFailure: "The server failed to do it; it may be full.",
}
_BROKEN = (asyncssh.ConnectionLost, asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)


def _explain(error: Exception) -> Exception:
    """Returns the error in our words: a server's own may repeat anything."""
    for kind, sentence in _REFUSALS.items():
        if isinstance(error, kind):
            return Refused(sentence)
    if isinstance(error, _BROKEN):
        return Unreachable("The connection broke.")
    if isinstance(error, asyncssh.SFTPError):
        return Refused(f"The server answered SFTP error {error.code}.")
    if isinstance(error, asyncssh.Error):
        return Unreachable("SSH could not be agreed on.")
    return Unreachable(http_client.describe_error(error))
