"""The workflow runs the commands of the README and the pages."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.doc_commands import OPERATIONS, ROOT, blocks

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README_LINES = [block.text.strip() for block in blocks(ROOT / "README.md") if "venv" in block.text]


def scripts_of(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def printed_by(script: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_workflow_has_a_job_per_promise() -> None:
    assert set(JOBS) == {"readme", "services", "browser", "image", "release"}
    assert JOBS["services"]["services"].keys() == {"postgres", "redis"}
    assert set(JOBS["release"]["needs"]) == set(JOBS) - {"release"}


def test_readme_lines_run_on_each_python() -> None:
    pythons = JOBS["readme"]["strategy"]["matrix"]["python"]
    assert [
        named.removeprefix("Programming Language :: Python :: ")
        for named in PROJECT["classifiers"]
        if re.search(r":: 3\.\d+$", named)
    ] == pythons
    assert PROJECT["requires-python"] == f">={pythons[0]}"

    # the steps are exactly the README's lines
    lines = [
        printed_by(re.sub(r"eval .*", 'echo "$line"', script)) for script in scripts_of("readme")
    ]
    assert lines == README_LINES[:2]
    assert all(re.search(r'^eval "\$line\b', script, re.M) for script in scripts_of("readme"))


def test_readme_has_ci_setup_line() -> None:
    run = (ROOT / ".ci" / "run").read_text()
    (setup,) = re.findall(r"^setup=\$\((grep .*)\)$", run, re.M)
    assert printed_by(setup) == README_LINES[1]
    assert scripts_of("services")[-1].endswith("bash .ci/run")


def test_image_starts_by_documented_block() -> None:
    (script,) = [script for script in scripts_of("image") if "operations.md" in script]
    export_line, ran = script.strip().splitlines()
    assert printed_by(export_line.partition(" > ")[0]) == blocks(OPERATIONS)[0].text.strip()
    assert ran.startswith("bash -e")


def test_release_states_its_build() -> None:
    job = JOBS["release"]
    assert job["permissions"] == {
        "contents": "write",  # for the release's page
        "packages": "write", "id-token": "write", "attestations": "write",
    }  # fmt: skip
    *_, build, image, packages, page = job["steps"]
    for statement in (image, packages):
        assert statement["uses"].startswith("actions/attest-build-provenance@")
    assert image["with"]["subject-digest"] == f"${{{{ steps.{build['id']}.outputs.digest }}}}"
    assert build["with"]["tags"].startswith(image["with"]["subject-name"] + ":")
    assert image["with"]["push-to-registry"] is True
    assert build["with"]["sbom"] is True
    assert packages["with"]["subject-path"] == "dist/*"  # the wheel and the chart
    assert "dist/* --verify-tag" in page["run"]
    assert WORKFLOW["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("job", JOBS)
def test_workflow_paths_exist(job: str) -> None:
    assert JOBS[job]["timeout-minutes"]
    for script in scripts_of(job):
        for path in re.findall(r"(?<![\w/.])((?:\.ci|docs|tests)/[\w./]+)", script):
            assert (ROOT / Path(path)).exists()
