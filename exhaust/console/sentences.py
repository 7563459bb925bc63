"""The sentences that the service writes in English, in the language of the page.

The API, the log and the database have them in English, filled with values: errors with their
remedy, descriptions of columns. The catalogues have their patterns, by `makemessages`.
"""

import re
from functools import cache
from itertools import chain, zip_longest
from typing import Any

from django.utils.translation import get_language, gettext, ngettext_lazy, trans_real

_PLACEHOLDER = re.compile(r"%\((\w+)\)s")
_MIN_LETTERS = 5  # of a pattern beside its values; less would take any text for a sentence
_CUT = re.compile(r"\. [A-Z].*[^.]$", re.DOTALL)  # a sentence, and a part of the next
_PATH = re.compile(r"([A-Za-z][\w.\[\]-]*: )(.+)")  # of the field that an error is about
_COUNTED = re.compile(r"(\d[\d,]*) (\w+?)s?")
_COUNTS: dict[str, Any] = {  # nouns of `ingest.events.format_count`
    "byte": ngettext_lazy("%(count)s byte", "%(count)s bytes", "number"),
    "day": ngettext_lazy("%(count)s day", "%(count)s days", "number"),
    "document": ngettext_lazy("%(count)s document", "%(count)s documents", "number"),
    "event": ngettext_lazy("%(count)s event", "%(count)s events", "number"),
    "request": ngettext_lazy("%(count)s request", "%(count)s requests", "number"),
    "value": ngettext_lazy("%(count)s value", "%(count)s values", "number"),
}


def translate_sentence(text: object) -> str:
    """Returns a sentence of the service, or several, in the page's language; else the text."""
    sentence, language = str(text or ""), get_language() or "en"
    is_english = language.startswith("en") or not sentence
    return sentence if is_english else _translate(sentence, language)


def _translate(text: str, language: str) -> str:
    known = gettext(text) if text else ""
    if known != text:
        return known
    if counted := _COUNTED.fullmatch(text):
        number, noun = counted.groups()
        if noun in _COUNTS:
            count = int(number.replace(",", ""))
            return str(_COUNTS[noun] % {"number": count, "count": number})
    for message, literals, pattern in _load_patterns(language):
        match = pattern.fullmatch(text) if all(each in text for each in literals) else None
        if match and not any(map(_CUT.search, match.groups())):
            return gettext(message) % {
                name: _translate_value(name, value, language)
                for name, value in match.groupdict().items()
            }
    if match := _PATH.fullmatch(text):
        return match[1] + _translate(match[2], language)
    parts = re.split(r"((?<=\.) (?=[A-Z])|; )", text)
    if len(parts) == 1:
        return text
    separators = {" ": " ", "; ": gettext("; ")}
    return "".join(separators.get(each) or _translate(each, language) for each in parts)


def _translate_value(name: str, value: str, language: str) -> str:
    """Translates a value that is a sentence or a phrase; a word may be a name."""
    if name != "reason" and " " not in value:
        return value
    translated = _translate(value, language)
    return translated if translated != value else gettext(" or ").join(value.split(" or "))


@cache
def _load_patterns(language: str) -> list[tuple[str, list[str], re.Pattern[str]]]:
    """Returns the messages of the catalogue that have values, the most specific first.

    Each has the texts around its values, and the pattern that finds these.
    """
    found = []
    translations: Any = trans_real.translation(language)
    for message, _text in translations._catalog.items():
        if not isinstance(message, str) or "%(" not in message:
            continue
        literals, names = _split_message(message)
        is_telling = sum(map(str.isalpha, "".join(literals))) >= _MIN_LETTERS
        if is_telling and len(names) == len(set(names)):
            groups = [f"(?P<{name}>.*?)" for name in names]
            parts = zip_longest(map(re.escape, literals), groups, fillvalue="")
            pattern = re.compile("".join(chain.from_iterable(parts)), re.DOTALL)
            found.append((message, literals, pattern))
    # one that begins with a value takes any sentences before it
    return sorted(found, key=lambda each: (not each[1][0], -len("".join(each[1]))))


def _split_message(message: str) -> tuple[list[str], list[str]]:
    """Returns the texts of a message, and the names of the values between them."""
    texts_and_names = _PLACEHOLDER.split(message)
    return [text.replace("%%", "%") for text in texts_and_names[::2]], texts_and_names[1::2]
