"""The API's description, made of the endpoints: as OpenAPI 3.1, and as a page to read."""

from __future__ import annotations

import json
import re
import shlex
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import msgspec

from bertrt.serve.endpoint import Endpoint
from bertrt.serve.refusals import Refusal
from bertrt.version import __version__

__all__ = ["describe", "render"]

_REFS = "#/components/schemas/"
# What may come in an answer's place; each protocol has its own body for it.
_REFUSALS = {
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The body or the list is too long.",
    422: "The body, or an input, cannot be answered.",
    424: "The model is for another task.",
    429: "Too much waits; try again.",
    503: "Loading, draining or out of memory.",
    504: "The deadline was over before it ran.",
}


def describe(endpoints: Sequence[Endpoint], keys: bool) -> dict[str, Any]:
    """The endpoints as a document of OpenAPI 3.1.

    Args:
        endpoints: all of them; those without a tag are left out.
        keys: whether the server asks for an API key.
    """
    endpoints = [own for own in endpoints if own.tag]
    wanted = [_types(kind) for own in endpoints for kind in (own.body, own.answers)]
    made, schemas = msgspec.json.schema_components(
        [kind for own in wanted for kind in own], ref_template=_REFS + "{name}"
    )
    left = iter(made)
    found = iter([[next(left) for _ in own] for own in wanted])
    paths: dict[str, Any] = {}
    for own in endpoints:
        body, answer = _any(next(found)), _any(next(found))
        # A route's "{rest:path}" is "{rest}" here.
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", own.path)
        paths.setdefault(path, {})[own.method.lower()] = _operation(own, path, body, answer, keys)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "bertrt",
            "version": __version__,
            "summary": "Models of text behind HTTP, in the words of several protocols.",
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(own.tag for own in endpoints)],
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
    return document


def _types(kind: Any) -> list[Any]:
    """The types that a body may have: none, one, several by a field of theirs, or a union's."""
    if isinstance(kind, Mapping):
        return list(kind.values())
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return list(typing.get_args(kind))
    return [] if kind is None else [kind]


def _any(schemas: list[dict[str, Any]]) -> dict[str, Any] | None:
    if len(schemas) > 1:
        return {"anyOf": schemas}
    return schemas[0] if schemas else None


def _operation(
    own: Endpoint,
    path: str,
    body: dict[str, Any] | None,
    answer: dict[str, Any] | None,
    keys: bool,
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{own.method.lower()}{path}").strip("_"),
        "tags": [own.tag],
        "summary": own.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ],
        "responses": {"200": {"description": "The answer."}},
    }
    if answer is not None:
        made["responses"]["200"]["content"] = {"application/json": {"schema": answer}}
    if own.method != "GET":
        content: dict[str, Any] = {"*/*": {}}
        if body is not None:
            content = {"application/json": {"schema": body}}
        made["requestBody"] = {"required": True, "content": content}
    if not own.open:
        if keys:
            made["security"] = [{"bearer": []}, {"header": []}]
        made["responses"] |= _refusals(own, keys, "{" in path)
    return made


def _refusals(own: Endpoint, keys: bool, named: bool) -> dict[str, Any]:
    """What may come in the answer's place, in the protocol's own words."""
    found: dict[str, Any] = {}
    for status, text in _REFUSALS.items():
        if status == 401 and not keys:
            continue
        if own.method == "GET" and status not in (401, 404, 503):
            continue
        if own.method == "GET" and status == 404 and not named:
            continue
        response = own.refuse(Refusal(status, text))
        description: dict[str, Any] = {"description": text}
        try:
            example = json.loads(bytes(response.body))
        except ValueError:
            pass
        else:
            description["content"] = {"application/json": {"example": example}}
        found.setdefault(str(response.status_code), description)
    return found


def render(document: Mapping[str, Any]) -> str:
    """Such a document as a page of HTML."""
    schemas = document["components"]["schemas"]
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    links: dict[str, list[str]] = {tag: [] for tag in by_tag}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag, name = operation["tags"][0], operation["operationId"]
            by_tag[tag].append(_route(path, method, operation, schemas))
            shown = f"<code>{method.upper()} {escape(path)}</code>"
            links[tag].append(f'<li><a href="#{escape(name)}">{shown}</a></li>')
    sections = "".join(
        f'<section><h2 id="tag-{escape(tag)}">{escape(tag)}</h2>{"".join(routes)}</section>'
        for tag, routes in by_tag.items()
    )
    contents = "".join(
        f'<li><a href="#tag-{escape(tag)}">{escape(tag)}</a><ul>{"".join(own)}</ul></li>'
        for tag, own in links.items()
    )
    key = ""
    if "securitySchemes" in document["components"]:
        key = (
            "<p>Routes that say so want an API key: <code>Authorization: Bearer KEY</code>, or "
            "<code>X-API-Key: KEY</code>.</p>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>bertrt: the API</title><link rel="icon" href="page/favicon.svg">'
        '<link rel="stylesheet" href="page/page.css"></head><body class="docs">'
        '<header class="top"><h1><a href="./">bertrt</a> <span class="muted">'
        f"{escape(document['info']['version'])}</span></h1>"
        '<nav><a href="./">Server</a> <a href="openapi.json">openapi.json</a></nav></header>'
        f'<main><section><h2>The API</h2>{key}<nav aria-label="Routes">'
        f'<ul class="contents">{contents}</ul></nav></section>{sections}</main></body></html>'
    )


