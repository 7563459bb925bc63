"""What a benchmark found: one record for each work, printed as a table and written as JSON."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """Figures of one work, one a round, and what they are measured against.

    A bar (">= 0.8", "<= 48") is of the ratio where something stands in `against`, else of the
    figures themselves. Without figures a bar is missed, and `note` says why there are none.
    """

    work: str
    unit: str
    ours: Sequence[float] = ()
    against: str = ""
    reference: Sequence[float] = ()
    bar: str = ""
    note: str = ""

    @property
    def ratio(self) -> list[float]:
        """Of the medians; then the least and the most within a round, where rounds were shared."""
        if not self.ours or not self.reference:
            return []
        within = [
            ours / reference for ours, reference in zip(self.ours, self.reference, strict=False)
        ]
        return [median(self.ours) / median(self.reference), min(within), max(within)]

    @property
    def holds(self) -> bool | None:
        if not self.bar:
            return None
        figures = self.ratio if self.against else list(self.ours)
        if not figures:
            return False
        sense, limit = self.bar.split()
        found = figures[0] if self.against else median(figures)
        return found >= float(limit) if sense == ">=" else found <= float(limit)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file: a spread is [median, least, most] or null."""
        return {
            "work": self.work,
            "unit": self.unit,
            "ours": _spread(self.ours),
            "against": self.against,
            "reference": _spread(self.reference),
            "ratio": self.ratio or None,
            "bar": self.bar,
            "holds": self.holds,
            "note": self.note,
        }


def _spread(figures: Sequence[float]) -> list[float] | None:
    return [median(figures), min(figures), max(figures)] if figures else None


def compare(
    figures: Mapping[str, Sequence[float]], unit: str, work: str, reference_name: str = "", bar: str = "",
    note: str = "",
) -> Result:  # fmt: skip
    """A result out of what `ground.rounds` gave, by the names of its rows."""
    return Result(
        work, unit, figures[work], reference_name, figures.get(reference_name, ()), bar, note
    )


# Told ---------------------------------------------------------------------------------------------


def argument_parser(description: str) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="Where to write what was found.")
    return parser


def print_report(
    benchmark: str,
    results: Iterable[Result],
    ground: Mapping[str, str],
    path: Path | None,
) -> None:
    """Prints the table, and writes `{benchmark, ground, results}` where asked."""
    records = [result.to_dict() for result in results]
    print(f"\n{markdown_table(records)}", flush=True)
    if path:
        document = {"benchmark": benchmark, "ground": dict(ground), "results": records}
        path.write_text(json.dumps(document, indent=1) + "\n")


def markdown_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Medians (least to most), and whether each bar holds, in Markdown."""
    lines = ["| work | ours | reference | ratio | bar |", "|---|---|---|---|---|"]
    for each in records:
        against = each["against"]
        reference = (
            f"{against}: {_format_spread(each['reference'])}" if each["reference"] else against
        )
        cells = (
            f"{each['work']}{each['note'] and ' (' + each['note'] + ')'}",
            f"{_format_spread(each['ours'])} {each['unit']}" if each["ours"] else "none",
            reference,
            _format_spread(each["ratio"]),
            f"{each['bar']}: {'holds' if each['holds'] else 'MISSED'}" if each["bar"] else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_spread(spread: Sequence[float] | None) -> str:
    if not spread:
        return ""
    middle, least, most = map(_format_figure, spread)
    return middle if least == most == middle else f"{middle} ({least}-{most})"


def _format_figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if value else "0"
