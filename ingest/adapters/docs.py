"""The table of sources in `docs/sending.md`."""

from ingest.adapters import ADAPTERS

HEAD = "| Source | Address | Sender | Same event | Of two, wins |\n|---|---|---|---|---|\n"


def source_table() -> str:
    """Returns the table as Markdown. The suite fails where the page has another one."""
    rows = [
        f"| {name} | {adapter.docs.addresses} | {adapter.docs.sender} | {adapter.docs.identity}"
        f" | {adapter.docs.winner} |\n"
        for name, adapter in ADAPTERS.items()
    ]
    return HEAD + "".join(rows)
