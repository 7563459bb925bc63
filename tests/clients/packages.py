"""Installs the packages of clients, each set once in a folder of its own."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

NPM = [
    "npm", "install", "--no-save", "--no-package-lock", "--no-audit", "--no-fund",
    "--ignore-scripts", "--loglevel=error",
]  # fmt: skip
PATIENCE = 150


def install_npm(folder: Path, *packages: str) -> Path:
    """Returns the folder with these npm packages; skips without npm or its registry."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node.js and npm")

    def install() -> None:
        name = packages[0]
        view = ["npm", "view", name, "version", "--fetch-retries=0", "--fetch-timeout=10000"]
        _run(view, folder, "the npm registry", 20)  # an install would try for minutes
        _run([*NPM, "--prefix", str(folder), *packages], folder, "the npm registry")

    return _install_once(folder, packages, install)


def install_python(folder: Path, *requirements: str) -> Path:
    """Returns the Python of a virtual environment with these packages; skips without an index."""

    def install() -> None:
        _run([sys.executable, "-m", "venv", str(folder)], folder.parent, "the module venv")
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--retries", "1"]
        _run([*pip, *requirements], folder.parent, "pip's package index")

    return _install_once(folder, requirements, install) / "bin" / "python"


def _install_once(folder: Path, packages: tuple[str, ...], install: Callable[[], None]) -> Path:
    marker = folder / "installed"
    if not marker.exists() or marker.read_text() != " ".join(packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install()
        marker.write_text(" ".join(packages))
    return folder


def _run(command: list[str], folder: Path, need: str, patience: float = PATIENCE) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"needs {need}: no answer in {patience:.0f} s")
    if done.returncode:
        pytest.skip(f"needs {need}: {done.stderr.strip()[-200:]}")
