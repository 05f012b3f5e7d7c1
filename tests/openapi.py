"""The OpenAPI document of the HTTP API: made from the table of routes, the types of the replies, and the table in
docs/http-api.md.
"""

from __future__ import annotations

import json
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, is_typeddict

from jsonschema import Draft202012Validator

from chunkd.api.routes import ROUTES, Route
from chunkd.figures.names import FIGURES
from chunkd.parameters import PARAMETERS
from chunkd.replies.figures import Error, Kept

DOCS = Path(__file__).parent.parent / "docs"
DOCUMENT = DOCS / "openapi.json"
METRICS_TYPES = ("text/plain", "application/openmetrics-text")
DESCRIPTION = (
    "The daemon answers over a Unix socket. A page has in `next` the cursor of the following page, null at the end."
    " `HEAD` is answered like `GET`, without content."
)
ERRORS = (
    "Why there is no answer. 400: the request can't be read, or a parameter is wrong. 404: there is no such path. 405:"
    " the path does not take this method. 408: the request did not come in time. 411, 413, 414, 431, 505: it has no"
    " length, is too long, or is not HTTP/1.1. 503: too many others ask, or the index can't be read; try again. 500: a"
    " bug; the daemon's log has its traceback."
)

Schema = dict[str, Any]


def schema_of(kind: Any, named: dict[str, Schema]) -> Schema:
    """The schema of a type. That of each TypedDict goes into `named`."""
    simple = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}
    if kind in simple:
        return {"type": simple[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": schema_of(arguments[0], named)}
    if origin in (Union, types.UnionType):
        kinds = [schema_of(one, named) for one in arguments]
        if all(list(one) == ["type"] for one in kinds):
            return {"type": [one["type"] for one in kinds]}
        return {"anyOf": kinds}
    assert is_typeddict(kind), kind
    if kind.__name__ not in named:
        named[kind.__name__] = {}  # before its fields, which may have it again
        named[kind.__name__] |= object_of(kind, named)
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def object_of(kind: Any, named: dict[str, Schema]) -> Schema:
    hints = typing.get_type_hints(kind)
    assert kind.__required_keys__ == hints.keys()
    has_figures = Kept.__required_keys__ <= hints.keys()
    properties = {}
    for name, hint in hints.items():
        meaning = FIGURES[name].meaning if has_figures and name in FIGURES else ""
        properties[name] = schema_of(hint, named) | ({"description": meaning} if meaning else {})
    said = " ".join(kind.__doc__.split()).replace("None", "null")
    return {
        "description": said, "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


def parameter_of(name: str) -> Schema:
    """Its type is that of its default."""
    found = PARAMETERS[name]
    is_required = re.fullmatch(found.pattern, found.default) is None
    try:
        default: Any = json.loads(found.default)
    except ValueError:
        default = found.default
    schema = schema_of(type(default), {})
    if isinstance(default, str):
        is_choice = re.fullmatch(r"\w+(\|\w+)+", found.pattern)
        schema |= {"enum": found.pattern.split("|")} if is_choice else {"pattern": f"^(?:{found.pattern})$"}
    elif bounds := re.search("from ([0-9]+) to ([0-9]+)", found.must_be):
        schema |= {"minimum": int(bounds[1]), "maximum": int(bounds[2])}
    if not is_required:
        schema["default"] = default
    return {"name": name, "in": "query", "required": is_required, "description": found.must_be, "schema": schema}


def operation_of(path: str, route: Route, said: str, named: dict[str, Schema]) -> Schema:
    if route.reply is None:
        content = {kind: {"schema": {"type": "string"}} for kind in METRICS_TYPES}
    else:
        content = {"application/json": {"schema": schema_of(route.reply, named)}}
    flags = {name: {"type": "boolean", "default": False} for name in route.flags}
    body = {"type": "object", "properties": flags, "additionalProperties": False}
    return {
        "operationId": path.rpartition("/")[2],
        "description": said,
        **({"parameters": [parameter_of(name) for name in route.parameters]} if route.parameters else {}),
        **({"requestBody": {"content": {"application/json": {"schema": body}}}} if flags else {}),
        "responses": {
            str(route.status): {"description": "The answer.", "content": content},
            "default": {"$ref": "#/components/responses/Error"},
        },
    }


def document() -> Schema:
    rows = re.findall(r"^\| `(?:GET|POST) ([^`?]+)[^`]*` \| (.+) \|$", (DOCS / "http-api.md").read_text(), re.MULTILINE)
    said = {path: re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", words) for path, words in rows}
    named: dict[str, Schema] = {}
    paths = {
        path: {route.methods[0].lower(): operation_of(path, route, said[path], named)} for path, route in ROUTES.items()
    }
    error = {"description": ERRORS, "content": {"application/json": {"schema": schema_of(Error, named)}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "chunkd", "version": "1", "description": DESCRIPTION},
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": dict(sorted(named.items())), "responses": {"Error": error}},
    }


def text() -> str:
    return json.dumps(document(), indent=1) + "\n"


class Replies:
    """Holds replies to the schemas of a document, and keeps which fields they had."""

    def __init__(self, document: Schema) -> None:
        self._document = document
        self.named: dict[str, Schema] = document["components"]["schemas"]
        self.seen: set[tuple[str, str]] = set()

    def check(self, schema: Schema, reply: Any) -> None:
        """Raises ValidationError."""
        self._validator(schema).validate(reply)
        self._see(schema, reply)

    def unseen(self) -> set[tuple[str, str]]:
        """The fields that no reply had, each with the name of its schema."""
        every = {(name, key) for name, schema in self.named.items() for key in schema["properties"]}
        return every - self.seen

    def _validator(self, schema: Schema) -> Draft202012Validator:
        return Draft202012Validator(schema | {"components": self._document["components"]})

    def _see(self, schema: Schema, value: Any) -> None:
        for one in schema.get("anyOf", ()):
            if self._validator(one).is_valid(value):
                self._see(one, value)
        if name := schema.get("$ref", "").rpartition("/")[2]:
            for key, of_key in self.named[name]["properties"].items():
                self.seen.add((name, key))
                self._see(of_key, value[key])
        for item in value if "items" in schema else ():
            self._see(schema["items"], item)
