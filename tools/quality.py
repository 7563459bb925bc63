"""Measures how plainly the tree speaks: `python -m tools.quality` prints a table of bars.

Everything is read from the files that git tracks, as text and syntax; nothing is imported.
`tests/tools/test_quality.py` holds the same numbers.
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("config", "ingest", "exhaust")

OPAQUE_NAME = re.compile(
    r"_*(told|tell|said|asked|ask|found|kept|made|given|taken|shown|held|known|of|at|by|what|again"
    r"|words|form|begun|ended|settled|settle|arrived|came|took|waits|mark)"
)
GLOSSARY = ROOT / "docs" / "glossary.md"
INDIRECT_WORDS = {
    "what", "who", "whom", "whose", "whoever", "whatever", "whichever", "nobody", "somebody",
    "nothing", "everybody", "anybody", "whither",
}  # fmt: skip
# Bottom up: a lower package never imports a higher one.
LAYERS = (
    "ingest",
    "exhaust.failpoints exhaust.models exhaust.tracing", "exhaust.metrics", "exhaust.feed",
    "exhaust.datasets", "exhaust.files exhaust.delivery", "exhaust.archive", "exhaust.jobs",
    "exhaust.maintenance", "exhaust.monitoring",
    "exhaust.api exhaust.admin", "exhaust.console exhaust.openapi", "exhaust.docs",
    "exhaust.worker", "exhaust.tasks", "config",
)  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """One figure of the table: what it measures, how much there is, and the most or least allowed.

    `before` is the figure of the tree before it was named by the glossary.
    """

    name: str
    value: float
    limit: float
    before: float
    is_minimum: bool = False
    findings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.is_minimum else self.value <= self.limit


@cache
def list_files(*patterns: str) -> tuple[Path, ...]:
    """Tracked files that match git's patterns."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file())


@cache
def parse_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def list_modules() -> dict[str, Path]:
    """Dotted names of the product's modules, migrations left out."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in list_files("*.py")
        if path.relative_to(ROOT).parts[0] in PACKAGES and "migrations" not in path.parts
    }


def locate(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


# Names ------------------------------------------------------------------------------------------


def find_opaque_names() -> list[str]:
    """Functions and classes whose whole name is a participle, a preposition or a pronoun.

    `tell` is no private word in a file-like class: Python's own protocol names it.
    """
    found = []
    for path in list_modules().values():
        file_like = {
            child
            for node in ast.walk(parse_file(path))
            if isinstance(node, ast.ClassDef)
            for child in node.body
            if getattr(child, "name", "") == "tell"
            and "write" in {getattr(sibling, "name", "") for sibling in node.body}
        }
        found += [
            f"{locate(path, node)} {node.name}"
            for node in ast.walk(parse_file(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and OPAQUE_NAME.fullmatch(node.name)
            and node not in file_like
        ]
    return found


def split_identifier(name: str) -> list[str]:
    """Words of an identifier, in small letters and without a plural s."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return [word.lower() for word in words]


@cache
def list_banned_words() -> frozenset[str]:
    """The column *Not* of the glossary's tables, and its plurals."""
    rows = re.findall(r"^\|[^|]+\|[^|]+\| ?([\w, ]*?) *\|$", GLOSSARY.read_text(), re.MULTILINE)
    words = {word for row in rows for word in re.findall(r"\b[a-z]+\b", row)}
    return frozenset(words | {f"{word}s" for word in words})


def find_banned_words() -> list[str]:
    """Words that the glossary replaces, in identifiers, comments, texts, templates and docs."""
    found = []
    product = [
        path
        for path in list_files("*.py", "*.md", "*.html", "*.js", "*.css", "*.yml", "*.json")
        if "migrations" not in path.parts
        and "golden" not in path.parts
        and "min.js" not in path.name
        and path.name not in {"glossary.md", "CHANGELOG.md", "test_quality.py"}
    ]
    for path in product:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for name in re.findall(r"[A-Za-z_]+", line):
                banned = [word for word in split_identifier(name) if word in list_banned_words()]
                if banned:
                    found.append(f"{path.relative_to(ROOT)}:{number} {name}")
    return found


# Imports ----------------------------------------------------------------------------------------


def list_imports() -> dict[str, set[str]]:
    """What each module imports of ours, anywhere in it."""
    modules = list_modules()
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in modules.items():
        for node in ast.walk(parse_file(path)):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    target = full if full in modules else node.module
                    if target in modules and target != name:
                        imports[name].add(target)
            elif isinstance(node, ast.Import):
                imports[name] |= {a.name for a in node.names if a.name in modules} - {name}
    return imports


def find_import_circles() -> list[str]:
    """Sets of modules that reach one another."""
    imports = list_imports()

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        pending = [start]
        while pending:
            for name in imports[pending.pop()] - seen:
                seen.add(name)
                pending.append(name)
        return seen

    reached = {name: reach(name) for name in imports}
    circles = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in imports
        if name in reached[name]
    }
    return [", ".join(sorted(circle)) for circle in circles]


