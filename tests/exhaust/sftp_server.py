"""An SFTP server of tests: asyncssh's own, in a thread, over a folder."""

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import asyncssh

from tests.exhaust.receiver import open_listener

USER, PASSWORD = "reader", "sftp word"


class ScriptedFiles(asyncssh.SFTPServer):
    """Files below a folder; `fault` runs before each write and may raise or wait."""

    def __init__(self, channel: Any, server: "SFTPServer") -> None:
        self.server = server
        super().__init__(channel, chroot=str(server.folder).encode())

    def open(self, path: bytes, pflags: int, attrs: Any) -> object:
        file = super().open(path, pflags, attrs)
        self.server.opened.append(file)
        return file

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        self.server.written += len(data)
        self.server.names.update(path.name for path in self.server.folder.rglob("*"))
        outcome = self.server.fault(self)
        return outcome or super().write(file_obj, offset, data)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        self.server.renamed.append(newpath.decode())
        if self.server.lacks_posix_rename:
            raise asyncssh.SFTPOpUnsupported("no")
        return super().posix_rename(oldpath, newpath)

    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        if Path(self.map_path(newpath).decode()).exists():
            raise asyncssh.SFTPFailure("it exists")
        return super().rename(oldpath, newpath)


class SFTPServer:
    """Listens until its block ends. `fault` may be set to one of the functions below."""

    def __init__(self, folder: Path, key: str = "ssh-ed25519") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.key = asyncssh.generate_private_key(key)
        self.fingerprint = self.key.get_fingerprint()
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.fault: Callable[[ScriptedFiles], Any] = lambda files: None
        self.lacks_posix_rename = False
        self.written = 0
        self.logins = 0
        self.names: set[str] = set()
        self.renamed: list[str] = []
        self.opened: list[Any] = []

    def __enter__(self) -> "SFTPServer":
        self._loop = asyncio.new_event_loop()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=[started])
        self._thread.start()
        started.result(10)
        self.url = f"sftp://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self, started: "Future[None]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            self._loop.set_exception_handler(lambda *_: None)
            runner.run(self._serve(started))
        for file in self.opened:
            file.close()

    async def _serve(self, started: "Future[None]") -> None:
        self._stop = asyncio.Event()
        server = self

        class Login(asyncssh.SSHServer):
            def begin_auth(self, username: str) -> bool:
                server.logins += 1
                return True

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return (username, password) == (USER, PASSWORD)

            def public_key_auth_supported(self) -> bool:
                return True

            def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
                return key.public_data == server.user_key.public_data

        listener = open_listener()
        listener.setblocking(False)
        self.port = int(listener.getsockname()[1])
        acceptor = await asyncssh.listen(
            sock=listener,
            server_factory=Login,
            server_host_keys=[self.key],
            sftp_factory=lambda channel: ScriptedFiles(channel, self),
        )
        started.set_result(None)
        await self._stop.wait()
        acceptor.close()

    @property
    def files(self) -> dict[str, bytes]:
        """What it holds by path."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def run_full(files: ScriptedFiles) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def hang(files: ScriptedFiles) -> Any:
    return asyncio.sleep(3600)


def cut(files: ScriptedFiles) -> None:
    """Ends the connection once a part of the file has come."""
    if files.server.written > 100_000:
        files.channel.get_connection().abort()


def trickle(files: ScriptedFiles) -> None:
    time.sleep(0.8)
