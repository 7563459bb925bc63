"""Writes docs/reference.md from the code: `python -m tools.reference`, or `--check` to compare.

A table of the page has one home in the code, so no page says a number that the code does not.
"""

import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.quality import LAYERS, ROOT, list_modules, parse_file

PAGE = ROOT / "docs" / "reference.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
MARKER = "<!-- from here on made from the code by tools/reference.py -->"


@dataclass(frozen=True)
class Setting:
    """A variable of config/settings.py; `limits` and `note` are for people."""

    name: str
    kind: str
    default: str
    limits: str
    note: str


@dataclass(frozen=True)
class MetricFamily:
    name: str
    kind: str
    labels: tuple[str, ...]
    note: str


def format_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# Settings ---------------------------------------------------------------------------------------


def list_settings() -> list[Setting]:
    """Every variable that the settings read, in their order."""
    path = ROOT / "config" / "settings.py"
    lines = path.read_text().splitlines()
    settings: dict[str, Setting] = {}
    for node in ast.walk(parse_file(path)):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "env"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            continue
        name = str(node.args[0].value)
        default = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
        settings[name] = Setting(
            name, node.func.attr, evaluate_default(default), find_limits(node),
            find_note(lines, node.lineno),
        )  # fmt: skip
    return sorted(settings.values(), key=lambda setting: setting.name)


def evaluate_default(source: str) -> str:
    if source in {"''", "[]", ""}:
        return ""
    number = re.sub(r"\b(\d[\d_]*)\b", lambda found: found[1].replace("_", ""), source)
    if re.fullmatch(r"[\d *.]+", number):
        return f"{eval(number):g}" if "." in number else str(eval(number))  # noqa: S307
    return source.strip("'\"")


