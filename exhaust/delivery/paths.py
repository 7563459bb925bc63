"""Paths of delivered files, made from a destination's template."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

from exhaust.cli.names import make_safe_name
from exhaust.models import File, Job

PLACEHOLDERS = (
    "date", "start", "end", "tag", "dataset", "conversation", "requestId", "name", "part", "ext",
)  # fmt: skip
DEFAULT_TEMPLATE = "{date}/{tag}/{requestId}_{name}"
MAX_TEMPLATE_LENGTH = 255
MAX_PATH_BYTES = 400  # encoded three times as long, it fits an address with its upload's id
MAX_NAME_BYTES = 240  # file systems take 255; a name under way is longer
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FORBIDDEN = re.compile(r"""[\\:*?"<>|{}\x00-\x1f\x7f]""")


class BadPath(Exception):
    """A template makes no path that every server takes. The message says the remedy."""


def check_template(template: str, *, is_absolute_allowed: bool) -> None:
    """Raises `BadPath` for a template that leaves its folder or gives two parts one name."""
    names = set(_PLACEHOLDER.findall(template))
    if unknown := names.difference(PLACEHOLDERS):
        raise BadPath(f"There is no {{{min(unknown)}}}; there are {list_placeholders()}.")
    if "name" not in names and not {"part", "ext"} <= names:
        raise BadPath("Write {name}, or {part} and {ext}, so that each file has its own path.")
    if len(template) > MAX_TEMPLATE_LENGTH:
        raise BadPath(f"Write at most {MAX_TEMPLATE_LENGTH} characters.")
    if template.startswith("/") and not is_absolute_allowed:
        raise BadPath("Leave the '/' at its start out: a bucket has no folder above its own.")
    _require_safe(fill_template(template, dict.fromkeys(PLACEHOLDERS, "x")))


def list_placeholders() -> str:
    """Returns the placeholders, for a sentence."""
    return ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)


def fill_template(template: str, values: Mapping[str, Any]) -> str:
    """Returns the template with each value as a safe part of a name: without '/' and '..'."""
    return _PLACEHOLDER.sub(lambda match: make_safe_name(str(values[match[1]])), template)


def _require_safe(path: str) -> None:
    """Raises `BadPath` unless the path names a file below its root on every server."""
    folders = path.removeprefix("/").split("/")
    if any(name in ("", ".", "..") for name in folders) or _FORBIDDEN.search(path):
        raise BadPath(
            "Write folders and a name, separated by one '/' each, without '.' and '..' as a"
            ' folder and without any of \\ : * ? " < > | { }.'
        )
    if len(path.encode()) > MAX_PATH_BYTES or len(folders[-1].encode()) > MAX_NAME_BYTES:
        raise BadPath(
            f"The path has more than {MAX_PATH_BYTES} bytes, or its name more than"
            f" {MAX_NAME_BYTES}; write a shorter template, or take a shorter tag."
        )


def build_paths(template: str, job: Job, files: Sequence[File]) -> list[str]:
    """Returns a path for each file of a job: the same whenever it is asked. Raises `BadPath`."""
    paths = []
    for file in files:
        is_manifest = file.part > 1 and file is files[-1]
        values = {
            "date": f"{job.submitted_at.astimezone(UTC):%Y-%m-%d}",
            "start": job.config.get("startDate") or "all",
            "end": job.config.get("endDate") or "all",
            "tag": job.tag,
            "dataset": job.dataset,
            "conversation": job.config.get("conversationId") or "all",
            "requestId": job.request_id,
            "name": file.name,
            "part": "manifest" if is_manifest else f"{file.part:04}",
            "ext": file.format,
        }
        path = fill_template(template, values)
        _require_safe(path)
        paths.append(path)
    return paths
