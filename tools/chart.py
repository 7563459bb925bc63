"""Renders the chart of `config/chart`: `python -m tools.chart` writes `config/kubernetes.yaml`.

With `--values JSON` it prints the manifests under these values instead. It is Helm itself, from
the package helm-python-sdk of the extra `kubernetes`, and needs no cluster.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parent.parent / "config"
CHART, MANIFESTS = CONFIG / "chart", CONFIG / "kubernetes.yaml"
HEAD = """\
# The chart of config/chart under its own values, for `kubectl apply`: python -m tools.chart
# docs/installing.md#kubernetes says what to change.
"""


def render(values: dict[str, Any]) -> str:
    """Returns all manifests. Raises `ValueError` with what Helm finds wrong."""
    import helm_python as helm

    if faults := helm.lint(str(CHART), values)["errors"]:
        raise ValueError("; ".join(map(str, faults)))
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="exhaust", namespace="exhaust")
    texts = (text.strip().removeprefix("---").strip() for _, text in sorted(files.items()))
    return HEAD + "".join(f"---\n{text}\n" for text in texts if text)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=json.loads, metavar="JSON")
    values = parser.parse_args().values
    try:
        text = render(values or {})
    except Exception as error:
        sys.exit(str(error))
    if values is None:
        MANIFESTS.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
