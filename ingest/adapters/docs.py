"""The table of sources in `docs/sending.md`."""

from ingest.adapters import ADAPTERS

HEAD = "| Source | Address | Sender | Same event | Of two, wins |\n|---|---|---|---|---|\n"


def source_table() -> str:
    """The table as Markdown, a row a source. Put it into the page when the suite says it differs."""
    rows = [
        f"| {name} | {adapter.docs.addresses} | {adapter.docs.sender} | {adapter.docs.identity}"
        f" | {adapter.docs.winner} |\n"
        for name, adapter in ADAPTERS.items()
    ]
    return HEAD + "".join(rows)