def find_layer(module: str) -> int | None:
    """The layer's number, 0 for the lowest; None for what stands beside them."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names.split()):
            return number
    return None


def find_upward_imports() -> list[str]:
    """Imports of a higher layer by a lower one."""
    found = []
    for name, targets in list_imports().items():
        for target in sorted(targets):
            low, high = find_layer(name), find_layer(target)
            if low is not None and high is not None and low < high:
                found.append(f"{name} -> {target}")
    return found


# Docs -------------------------------------------------------------------------------------------


def list_doc_words() -> Iterator[str]:
    """Words of README.md and docs/, without code, addresses and front matter."""
    for path in list_files("README.md", "docs/*.md"):
        text = re.sub(r"```.*?```", " ", path.read_text(), flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->", " ", text, flags=re.DOTALL)
        text = re.sub(r"`[^`\n]*`|\]\([^)]*\)|https?://\S+", " ", text)
        yield from (word.lower() for word in re.findall(r"[A-Za-z][A-Za-z']*", text))


def measure_share(words: set[str]) -> float:
    """Per cent of the docs' words."""
    every = list(list_doc_words())
    return 100 * sum(word in words for word in every) / len(every)


# Tests ------------------------------------------------------------------------------------------


def list_test_names() -> list[str]:
    return [
        node.name
        for path in list_files("tests/*.py")
        for node in ast.walk(parse_file(path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def find_private_touches() -> list[str]:
    """Private names that tests reach: attributes of others, and names given to `setattr`."""
    found = []
    for path in list_files("tests/*.py"):
        for node in ast.walk(parse_file(path)):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr, re.IGNORECASE):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                if owner not in {"self", "cls", "os", "sys"} and node.attr not in DJANGO_PRIVATE:
                    found.append(f"{locate(path, node)} {node.attr}")
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
                for given in node.args[:2]:
                    name = given.value if isinstance(given, ast.Constant) else ""
                    if isinstance(name, str) and re.search(r"(^|\.)_[a-zA-Z]\w*$", name):
                        found.append(f"{locate(path, node)} {name}")
    return found


DJANGO_PRIVATE = {"_meta", "_fields", "_replace", "_asdict"}  # public by their documentation


def count_openapi_lines() -> int:
    """Lines of Python that only the OpenAPI document needs, without blank lines and comments.

    The package, the descriptions of bodies and responses, the helpers of the views, and the
    decorators at the views. Serializers that read a request are not counted.
    """
    whole = sum(
        bool(line.strip()) and not line.strip().startswith("#")
        for pattern in (
            "exhaust/openapi/*.py",
            "exhaust/api/*responses.py",
            "ingest/http/schema.py",
            "ingest/adapters/*/openapi.py",
        )
        for path in list_files(pattern)
        for line in path.read_text().splitlines()
    )
    decorators = sum(
        (decorator.end_lineno or 0) - decorator.lineno + 1
        for path in list_files("ingest/*.py", "exhaust/*.py")
        for node in ast.walk(parse_file(path))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and isinstance(decorator.func, ast.Name)
        and decorator.func.id == "extend_schema"
    )
    return whole + decorators


def measure() -> list[Bar]:
    def counted(name: str, find: Callable[[], list[str]], limit: int, before: int) -> Bar:
        findings = find()
        return Bar(name, len(findings), limit, before, findings=tuple(findings))

    names = list_test_names()
    return [
        counted("opaque function and class names", find_opaque_names, 0, 92),
        counted("import circles", find_import_circles, 0, 5),
        counted("imports against the order", find_upward_imports, 0, 8),
        counted("banned words", find_banned_words, 0, 2_731),
        Bar("indirect words in docs, %", measure_share(INDIRECT_WORDS), 0.3, 2.1),
        Bar("you and your in docs, %", measure_share({"you", "your", "yours"}), 1.0, 0.05, True),
        Bar("length of a test's name, median", statistics.median(map(len, names)), 35, 43),
        counted("touches of private names in tests", find_private_touches, 40, 140),
        Bar("lines of OpenAPI by hand", count_openapi_lines(), 1_000, 1_847),
    ]


def main() -> None:
    bars = measure()
    print(f"{'':36} {'before':>8} {'now':>8} {'bar':>10}")
    for bar in bars:
        limit = f"{'>=' if bar.is_minimum else '<='} {bar.limit:g}"
        state = "" if bar.holds else "  MISSED"
        print(f"{bar.name:36} {bar.before:>8g} {bar.value:>8.4g} {limit:>10}{state}")
    if "--list" in sys.argv:
        for bar in bars:
            for finding in bar.findings:
                print(f"{bar.name}: {finding}")
    sys.exit(not all(bar.holds for bar in bars))


if __name__ == "__main__":
    main()
