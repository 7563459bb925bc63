"""Names that every file system takes."""

from pathlib import Path

import pytest

from exhaust.cli.names import MAX_NAME_BYTES, make_safe_name

ENDING = "_response_20220401_part-0001.csv.gz.zip"


@pytest.mark.parametrize(
    ("conversation", "safe"),
    [
        ("c63b6faa-11a9", "c63b6faa-11a9"),
        ("नमस्ते bot", "नमस्ते bot"),
        ("org/team/bot 1", "org_team_bot 1"),
        (".hidden", "_hidden"),
        ("..", "_."),
        (" space", "_space"),
        ("a\\b:c*?", "a_b_c__"),
        ('"<a>|', "__a__"),
        ("tab\tnull\0\x7fline\n", "tab_null__line_"),
        ("invoice\u202efdp", "invoice_fdp"),
        ("lone\ud800", "lone_"),
        ("line\u2028s", "line_s"),
        ("con.x", "_con.x"),
        ("LPT1.", "_LPT1."),
        ("console.x", "console.x"),
    ],
)
def test_safe_names(conversation: str, safe: str) -> None:
    assert make_safe_name(conversation + ENDING) == safe + ENDING
    assert make_safe_name(safe + ENDING) == safe + ENDING


@pytest.mark.parametrize(
    ("name", "safe"),
    [("", "_"), ("CON", "_CON"), ("nul.txt", "_nul.txt"), ("a.", "a_"), ("a ", "a_"), (".", "_")],
)
def test_short_names(name: str, safe: str) -> None:
    assert make_safe_name(name) == safe


@pytest.mark.parametrize("character", ["a", "क", "😀"])
def test_long_name_keeps_its_end(tmp_path: Path, character: str) -> None:
    safe = make_safe_name(character * 300 + ENDING)
    assert MAX_NAME_BYTES - 4 < len(safe.encode()) <= MAX_NAME_BYTES
    assert safe.startswith(character * 20)
    assert safe.endswith(ENDING)
    (tmp_path / safe).touch()
    assert len(make_safe_name(character * 300).encode()) <= MAX_NAME_BYTES
