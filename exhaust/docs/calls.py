"""Runnable calls from the OpenAPI document: each operation with example values, in four languages.

A text like `<EXHAUST_KEY>` in a call stands for the environment variable of that name.
"""

import json
import re
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

LINE = 84  # characters
METHODS = ("get", "post", "put", "delete")
VARIABLE = re.compile(r"<([A-Z_]+)>")
KEY = {"Authorization": "Bearer <EXHAUST_KEY>"}
BASIC = ("<EXHAUST_APPLICATION>", "<EXHAUST_APPLICATION_PASSWORD>")
# parameters that the document has no example of
_VALUES = {
    "tag": "april", "requestId": "<REQUEST_ID>", "token": "<DOWNLOAD_TOKEN>", "index": "sessions",
    "appId": "<EXHAUST_APPLICATION>", "client_id": "<EXHAUST_APPLICATION>",
    "identity": 'identity.{"email": "asha@people.example"}',
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """An operation that you can call as it stands."""

    operation: Mapping[str, Any]
    method: str
    template: str  # of the path, as the document has it
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    user: tuple[str, str] | None  # of HTTP Basic
    body: Any  # a JSON value, or a text; None for none

    @property
    def id(self) -> str:
        return str(self.operation["operationId"])

    @property
    def tag(self) -> str:
        return str(self.operation["tags"][0])

    @property
    def is_json(self) -> bool:
        return self.body is not None and not isinstance(self.body, str)

    @property
    def address(self) -> str:
        """The path with its query; variables stay as they are."""
        query = "&".join(f"{quote(name)}={_quote(value)}" for name, value in self.query.items())
        return self.path + (f"?{query}" if query else "")


def list_calls(document: Mapping[str, Any]) -> Iterator[Call]:
    """Yields each operation that is no alias, with example values."""
    for template, item in document["paths"].items():
        for method in METHODS:
            operation = item.get(method)
            if operation and not operation["summary"].startswith("Alias of "):
                yield _make_call(operation, method.upper(), template)


def list_aliases(document: Mapping[str, Any]) -> Mapping[str, list[str]]:
    """Returns the other addresses of each method and path."""
    aliases: dict[str, list[str]] = defaultdict(list)
    for template, item in document["paths"].items():
        for method in METHODS:
            summary = item.get(method, {}).get("summary", "")
            if summary.startswith("Alias of "):
                aliases[summary.removeprefix("Alias of ")].append(f"{method.upper()} {template}")
    return aliases


def _make_call(operation: Mapping[str, Any], method: str, template: str) -> Call:
    parameters = [each for each in operation.get("parameters", ()) if "name" in each]
    query = {
        each["name"]: _find_value(each)
        for each in parameters
        if each["in"] == "query" and (each.get("required") or each["name"] in _VALUES)
    }
    content = operation.get("requestBody", {}).get("content", {})
    media = next(iter(content), None)
    security = operation.get("security") or [{}]
    schemes = {name for each in security for name in each}
    headers = dict(KEY) if "bearer" in schemes else {}
    if "metrics" in schemes:
        headers = {"Authorization": "Bearer <EXHAUST_METRICS_TOKEN>"}
    if media:
        headers["Content-Type"] = media
    return Call(
        operation,
        method,
        template,
        _fill_path(template),
        query,
        headers,
        BASIC if "application" in schemes else None,
        content[media]["example"] if media else None,
    )


def _find_value(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    given = _VALUES.get(parameter["name"], schema.get("enum", [None])[0])
    return str(parameter.get("example", given if given is not None else schema.get("default", 1)))


def _fill_path(template: str) -> str:
    """Fills a path: `{identifier}` of `/user/` is `<USER_ID>`, `{name}` of `/schedule/` is ours."""

    def fill(match: re.Match[str]) -> str:
        noun = template[: match.start()].rstrip("/").rpartition("/")[2].rstrip("s")
        if match[1] == "identifier":
            return f"<{noun.upper()}_ID>"
        return _VALUES.get(match[1], "file.csv" if noun.startswith("{") else f"my-{noun}")

    return re.sub(r"{(\w+)}", fill, template)


def _quote(value: str) -> str:
    """Returns the value for a query, with its variables as they are."""
    parts = re.split(f"({VARIABLE.pattern.replace('(', '(?:')})", value)
    return "".join(part if VARIABLE.fullmatch(part) else quote(part, safe="") for part in parts)


def format_json(value: Any, indent: int = 0) -> str:
    """Returns JSON for people: what fits in a line is in one line."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or indent + len(line) <= LINE:
        return line
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(name)}: {format_json(each, indent + 2)}" for name, each in value.items()
        ]
    else:
        parts = [format_json(each, indent + 2) for each in value]
    start, end = "{}" if isinstance(value, dict) else "[]"
    return f"{start}\n{inner}" + f",\n{inner}".join(parts) + f"\n{' ' * indent}{end}"


# Languages ----------------------------------------------------------------------------------------


def write_curl(call: Call) -> str:
    lines = ["curl --fail-with-body" + ("" if call.method == "GET" else f" -X {call.method}")]
    lines[0] += f" {_shell_text(f'<EXHAUST_URL>{call.address}')}"
    if call.user:
        lines.append(f"-u {_shell_text(':'.join(call.user))}")
    lines += [f"-H {_shell_text(f'{name}: {value}')}" for name, value in call.headers.items()]
    if call.body is not None:
        body = format_json(call.body) if call.is_json else call.body
        lines.append(f"--data-binary {shlex.quote(body)}")
    return " \\\n  ".join(lines)


def _shell_text(text: str) -> str:
    if not VARIABLE.search(text):
        return shlex.quote(text)
    escaped = re.sub(r'(["\\$`])', r"\\\1", text)
    return '"' + VARIABLE.sub(r"$\1", escaped) + '"'


def write_python(call: Call) -> str:
    arguments = [_python_text(f"<EXHAUST_URL>{call.address}")]
    if call.user:
        arguments.append(f"auth=({', '.join(map(_python_text, call.user))})")
    headers = {
        name: value
        for name, value in call.headers.items()
        if not (call.is_json and name == "Content-Type")
    }
    if headers:
        pairs = ", ".join(f'"{name}": {_python_text(value)}' for name, value in headers.items())
        arguments.append(f"headers={{{pairs}}}")
    if call.body is not None:
        name = "json" if call.is_json else "data"
        arguments.append(f"{name}={_python_value(call.body)}")
    arguments.append("timeout=60")
    given = "".join(f"    {each},\n" for each in arguments)
    return (
        "import os\n\nimport requests\n\n"
        f"response = requests.{call.method.lower()}(\n{given})\n"
        "response.raise_for_status()\nprint(response.text)"
    )


_CONSTANTS = {"true": "True", "false": "False", "null": "None"}


def _python_value(value: Any) -> str:
    """Returns JSON as Python: only its constants differ."""
    tokens = r'"(?:[^"\\]|\\.)*"|true|false|null'
    return re.sub(tokens, lambda match: _CONSTANTS.get(match[0], match[0]), format_json(value, 4))


def _python_text(text: str) -> str:
    if not VARIABLE.search(text):
        return json.dumps(text, ensure_ascii=False)
    if whole := VARIABLE.fullmatch(text):
        return f'os.environ["{whole[1]}"]'
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("{", "{{").replace("}", "}}")
    return 'f"' + VARIABLE.sub(r"{os.environ['\1']}", escaped) + '"'


def write_javascript(call: Call) -> str:
    headers = {name: _javascript_text(value) for name, value in call.headers.items()}
    if call.user:
        pair = _javascript_text(":".join(call.user))
        headers = {"Authorization": f'"Basic " + btoa({pair})', **headers}
    options = [] if call.method == "GET" else [f'method: "{call.method}"']
    if headers:
        pairs = ", ".join(f'"{name}": {value}' for name, value in headers.items())
        options.append(f"headers: {{ {pairs} }}")
    if call.body is not None:
        body = format_json(call.body, 2)
        options.append(f"body: JSON.stringify({body})" if call.is_json else f"body: {body}")
    given = ", {\n" + "".join(f"  {each},\n" for each in options) + "}" if options else ""
    address = _javascript_text(f"<EXHAUST_URL>{call.address}")
    return (
        f"const response = await fetch({address}{given});\n"
        "if (!response.ok) throw new Error(await response.text());\n"
        "console.log(await response.text());"
    )


def _javascript_text(text: str) -> str:
    if not VARIABLE.search(text):
        return json.dumps(text, ensure_ascii=False)
    escaped = re.sub(r"([`\\]|\$(?={))", r"\\\1", text)
    return "`" + VARIABLE.sub(r"${process.env.\1}", escaped) + "`"


LANGUAGES: dict[str, Callable[[Call], str]] = {
    "curl": write_curl,
    "Python": write_python,
    "JavaScript": write_javascript,
}