def _route(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    key = ' <span class="muted">Needs a key.</span>' if "security" in operation else ""
    parts = [
        f'<article id="{escape(operation["operationId"])}"><h3><span class="method">'
        f"{method.upper()}</span> <code>{escape(path)}</code></h3>"
        f"<p>{escape(operation['summary'])}"
        f"{key}</p>"
    ]
    body = operation.get("requestBody", {}).get("content", {})
    schema = body.get("application/json", {}).get("schema")
    if schema is not None:
        parts.append(_fields(True, schema, schemas))
    answer = operation["responses"]["200"].get("content", {}).get("application/json", {})
    if "schema" in answer:
        parts.append(_fields(False, answer["schema"], schemas))
    parts.append(
        f"<pre><code>{escape(_curl(path, method, operation, schema, schemas))}</code></pre>"
    )
    return "".join([*parts, "</article>"])


def _curl(
    path: str,
    method: str,
    operation: Mapping[str, Any],
    schema: Mapping[str, Any] | None,
    schemas: Mapping[str, Any],
) -> str:
    place = re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), path)
    words = [f'curl "$SERVER{place}"']
    if "security" in operation:
        words.append('-H "Authorization: Bearer $KEY"')
    if schema is not None:
        sample = json.dumps(_sample(schema, schemas), ensure_ascii=False)
        words += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(sample)}"]
    elif method == "post":
        words.append("-X POST")
    return " ".join(words)


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].removeprefix(_REFS)]
    return schema


def _fields(asked: bool, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """A table of an object's fields, or the type of what is none; objects within it below."""
    title = "It takes" if asked else "It answers"
    shown: list[str] = []
    names = list(_named(schema))
    if "properties" not in _resolved(schema, schemas):
        shown.append(f"<p>{title} {escape(_type(schema))}.</p>")
    elif not names:
        names = [""]
    done = set()
    while names:
        name = names.pop(0)
        own = schemas[name] if name else schema
        if name in done or "properties" not in own:
            continue
        done.add(name)
        needed = own.get("required", ())
        rows = []
        for field, kind in own["properties"].items():
            names += _named(kind)
            cells = (
                f'<th scope="row"><code>{escape(field)}</code></th><td>{escape(_type(kind))}</td>'
            )
            if asked:
                default = json.dumps(kind.get("default"), ensure_ascii=False)
                said = "required" if field in needed else f"default {default}"
                cells += f"<td>{escape(said)}</td>"
            rows.append(f"<tr>{cells}</tr>")
        caption = f"{title} " if len(done) == 1 and not shown else ""
        text = re.sub(r"``?(.+?)``?", r"<code>\1</code>", escape(own.get("description", "")))
        shown.append(
            f'<div class="scroll"><table><caption>{caption}<code>{escape(name)}</code></caption>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
            + (f'<p class="muted">{text}</p>' if text else "")
        )
    return "".join(shown)


def _named(schema: Any) -> Iterable[str]:
    """The names of the schemas that one refers to itself."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key == "$ref":
                yield value.removeprefix(_REFS)
            else:
                yield from _named(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _named(value)


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in words: "text or list of number"."""
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(_REFS)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(own) for own in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        own = _type(schema.get("items") or {})
        return f"list of ({own})" if " or " in own else f"list of {own}"
    names = {"string": "text", "integer": "whole number", "object": "JSON object"}
    return names.get(kind, str(kind))


def _sample(schema: Mapping[str, Any], schemas: Mapping[str, Any], depth: int = 0) -> Any:
    """A value of a schema: an object of what it needs."""
    schema = _resolved(schema, schemas)
    if "anyOf" in schema:
        return _sample(schema["anyOf"][0], schemas, depth)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" and depth < 5:
        fields, needed = schema.get("properties", {}), schema.get("required", ())
        return {
            name: _sample(fields[name], schemas, depth + 1) for name in needed if name in fields
        }
    if kind == "array":
        return [_sample(schema.get("items") or {"type": "string"}, schemas, depth + 1)]
    found = {"string": "A text.", "integer": 1, "number": 0.5, "boolean": True, "object": {}}
    return found.get(kind) if isinstance(kind, str) else None
