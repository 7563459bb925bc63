"""A mail server for tests: it takes e-mails over a real socket, and fails when a test says so."""

import email
from email.message import Message
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any


class MailServer(ThreadingTCPServer):
    """Listens on a free port. `recipient_code` answers RCPT; 250 takes the e-mail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.port = int(self.server_address[1])
        self.messages: list[Message] = []
        self.connections = 0
        self.recipient_code = 250
        self.closes_after_data = False  # takes the e-mail, and dies before it says so

    def __enter__(self) -> "MailServer":
        Thread(target=self.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


class _Session(StreamRequestHandler):
    server: MailServer

    def say(self, code: int) -> None:
        self.wfile.write(f"{code} so\r\n".encode())

    def handle(self) -> None:
        self.server.connections += 1
        self.say(220)
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"QUIT":
                return
            if verb == b"DATA":
                self.say(354)
                lines = iter(self.rfile.readline, b".\r\n")
                self.server.messages.append(email.message_from_bytes(b"".join(lines)))
                if self.server.closes_after_data:
                    return
            self.say(self.server.recipient_code if verb == b"RCPT" else 250)
