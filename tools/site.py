"""Builds the pages of docs/, the README, the changelog and the API's reference as a site.

`python -m tools.site build/site`. It is searched without a network, and a broken link stops the
build. It needs the extra `docs`.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
# where the files of the clone are in the site; another file has no page, and a link to it no target
PLACES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
CONTENTS = {
    "Start": ("getting-started", "installing", "console", "cli"),
    "Events and files": ("sending", "datasets", "requesting", "receiving", "api"),
    "Operate": (
        *("operations", "scaling", "archive", "limits", "reliability"),
        *("security", "privacy", "audit", "performance"),
    ),
    "Reference": ("reference", "glossary", "changelog"),
    "Change it": ("architecture", "contributing", "decisions/index"),
}
OPTIONS = {
    "project": "Exhaust",
    "html_title": "Exhaust",
    "html_theme": "furo",
    "html_copy_source": False,
    "extensions": ["myst_parser"],
    "myst_heading_anchors": 6,
    "suppress_warnings": ["misc.highlighting_failure", "myst.header"],
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)


def write_sources(folder: Path) -> None:
    """Writes all pages of the site with the links that they have there."""
    for path in (ROOT / "docs").rglob("*"):
        place = folder / path.relative_to(ROOT / "docs")
        if path.is_dir():
            place.mkdir()
        elif path.suffix == ".md":
            place.write_text(move_links(path))
        else:
            place.write_bytes(path.read_bytes())
    for source, name in PLACES.items():
        (folder / name).write_text(move_links(ROOT / source))
    (folder / "api.md").write_text("\n".join(write_reference()))
    decisions = sorted(path.stem for path in (folder / "decisions").glob("*.md"))
    (folder / "decisions" / "index.md").write_text("# Decisions\n\n" + format_contents(decisions))
    with (folder / "index.md").open("a") as index:
        for caption, names in CONTENTS.items():
            index.write("\n" + format_contents(names, f":caption: {caption}\n:hidden:\n"))


def format_contents(names: Iterable[str], options: str = "") -> str:
    lines = "\n".join(names)
    return f"```{{toctree}}\n:maxdepth: 1\n{options}\n{lines}\n```\n"


def move_links(path: Path) -> str:
    """Returns a file's text; its links lead to pages of the site."""
    source = str(path.relative_to(ROOT))
    parts = _FENCE.split(path.read_text())
    parts[::2] = [LINK.sub(lambda link: move_link(link, source), part) for part in parts[::2]]
    return "".join(parts)


def move_link(link: re.Match[str], source: str) -> str:
    text, target, anchor = link[1], link[2], link[3] or ""
    if ":" in target:
        return link[0]
    path = os.path.normpath(os.path.join(os.path.dirname(source), target))
    path = "docs/decisions/index.md" if path == "docs/decisions" else path
    place = find_place(path)
    if place:
        here = os.path.dirname(find_place(source))
        return f"[{text}]({os.path.relpath(place, here)}{anchor})"
    return text if (ROOT / path).exists() else link[0]  # which the build then finds


def find_place(path: str) -> str:
    return PLACES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else "")


def write_reference() -> Iterator[str]:
    """Yields the lines of the API's page, from its OpenAPI document."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    from exhaust.docs.calls import list_aliases, list_calls, write_curl
    from exhaust.openapi.document import document

    contents = document()
    calls, aliases = list(list_calls(contents)), list_aliases(contents)
    yield "# API reference\n"
    yield "A running service has the same at `/docs/`, and to try at `/docs/try`."
    for tag in contents["tags"]:
        yield f"\n## {tag['name']}\n\n{tag.get('description', '')}"
        for call in (each for each in calls if each.tag == tag["name"]):
            address = f"{call.method} {call.template}"
            yield f"\n### {call.operation['summary'].rstrip('.')}\n\n`{address}`\n"
            yield " ".join(call.operation.get("description", "").split())
            if others := aliases[address]:
                yield "\nAlso: " + ", ".join(f"`{other}`" for other in others)
            parameters = [each for each in call.operation.get("parameters", ()) if "name" in each]
            if parameters:
                yield "\n| Parameter | In | Meaning |\n|---|---|---|"
            for each in parameters:
                meaning = " ".join(each.get("description", "").split()).replace("|", "\\|")
                yield f"| `{each['name']}` | {each['in']} | {meaning} |"
            yield f"\n```bash\n{write_curl(call)}\n```\n\n| Answer | |\n|---|---|"
            for status, answer in call.operation["responses"].items():
                yield f"| {status} | {' '.join(answer.get('description', '').split())} |"


def main() -> None:
    from sphinx.application import Sphinx

    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("python -m tools.site FOLDER")
    with TemporaryDirectory() as folder:
        sources, trees = Path(folder, "sources"), Path(folder, "trees")
        sources.mkdir()
        write_sources(sources)
        os.umask(0o022)  # the service's settings close files to others; a web server reads these
        site = Sphinx(
            sources, None, sys.argv[1], trees, "html", OPTIONS, status=None, warningiserror=True
        )
        site.build()
        sys.exit(site.statuscode)


if __name__ == "__main__":
    main()
