"""Django's makemessages, which also takes the sentences that the service writes in English.

`exhaust.console.sentences` translates them where a page shows one.
"""

import ast
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from django.core.management.commands import makemessages

# modules whose sentences reach a page: errors, remedies, descriptions of columns
_MODULES = re.compile(
    r"\./exhaust/(?:datasets|delivery(?!/notices)|files|jobs(?!/own_datasets|/repeats))/.*"
    r"|\./exhaust/(?:api/(?:destinations|field_names|list_fields|schedules|validation)"
    r"|feed/pages|maintenance/retention)\.py"
    r"|\./ingest/(?:adapters/(?:.*/)?(?:fields|http|json_body|parser|query)|auth/keys"
    r"|collector/servers|events|feed/pruning|http/pages|http/problems|limits/rate_limits"
    r"|models/accounts|store/.*)\.py"
)
_SENTENCE = re.compile(r"(?:[A-Za-z“']|%\()[^\n]*[a-z] [^\n]*(?:[.…]|[.;] ?%\(\w+\)s)")
_PATH = re.compile(r"^[\w.%()\[\]]+: (?=[A-Z%])")  # of the field that a sentence is about
_MARKED = {"_", "gettext", "gettext_lazy", "gettext_noop", "ngettext"}
_WRAPPERS = {"format_count", "len", "max", "min", "repr", "str"}  # a value is named by its argument


class BuildFile(makemessages.BuildFile):
    """A file to extract texts from; a module with sentences gets a copy that marks them."""

    @cached_property
    def is_templatized(self) -> bool:
        return bool(super().is_templatized or _MODULES.fullmatch(self.path))

    def preprocess(self) -> None:
        if not _MODULES.fullmatch(self.path):
            super().preprocess()
            return
        text = Path(self.path).read_text()
        marks = [f"gettext_noop({each!r})" for each in list_sentences(text)]
        Path(self.work_path).write_text("\n".join([text, *marks, ""]))


class Command(makemessages.Command):
    build_file_class = BuildFile


def list_sentences(source: str) -> list[str]:
    """Returns the sentences of a module as `%` takes them, one for each text or f-string."""
    texts = (_PATH.sub("", text).strip() for text in _iterate_texts(ast.parse(source)))
    return list(dict.fromkeys(filter(_SENTENCE.fullmatch, texts)))


def _iterate_texts(node: ast.AST) -> Iterator[str]:
    """Iterates over texts; not over docstrings, help texts, logs, and what is marked already."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.keyword(arg="help_text"):
            return
        case ast.Call(func=ast.Name(id=name)) if name in _MARKED:
            return
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log"))):
            return
        case ast.Constant(value=str(text)):
            yield text.replace("{}", "%(value)s")
        case ast.JoinedStr(values=parts):
            yield _write_pattern(parts)
            for part in parts:
                if isinstance(part, ast.FormattedValue):
                    yield from _iterate_texts(part.value)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _iterate_texts(child)


def _write_pattern(parts: list[Any]) -> str:
    pattern, names = "", set[str]()
    for part in parts:
        if isinstance(part, ast.Constant):
            pattern += str(part.value).replace("%", "%%")
            continue
        name = base = _name_value(part.value)
        while name in names:
            name = f"{base}_{len(names)}"
        names.add(name)
        pattern += f"%({name})s"
    return pattern


def _name_value(node: ast.expr) -> str:
    """Returns a name for a value of a sentence, for those who translate it."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(func=ast.Name(id=wrapper), args=[value, *_]) if wrapper in _WRAPPERS:
            return _name_value(value)
        case ast.Call(func=ast.Attribute(value=ast.Constant()), args=[value, *_]):  # ", ".join(…)
            return _name_value(value)
        case ast.Call(func=ast.Attribute(value=value)) | ast.Subscript(value=value):
            return _name_value(value)
        case ast.Call(func=function):
            return _name_value(function)
    return "value"
