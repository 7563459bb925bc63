"""Small SVG charts with a title and a description. Colours are classes of the style sheet."""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 480, 220
_LEFT, _TOP, _BOTTOM = 48, 12, 28
SERIES_COLORS = 6  # classes s0 to s5


def draw_columns(
    name: str,
    title: str,
    description: str,
    labels: Sequence[str],
    series: Sequence[Sequence[float]],
) -> SafeString:
    """Draws stacked columns: one per label, each with a value per series."""
    maximum = max((sum(values) for values in zip(*series, strict=True)), default=0)
    top, step = _axis_scale(maximum)
    height, width = HEIGHT - _TOP - _BOTTOM, WIDTH - _LEFT - 8
    pitch = width / max(1, len(labels))
    parts = []
    for line in range(round(top / step) + 1):
        y = _TOP + height - height * line * step / top
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
                format_axis_value(line * step),
            )
        )
    for index, values in enumerate(zip(*series, strict=True)):
        x, y = _LEFT + pitch * index, float(_TOP + height)
        for number, value in enumerate(values):
            bar_height = height * value / top
            y -= bar_height
            if bar_height > 0:
                parts.append(
                    format_html(
                        '<rect class="s{}" x="{}" y="{}" width="{}" height="{}"/>',
                        number % SERIES_COLORS,
                        _coordinate(x + pitch * 0.12),
                        _coordinate(y),
                        _coordinate(pitch * 0.76),
                        _coordinate(bar_height),
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
    return _wrap_svg(name, title, description, HEIGHT, parts)


def draw_bars(
    name: str, title: str, description: str, rows: Sequence[tuple[str, float, str]]
) -> SafeString:
    """Draws horizontal bars from rows of (label, value, formatted value)."""
    maximum = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for index, (label, value, value_label) in enumerate(rows):
        y = 4 + index * 44
        parts.append(
            format_html(
                '<text class="label" x="0" y="{}">{}</text>'
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="track" x="0" y="{}" width="{}" height="10" rx="5"/>'
                '<rect class="s0" x="0" y="{}" width="{}" height="10" rx="5"/>',
                y + 14, label if len(label) <= 30 else f"{label[:29]}…",
                WIDTH, y + 14, value_label,
                y + 21, WIDTH,
                y + 21, _coordinate(WIDTH * value / maximum),
            )
        )  # fmt: skip
    return _wrap_svg(name, title, description, 44 * len(rows) + 4, parts)


def _wrap_svg(
    name: str, title: str, description: str, height: int, parts: Sequence[SafeString]
) -> SafeString:
    return format_html(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{t}</title><desc id="{n}-d">{d}</desc>{parts}</svg>',
        w=WIDTH,
        h=height,
        n=name,
        t=title,
        d=description,
        parts=format_html_join("", "{}", ((part,) for part in parts)),
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
