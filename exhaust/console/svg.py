"""Small SVG charts. Colours are classes of the style sheet, and the page gives them a title."""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from exhaust.console.templatetags.console import duration

WIDTH, HEIGHT = 480, 220
MAX_LABEL = 40  # characters that fit beside the value of a bar
_LEFT, _TOP, _BOTTOM = 48, 12, 28
SERIES_COLORS = 6  # classes s0 to s5, and l0 to l5 of lines
_TIME_STEPS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200)


def draw_columns(
    labels: Sequence[str],
    series: Sequence[Sequence[float]],
    before: Sequence[float] | None = None,
) -> SafeString:
    """Draws stacked columns, one per label with a value per series, and a line of other totals."""
    totals = [sum(values) for values in zip(*series, strict=True)]
    top, step = _axis_scale(max((*totals, *(before or ())), default=0))
    height, pitch = HEIGHT - _TOP - _BOTTOM, (WIDTH - _LEFT - 8) / max(1, len(labels))
    ticks = [line * step for line in range(round(top / step) + 1)]
    parts = _draw_axes(labels, [(tick, format_axis_value(tick)) for tick in ticks], top)
    paths: list[list[str]] = [[] for _ in series]
    width = _coordinate(pitch * 0.76)
    for index, values in enumerate(zip(*series, strict=True)):
        x, y = _LEFT + pitch * index, float(_TOP + height)
        for path, value in zip(paths, values, strict=True):
            bar_height = height * value / top
            y -= bar_height
            if bar_height > 0:
                corner = f"{_coordinate(x + pitch * 0.12)},{_coordinate(y)}"
                path.append(f"M{corner}h{width}v{_coordinate(bar_height)}h-{width}z")
    for number, path in enumerate(paths):
        parts.append(
            format_html('<path class="s{}" d="{}"/>', number % SERIES_COLORS, "".join(path))
        )
    if before is not None:
        parts += _draw_line("before", before, top)
    return _wrap_svg(HEIGHT, parts)


def draw_lines(labels: Sequence[str], series: Sequence[Sequence[float | None]]) -> SafeString:
    """Draws a line of seconds per series; None is a gap."""
    maximum = max((value for values in series for value in values if value is not None), default=0)
    step = next((each for each in _TIME_STEPS if maximum / each <= 5), 86_400.0)
    top = step * max(1, -(-maximum // step))
    ticks = [line * step for line in range(round(top / step) + 1)]
    parts = _draw_axes(labels, [(tick, duration(tick) if tick else "0") for tick in ticks], top)
    for number, values in enumerate(series):
        parts += _draw_line(f"l{number % SERIES_COLORS}", values, top)
    return _wrap_svg(HEIGHT, parts)


def _draw_axes(
    labels: Sequence[str], ticks: Sequence[tuple[float, str]], top: float
) -> list[SafeString]:
    height, pitch = HEIGHT - _TOP - _BOTTOM, (WIDTH - _LEFT - 8) / max(1, len(labels))
    parts = []
    for tick, label in ticks:
        y = _TOP + height - height * tick / top
        parts.append(
            format_html(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>',
                _LEFT,
                WIDTH - 8,
                _coordinate(y),
                _coordinate(y),
                _LEFT - 8,
                _coordinate(y + 4),
                label,
            )
        )
    every = max(1, -(-len(labels) // 6))
    for index in range(0, len(labels), every):
        x = _LEFT + pitch * (index + 0.5)
        parts.append(
            format_html(
                '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>',
                _coordinate(x), HEIGHT - 8, labels[index],
            )
        )  # fmt: skip
    return parts


def _draw_line(css_class: str, values: Sequence[float | None], top: float) -> list[SafeString]:
    """Returns a line for each run of values, and a dot for one alone."""
    height, pitch = HEIGHT - _TOP - _BOTTOM, (WIDTH - _LEFT - 8) / max(1, len(values))
    runs: list[list[str]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            y = _TOP + height - height * value / top
            runs[-1].append(f"{_coordinate(_LEFT + pitch * (index + 0.5))},{_coordinate(y)}")
    parts = []
    for run in filter(None, runs):
        if len(run) > 1:
            points = " ".join(run)
            parts.append(format_html('<polyline class="{}" points="{}"/>', css_class, points))
        else:
            dot = '<circle class="{}" cx="{}" cy="{}" r="2"/>'
            parts.append(format_html(dot, css_class, *run[0].split(",")))
    return parts


def draw_bars(
    rows: Sequence[tuple[str, float, str]], before: Sequence[float] | None = None
) -> SafeString:
    """Draws horizontal bars from rows of (label, value, formatted value).

    `before` is a value per row, at which the bar has a mark.
    """
    maximum = max((*(value for _, value, _ in rows), *(before or ())), default=0) or 1
    parts = []
    for index, (label, value, value_label) in enumerate(rows):
        y = 4 + index * 44
        parts.append(
            format_html(
                '<text class="label" x="0" y="{}">{}</text>'
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="track" x="0" y="{}" width="{}" height="10" rx="5"/>'
                '<rect class="s0" x="0" y="{}" width="{}" height="10" rx="5"/>',
                y + 14, label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…",
                WIDTH, y + 14, value_label,
                y + 21, WIDTH,
                y + 21, _coordinate(WIDTH * value / maximum),
            )
        )  # fmt: skip
        if before is not None:
            x = _coordinate(min(WIDTH - 1.5, WIDTH * before[index] / maximum))
            mark = '<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>'
            parts.append(format_html(mark, x, x, y + 18, y + 34))
    return _wrap_svg(44 * len(rows) + 4, parts)


def _wrap_svg(height: int, parts: Sequence[SafeString]) -> SafeString:
    return format_html(
        '<svg class="chart" viewBox="0 0 {} {}">{}</svg>',
        WIDTH,
        height,
        format_html_join("", "{}", ((part,) for part in parts)),
    )


def _axis_scale(maximum: float) -> tuple[float, float]:
    """Returns the top of an axis and its step as round numbers."""
    step = 1.0
    while maximum / step > 5:
        step *= 2.5 if str(step).startswith("2") else 2
    top = step * max(1, -(-maximum // step))
    return top, step


def format_axis_value(value: float) -> str:
    """Formats a value for an axis, as `12k`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _coordinate(value: float) -> str:
    return f"{value:.1f}"
