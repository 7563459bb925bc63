"""The site of the docs: every link leads somewhere, and all of it works without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exhaust.docs.calls import list_calls
from exhaust.openapi.document import document
from tests.service import ROOT
from tools import site

pytest.importorskip("furo", reason="needs the extra docs: pip install '.[docs]'")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "tools.site", folder],
        cwd=ROOT,
        env=os.environ | {"EXHAUST_DATA_DIR": str(tmp_path_factory.mktemp("var"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_each_page_is_there(built: Path):
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    pages |= {"index.md", "changelog.md", "api.md", "decisions/index.md"}
    missing = [page for page in pages if not (built / page).with_suffix(".html").is_file()]
    assert missing == []
    index = (built / "searchindex.js").read_text()
    assert '"installing"' in index


def test_reference_has_each_call(built: Path):
    text = (built / "api.html").read_text()
    calls = list(list_calls(document()))
    assert len(calls) > 30
    missing = [f"{call.method} {call.template}" for call in calls if call.template not in text]
    assert missing == []


def test_nothing_is_read_from_elsewhere(built: Path):
    for page in built.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"([^\"]+)", page.read_text()
        )
        assert [address for address in loaded if re.match(r"(\w+:)?//", address)] == [], page


def test_web_server_may_read_it(built: Path):
    modes = {path.stat().st_mode & 0o777 for path in built.rglob("*") if path.is_file()}
    assert modes == {0o644}


def test_broken_link_stays_for_the_build_to_find():
    link = site.LINK.search("[no page](nothing.md)")
    assert link
    assert site.move_link(link, "docs/cli.md") == "[no page](nothing.md)"
    link = site.LINK.search("[the settings](../README.md#configuration)")
    assert link
    assert site.move_link(link, "docs/cli.md") == "[the settings](index.md#configuration)"
