"""/openapi.json, /docs, and the headers of what a browser shows."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Annotated, Any

import msgspec
import pytest

from bertrt.serve.app import ENDPOINTS
from bertrt.serve.description import describe, render
from bertrt.serve.endpoint import Endpoint
from bertrt.serve.protocols.operation import refuse


class Inner(msgspec.Struct):
    value: float


class Body(msgspec.Struct):
    """What `text` says, <b>in HTML</b>."""

    text: str
    inner: list[Inner] = []
    kind: str | None = "a & b"


async def nothing(call: Any) -> Any:
    # These endpoints are described, and never asked.
    raise NotImplementedError


MADE = [
    Endpoint("/a/{name}/{rest:path}", nothing, refuse, body=Body, answers=Inner, tag="one"),
    Endpoint("/a/{name}/{rest:path}", nothing, refuse, method="GET", summary="<i>", tag="one"),
    Endpoint("/raw", nothing, refuse, tag="two", open=True),
    # Types that are no key of a dictionary, by a field of theirs, and lists of which msgspec
    # decodes no union.
    Endpoint(
        "/several",
        nothing,
        refuse,
        body={"text": Body, "value": Inner},
        answers=list[Inner] | list[list[Inner]],
        tag="two",
    ),
    Endpoint(
        "/annotated",
        nothing,
        refuse,
        body=Annotated[str, msgspec.Meta(examples=[["a"]], extra_json_schema={"x": {}})],
        tag="two",
    ),
    Endpoint("/unsaid", nothing, refuse),
]


def valid(document: dict[str, Any]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    pytest.importorskip("openapi_spec_validator").validate(document)
    return document


@pytest.mark.parametrize("keys", [False, True])
def test_it_is_valid(keys: bool) -> None:
    document = valid(describe(ENDPOINTS, keys))
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    paths = {(own.method, own.path) for own in ENDPOINTS if own.tag}
    assert len(described) == len(paths)
    assert ("POST", "/models/{model}/predict") in described
    assert ("GET", "/page/page.js") not in described
    operation = document["paths"]["/models/{model}/predict"]["post"]
    assert ("security" in operation) == keys == ("401" in operation["responses"])
    assert "security" not in document["paths"]["/metrics"]["get"]


def test_what_it_says() -> None:
    document = valid(describe(MADE, True))
    assert list(document["paths"]) == ["/a/{name}/{rest}", "/raw", "/several", "/annotated"]
    post = document["paths"]["/a/{name}/{rest}"]["post"]
    assert [each["name"] for each in post["parameters"]] == ["name", "rest"]
    reference = post["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = document["components"]["schemas"][reference.rsplit("/")[-1]]
    assert schema["required"] == ["text"] and schema["properties"]["kind"]["default"] == "a & b"
    refusal = post["responses"]["422"]["content"]["application/json"]["example"]
    assert refusal["status"] == 422
    assert document["paths"]["/raw"]["post"]["requestBody"]["content"] == {"*/*": {}}
    several = document["paths"]["/several"]["post"]
    schema = several["requestBody"]["content"]["application/json"]["schema"]
    assert [each["$ref"].rsplit("/")[-1] for each in schema["anyOf"]] == ["Body", "Inner"]
    schema = several["responses"]["200"]["content"]["application/json"]["schema"]
    assert [each["type"] for each in schema["anyOf"]] == ["array", "array"]


class Tags(HTMLParser):
    """Whether all that is opened is closed, and what texts there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)
        assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_of_it() -> None:
    found = Tags()
    found.feed(render(describe(MADE, True)))
    assert found.open == []
    assert "It takes Body or Inner." in found.texts
    for text in ("Inner", "list of Inner", "text or null", 'default "a & b"', "required"):
        assert text in found.texts, text
    assert "<i> " in found.texts
    assert any("<b>in HTML</b>" in text for text in found.texts)
    assert any('"$SERVER/a/NAME/REST"' in text for text in found.texts)
    curl = next(text for text in found.texts if "-d" in text)
    assert '\'{"text": "A text."}\'' in curl and "Bearer $KEY" in curl


@pytest.mark.parametrize("path", ["/openapi.json", "/api-doc/openapi.json"])
def test_a_server_describes_itself(server, path: str) -> None:
    status, body, _ = server.get(path)
    assert status == 200
    assert body == json.loads(json.dumps(describe(ENDPOINTS, False)))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/page/page.css", "text/css"),
        ("/page/page.js", "text/javascript"),
        ("/page/favicon.svg", "image/svg+xml"),
    ],
)
def test_headers_of_the_page(server, path: str, kind: str) -> None:
    status, content, headers = server.get(path)
    assert status == 200 and content
    assert headers["content-type"].partition(";")[0] == kind
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    status, content, again = server.get(path, {"if-none-match": headers["etag"]})
    assert (status, content) == (304, b"") and again["etag"] == headers["etag"]


def test_the_page_wants_no_key(start, models) -> None:
    server = start(f"classifier={models['classifier']}", "--api-key", "right")
    for path in ("/", "/docs", "/openapi.json", "/page/page.js"):
        assert server.get(path)[0] == 200
    assert "securitySchemes" in server.get("/openapi.json")[1]["components"]