def find_limits(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "validate" and isinstance(keyword.value, ast.Call):
            bounds = {k.arg: ast.literal_eval(k.value) for k in keyword.value.keywords}
            if bounds:
                low, high = bounds.get("min"), bounds.get("max")
                return f"{low:,} to {high:,}" if high is not None else f"at least {low:,}"
            return ", ".join(ast.literal_eval(keyword.value.args[0]))
    return ""


def find_note(lines: list[str], number: int) -> str:
    """The comment block directly above the statement: lines that begin with `#: `."""
    note: list[str] = []
    index = number - 2
    while index >= 0 and not lines[index].startswith("#: ") and lines[index].endswith(("(", ",")):
        index -= 1  # the call may stand on a later line of its statement
    while index >= 0 and lines[index].startswith("#: "):
        note.insert(0, lines[index].removeprefix("#: "))
        index -= 1
    return " ".join(note)


# Metrics, logs, limits --------------------------------------------------------------------------

METRIC_FILES = ("ingest/metrics.py", "exhaust/metrics.py", "exhaust/monitoring/metrics.py")


def list_metrics() -> list[MetricFamily]:
    """Every metric that the service counts or reads from its rows."""
    found = []
    for file in METRIC_FILES:
        for node in ast.walk(parse_file(ROOT / file)):
            kind = getattr(getattr(node, "func", None), "id", "")
            if not isinstance(node, ast.Call) or kind not in METRIC_KINDS:
                continue
            name, note = (str(ast.literal_eval(each)) for each in node.args[:2])
            listed = [*node.args[2:3], *(k.value for k in node.keywords if k.arg == "labels")]
            labels = tuple(ast.literal_eval(listed[0])) if listed else ()
            suffix = "_total" if kind == "Counter" else ""
            found.append(MetricFamily(name + suffix, METRIC_KINDS[kind], labels, note))
    return sorted(found, key=lambda metric: metric.name)


METRIC_KINDS = {"Counter": "counter", "Histogram": "histogram", "GaugeMetricFamily": "gauge"}


def list_log_events() -> dict[str, str]:
    """Each event that is logged, and the module that logs it."""
    events: dict[str, str] = {}
    for module, path in list_modules().items():
        for node in ast.walk(parse_file(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LOG_LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in {"log", "logger"}
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                event = str(node.args[0].value).partition(" ")[0]
                events.setdefault(event, f"{LOG_LEVELS[node.func.attr]} | `{module}`")
    return dict(sorted(events.items()))


LOG_LEVELS = {
    "debug": "debug", "info": "info", "warning": "warning", "error": "error",
    "exception": "error", "critical": "critical",
}  # fmt: skip


def list_packages() -> Iterator[tuple[str, str]]:
    """(package or module, the first sentence of its docstring), the lowest layer first."""
    modules = list_modules()
    for names in LAYERS:
        for name in names.split():
            for module in sorted(modules):
                depth = module.count(".")
                is_inside = module == name or module.startswith(f"{name}.")
                if is_inside and depth <= (1 if name in {"ingest", "config"} else 2):
                    docstring = ast.get_docstring(parse_file(modules[module])) or ""
                    if sentence := docstring.partition("\n\n")[0].replace("\n", " "):
                        yield module, sentence


def write_page() -> str:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from ingest.audit import ACTIONS
    from ingest.limits import rate_limits
    from ingest.models import ApiKey
    from tools.row_limits import ROW_LIMITS

    limits = [value for value in vars(rate_limits).values() if isinstance(value, rate_limits.Limit)]
    return "\n\n".join(
        (
            "# Reference",
            "For operators and integrators: every name and number that the service knows."
            " `python -m tools.reference` writes this page from the code; a test compares the two.",
            "## Settings",
            "You set these in the environment. Each may come from a file: `SECRET_KEY_FILE` names"
            " a file that holds `SECRET_KEY`.",
            format_table(
                ("Variable", "Type", "Default", "Allowed", "Meaning"),
                (
                    (f"`{s.name}`", s.kind, f"`{s.default}`" if s.default else "", s.limits, s.note)
                    for s in list_settings()
                ),
            ),
            "## Rate limits",
            "`EXHAUST_RATE_LIMIT_MULTIPLIER` multiplies them.",
            format_table(
                ("Limit", "Calls a second", "Burst"),
                ((f"`{x.name}`", f"{x.rate:,}", f"{x.burst:,}") for x in limits),
            ),
            "## Rows",
            "How many rows of each table a caller can have you keep, and why there is no limit"
            " where there is none. A test fails for a table that is not listed.",
            format_table(
                ("Table", "Limit"), ((f"`{name}`", limit) for name, limit in ROW_LIMITS.items())
            ),
            "## Scopes of a key",
            ", ".join(f"`{scope}`" for scope in ApiKey.SCOPES) + ".",
            "## Metrics",
            format_table(
                ("Metric", "Type", "Labels", "Meaning"),
                (
                    (f"`{m.name}`", m.kind, ", ".join(f"`{x}`" for x in m.labels), m.note)
                    for m in list_metrics()
                ),
            ),
            "## Audit actions",
            format_table(
                ("Action", "Recorded when"),
                ((f"`{action}`", note) for action, note in ACTIONS.items()),
            ),
            "## Log events",
            "A log line is one JSON object on stderr. Its field `event` is one of these.",
            format_table(
                ("Event", "Level", "Logged by"),
                ((f"`{event}`", where) for event, where in list_log_events().items()),
            ),
        )
    ) + "\n"  # fmt: skip


def write_architecture() -> str:
    """The page as it is, with the table of packages made anew below its marker."""
    text = ARCHITECTURE.read_text().partition(MARKER)[0]
    table = format_table(
        ("Package", "Purpose"), ((f"`{name}`", purpose) for name, purpose in list_packages())
    )
    return f"{text}{MARKER}\n\n{table}\n"


def list_stale_pages() -> dict[Path, str]:
    """Pages whose text is not the code's, with the text that they should have."""
    pages = {PAGE: write_page(), ARCHITECTURE: write_architecture()}
    return {
        path: text for path, text in pages.items() if not path.exists() or path.read_text() != text
    }


def main() -> None:
    stale = list_stale_pages()
    if "--check" in sys.argv and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        raise SystemExit(f"{names}: run python -m tools.reference.")
    for path, text in stale.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
