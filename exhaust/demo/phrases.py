"""Texts of the demo bot, read from `phrases.json`: questions, answers and names by language.

Every language asks the same questions in the same order, that of `conversations.PATHS`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Question(NamedTuple):
    """One question: its title and its options. A question without options takes free text."""

    title: str
    options: tuple[str, ...] = ()


class Language(NamedTuple):
    """The texts of one language; `share` is its part of the participants in percent."""

    share: int
    given_names: tuple[str, ...]
    family_names: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: tuple[str, ...]


def _load_language(values: dict[str, Any]) -> Language:
    return Language(
        values["share"],
        tuple(values["given_names"]),
        tuple(values["family_names"]),
        tuple(Question(each["title"], tuple(each["options"])) for each in values["questions"]),
        tuple(values["answers"]),
    )


_PHRASES = json.loads(Path(__file__).with_name("phrases.json").read_text(encoding="utf-8"))

LANGUAGES = tuple(_load_language(each) for each in _PHRASES["languages"])
# free text that breaks careless readers: formulas, quotes, line ends, blanks, look-alikes
AWKWARD_ANSWERS: tuple[str, ...] = tuple(_PHRASES["awkward_answers"])
# replies that are none of the options
STRAY_REPLIES: tuple[str, ...] = tuple(_PHRASES["stray_replies"])
