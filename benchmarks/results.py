"""Results of benchmarks: one record per measurement, printed as a table and written as JSON."""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Result:
    """Figures of one measurement, one per round, and of its reference.

    A bar (">= 0.8", "<= 48") applies to the ratio if `against` names a reference, else to the
    figures. Without figures a bar is missed, and `note` says why there are none.
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
        """The ratio of the medians, and the least and greatest ratio of one round."""
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
        """Returns the JSON form; a spread is [median, least, greatest] or null."""
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
    figures: Mapping[str, Sequence[float]],
    unit: str,
    work: str,
    reference_name: str = "",
    bar: str = "",
    note: str = "",
) -> Result:
    """Returns a result from the figures of `harness.run_rounds`, by row names."""
    return Result(
        work, unit, figures[work], reference_name, figures.get(reference_name, ()), bar, note
    )


# Output -------------------------------------------------------------------------------------------


def argument_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with the arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="Where to write the results.")
    return parser


def print_report(
    benchmark: str,
    results: Iterable[Result],
    ground: Mapping[str, str],
    path: Path | None,
) -> None:
    """Prints the table, and writes `{benchmark, ground, results}` to `path`."""
    records = [result.to_dict() for result in results]
    print(f"\n{markdown_table(records)}", flush=True)
    if path:
        document = {"benchmark": benchmark, "ground": dict(ground), "results": records}
        path.write_text(json.dumps(document, indent=1) + "\n")


def markdown_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of medians (least to greatest) and bars."""
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
