"""Small pictures of numbers. A picture has a title and a description; its page has the numbers as
a table beneath. Colours are classes of the style sheet."""

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, HEIGHT = 480, 220
_LEFT, _TOP, _BOTTOM = 48, 12, 28
SERIES = 6  # colours there are


def columns(
    name: str, title: str, told: str, labels: Sequence[str], series: Sequence[Sequence[float]]
) -> SafeString:
    """Stacked columns: a label for each place, and for each series its value there."""
    most = max((sum(values) for values in zip(*series, strict=True)), default=0)
    top, step = _scale(most)
    height, width = HEIGHT - _TOP - _BOTTOM, WIDTH - _LEFT - 8
    pitch = width / max(1, len(labels))
    parts = []
    for line in range(round(top / step) + 1):
        y = _TOP + height - height * line * step / top
        parts.append(
            format_html(
                '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>'
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>',
                _LEFT, WIDTH - 8, _n(y), _n(y), _LEFT - 8, _n(y + 4), short(line * step),
            )
        )  # fmt: skip
    for place, values in enumerate(zip(*series, strict=True)):
        x, y = _LEFT + pitch * place, float(_TOP + height)
        for number, value in enumerate(values):
            tall = height * value / top
            y -= tall
            if tall > 0:
                parts.append(
                    format_html(
                        '<rect class="s{}" x="{}" y="{}" width="{}" height="{}"/>',
                        number % SERIES, _n(x + pitch * 0.12), _n(y), _n(pitch * 0.76), _n(tall),
                    )
                )  # fmt: skip
    every = max(1, -(-len(labels) // 6))
    for place in range(0, len(labels), every):
        x = _LEFT + pitch * (place + 0.5)
        parts.append(
            format_html(
                '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>',
                _n(x), HEIGHT - 8, labels[place],
            )
        )  # fmt: skip
    return _picture(name, title, told, HEIGHT, parts)


def bars(name: str, title: str, told: str, rows: Sequence[tuple[str, float, str]]) -> SafeString:
    """Lying bars: what it is, its value, and the value in words."""
    most = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for place, (label, value, words) in enumerate(rows):
        y = 4 + place * 44
        parts.append(
            format_html(
                '<text class="label" x="0" y="{}">{}</text>'
                '<text class="axis" x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect class="track" x="0" y="{}" width="{}" height="10" rx="5"/>'
                '<rect class="s0" x="0" y="{}" width="{}" height="10" rx="5"/>',
                y + 14, label if len(label) <= 30 else f"{label[:29]}…",
                WIDTH, y + 14, words,
                y + 21, WIDTH,
                y + 21, _n(WIDTH * value / most),
            )
        )  # fmt: skip
    return _picture(name, title, told, 44 * len(rows) + 4, parts)


def _picture(
    name: str, title: str, told: str, height: int, parts: Sequence[SafeString]
) -> SafeString:
    return format_html(
        '<svg class="picture" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{t}</title><desc id="{n}-d">{d}</desc>{parts}</svg>',
        w=WIDTH,
        h=height,
        n=name,
        t=title,
        d=told,
        parts=format_html_join("", "{}", ((part,) for part in parts)),
    )


def _scale(most: float) -> tuple[float, float]:
    """The top of an axis and its step, in round numbers."""
    step = 1.0
    while most / step > 5:
        step *= 2.5 if str(step).startswith("2") else 2
    top = step * max(1, -(-most // step))
    return top, step


def short(value: float) -> str:
    """`12k`, for an axis."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"


def _n(value: float) -> str:
    return f"{value:.1f}"
