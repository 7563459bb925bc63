"""The fenced blocks of our pages, and a place to run their commands in, as a reader does.

A page's shell blocks run in their order, by one shell, in a folder that looks like a clone. A line
`#> …` says what the command above it prints, with `…` for anything. A block that cannot be run
here says why, and which file covers it, in a comment on the line before it:

    <!-- not run here: it needs Docker; tests/config/test_compose.py -->
"""

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from exhaust.processes import free_port

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
START = DOCS / "getting-started.md"
OPERATIONS = DOCS / "operations.md"
SHELL, QUERY = "bash", "sql"
# shown on a page, not typed
SHOWN = {"text", "json", "nginx", "caddyfile", "ini", "yaml", "python"}
PATIENCE = 600.0
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
_EXCUSE = re.compile(r"<!-- not run here: (.+); (\S+) -->\n\Z")
_KEPT = re.compile(r"^(?:export )?([A-Z][A-Z_]*)=", re.M)
# a clone's folder has none of these
_LEFT_OUT = {".git", ".venv", "venv", "var", ".env"}
# variables that the place sets itself
_OURS = (
    *("EXHAUST_", "S3_", "AWS_", "DJANGO_", "PYTEST_", "DATABASE_", "CELERY_", "PUBLIC_"),
    *("SECRET_KEY", "EXHAUST_KEY_PEPPER", "ENCRYPTION_", "DEBUG"),
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    reason: str  # the reason for not running it, else empty
    cover: str  # the file that covers it instead

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    text = page.read_text()
    page_blocks = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        excuse = _EXCUSE.search(text, 0, match.start())
        reason, cover = excuse.groups() if excuse else ("", "")
        page_blocks.append(Block(page, line, match[2], match[3], reason, cover))
    return page_blocks


def typed(page: Path) -> list[Block]:
    """Those that a reader types and we run."""
    return [block for block in blocks(page) if block.language == SHELL and not block.reason]


def expected(block_text: str) -> list[str]:
    """Returns the expected outputs of a block's commands, as patterns."""
    groups = groupby(block_text.splitlines(), key=lambda line: line.startswith("#>"))
    printed_texts = (
        "".join(line.removeprefix("#>") for line in lines) for printed, lines in groups if printed
    )
    return [
        ".*?".join(re.escape(part) for part in _packed(text).split("…")) for text in printed_texts
    ]


def _packed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@dataclass
class Place:
    """A folder like a clone, whose `.venv` is the Python that runs us."""

    folder: Path
    ports: dict[int, int]  # a port on a page: the port in its place
    environment: dict[str, str]
    begun: set[Path] = field(default_factory=set)
    shells: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self, page: Path) -> None:
        """Runs all commands of a page, after those of START; fails at the block that fails."""
        if page in self.begun:
            return
        if page not in (START, OPERATIONS):  # which needs no start
            self.run(START)
        self.begun.add(page)
        page_blocks = typed(page)
        if page_blocks:
            self.run_blocks(page.stem, page_blocks)

    def run_blocks(self, name: str, page_blocks: list[Block]) -> None:
        """Runs these blocks; fails at the one that fails, or prints what it should not."""
        self._check(page_blocks, self._typed(name, page_blocks))

    def _typed(self, name: str, page_blocks: list[Block]) -> str:
        variables_file = self.folder / ".kept"
        names = {name for block in page_blocks for name in _KEPT.findall(block.text)}
        script = [
            "set -eE -o pipefail",
            """trap 'echo "@@ failed: $BASH_COMMAND"' ERR""",
            f"[ ! -f {variables_file} ] || . {variables_file}",
        ]
        for block in page_blocks:
            script += [f"echo; echo '@@ {block.name}'", self._here(block.text)]
        script += [
            f"declare -p {name} >> {variables_file} 2>/dev/null || true" for name in sorted(names)
        ]
        script_file = self.folder / f".{name}.sh"
        script_file.write_text("\n".join(script) + "\n")
        printed = self.folder / f".{name}.log"
        with printed.open("wb") as output:
            shell = subprocess.Popen(
                ["bash", str(script_file)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # its background processes end with the test
            )
        self.shells.append(shell)
        code = shell.wait(PATIENCE)
        output_text = printed.read_text(errors="replace")
        assert code == 0, f"{name}: a command failed\n{output_text[-6000:]}"
        return output_text

    def _check(self, page_blocks: list[Block], output_text: str) -> None:
        parts = re.split(r"^@@ (\S+:\d+)$", output_text, flags=re.M)
        printed = dict(zip(parts[1::2], parts[2::2], strict=True))
        for block in page_blocks:
            for pattern in expected(self._here(block.text)):
                assert re.search(pattern, _packed(printed[block.name])), (
                    f"{block.name}: printed\n{printed[block.name]}"
                )

    def type(self, line: str) -> None:
        """Runs one more line and ignores its result."""
        subprocess.run(
            ["bash", "-c", line], cwd=self.folder, env=self.environment, check=False, timeout=60
        )

    def _here(self, text: str) -> str:
        """Returns the text with the place's ports."""
        for named, ours in self.ports.items():
            text = re.sub(
                rf"\b(127\.0\.0\.1|localhost)(:|\", ){named}\b", rf"127.0.0.1\g<2>{ours}", text
            )
        return text

    def leave(self) -> None:
        """Stops the processes that the pages left running."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for shell in self.shells:
                with suppress(ProcessLookupError):
                    os.killpg(shell.pid, number)
            end = time.monotonic() + 15
            while number == signal.SIGTERM and time.monotonic() < end and self._alive():
                time.sleep(0.1)

    def _alive(self) -> bool:
        for shell in self.shells:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, 0)
                return True
        return False


def settle(folder: Path, commands: Mapping[str, str], **more: str) -> Place:
    """Makes a place in an empty folder; `commands` are further programs: a shell line each."""
    for path in ROOT.iterdir():
        if path.name not in _LEFT_OUT:
            (folder / path.name).symlink_to(path)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    python = shlex.quote(sys.executable)
    lines = {
        "python": f'exec {python} "$@"',
        "python3": f'exec {python} "$@"',
        "exhaust": f'exec {python} -m exhaust "$@"',
        "celery": f'exec {python} -m celery "$@"',
        "uvicorn": f'exec {python} -m uvicorn "$@"',
        # a test installs no packages
        "pip": 'echo "pip: say <!-- not run here: … --> before the block" >&2; exit 1',
        # a page that shows a call shows one that works
        "curl": f'exec {shutil.which("curl")} --fail-with-body --max-time 60 "$@"',
        **commands,
    }
    for name, line in lines.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    port = free_port()
    ports = {8000: port} | dict(zip((9009, 2222), destination_ports(), strict=False))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a command is mostly its imports
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "EXHAUST_DATA_DIR": str(folder / "var"),
        "EXHAUST_URL": f"http://127.0.0.1:{port}",
        "EXHAUST_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "EXHAUST_PUSH_ALLOWED_NETWORKS": "ORG_001=127.0.0.0/8",
        "UVICORN_HOST": "127.0.0.1",
        "UVICORN_PORT": str(port),
        **more,
    }
    return Place(folder, ports, environment)


def destination_ports() -> Iterator[int]:
    """Yields free ports of those that a destination may have, others for each process."""
    for port in random.sample(range(9010, 9999), 900):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            yield port
