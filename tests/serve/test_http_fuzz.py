"""Mutated bodies: every one is answered, with 200 or with what is wrong about it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

# Of each protocol; more for those who ask.
COUNT = int(os.environ.get("BERTRT_HTTP_FUZZ", "300"))
# A request may take this long, in seconds, on a machine that has other things to do.
PATIENCE = 120.0

SEEDS: dict[str, list[tuple[str, Any]]] = {
    "openai": [
        ("/v1/embeddings", {"input": ["the boat", "sea"], "model": "embedder", "dimensions": 8}),
        ("/v1/embeddings", {"input": [[101, 7592, 102]], "encoding_format": "base64"}),
        ("/v1/embeddings", {"input": "the sea", "user": "me", "encoding_format": "float"}),
    ],
    "tei": [
        ("/embed", {"inputs": ["the boat"], "truncate": True, "normalize": False}),
        ("/embed", {"inputs": "sea", "truncation_direction": "left", "prompt_name": "query"}),
        ("/embed_all", {"inputs": ["the boat"], "parameters": {"truncate": False}}),
        ("/embed_sparse", {"inputs": "a"}),
        ("/predict", {"inputs": [["the boat"], ["the", "sea"]], "raw_scores": True}),
        ("/predict", {"batch": ["the boat"], "on_error": "return", "timeout": 5}),
        ("/similarity", {"inputs": {"source_sentence": "the sea", "sentences": ["boat"]}}),
        ("/tokenize", {"inputs": ["the boat"], "add_special_tokens": False}),
        ("/decode", {"ids": [[101, 5], [7]], "skip_special_tokens": False}),
        ("/", {"inputs": "the boat"}),
    ],
    "rerank": [
        ("/rerank", {"query": "the", "texts": ["boat", "sea"], "raw_scores": True}),
        ("/rerank", {"query": "the", "documents": ["boat", {"text": "sea"}], "top_n": 1}),
        ("/v1/rerank", {"query": "the", "documents": ["boat"], "return_documents": True}),
        ("/v2/rerank", {"query": "the", "documents": ["boat"], "max_tokens_per_doc": 4096}),
        ("/", {"query": "the", "documents": ["boat"]}),
    ],
}
MODELS = ["embedder", "classifier", "ranker", "tagger", "reader"]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308,
    "", " ", "the", "\0", "a\0b", "\ud800", "x\udfff", "\u202e\u0301", "\U0001f6a2" * 9,
    "[SEP] [CLS]", "x" * 5000, "the boat " * 500, "\n" * 999, [], {}, [[]], [None], [""], [{}],
    [1], [[1, 2]], ["a"] * 2100, [[["a"]]], {"a": 1}, {"": None}, {"text": "the"},
    {"question": "the", "context": "boat"},
]  # fmt: skip
KEYS = ["inputs", "input", "texts", "documents", "batch", "model", "query", "parameters", "x", ""]
RAW: list[bytes] = [
    b"", b"{", b"[", b"null", b"1", b'"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"NaN", b"{}" * 2,
    b'{"inputs": NaN}', b'{"inputs": Infinity}', b'{"inputs": 1e999}', b"[" * 20000,
    b'{"inputs":' * 3000, b'{"inputs": "\\ud800"}', b'{"inputs": "\\u0000"}', b"\0" * 99,
    b'{"inputs": "a", "inputs": "b"}', b'{"inputs": "\x01"}', b'{"inputs": ["a",]}',
    b'{"input": ' + b"9" * 5000 + b"}", b"a=b&c=d", b"--x\r\n",
]  # fmt: skip
TYPES = ["application/json", "text/plain", "application/x-www-form-urlencoded", "", "\xff",
         "application/json; charset=utf-16", "APPLICATION/JSON"]  # fmt: skip


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def change(dice: random.Random, value: Any) -> Any:
    """The value with one place of it made something else."""
    value = copy.deepcopy(value)
    path = dice.choice(list(places(value)))
    if not path:
        return dice.choice(VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    here, kind = parent[path[-1]], dice.randrange(8)
    if kind == 0:
        del parent[path[-1]]
    elif kind == 1:
        parent[path[-1]] = [here]
    elif kind == 2:
        parent[path[-1]] = {dice.choice(KEYS): here}
    elif kind == 3 and isinstance(parent, dict):
        parent[dice.choice(KEYS)] = dice.choice(VALUES)
    elif kind == 4 and isinstance(here, list):
        here.append(dice.choice(VALUES))
    elif kind == 5 and isinstance(here, str):
        at = dice.randrange(len(here) + 1)
        parent[path[-1]] = here[:at] + dice.choice(["\0", "\ud834", "é", "𝄞"]) + here[at:]
    elif kind == 6:
        for _ in range(dice.choice([3, 150])):
            here = [here]
        parent[path[-1]] = here
    else:
        parent[path[-1]] = dice.choice(VALUES)
    return value


Sent = tuple[str, bytes, dict[str, str]]


def mutated(protocol: str, count: int) -> Iterator[Sent]:
    """Requests: path, body, headers."""
    dice = random.Random(f"{protocol} 1")
    for _ in range(count):
        path, body = dice.choice(SEEDS[protocol])
        headers = {"content-type": "application/json"}
        if dice.random() < 0.4:
            headers["x-model"] = dice.choice([*MODELS, "nobody", "../x", "\xe9"])
        if dice.random() < 0.05:
            name = dice.choice(["x-timeout", "x-priority", "x-request-id", "authorization"])
            headers[name] = dice.choice(["0", "-5", "1e9", "9" * 40, "\xe9", "", "Bearer", "5"])
        if dice.random() < 0.1:
            headers["content-type"] = dice.choice(TYPES)
        kind = dice.random()
        if kind < 0.12:
            raw = dice.choice(RAW)
        else:
            for _ in range(dice.choice([0, 1, 1, 1, 2, 3])):
                body = change(dice, body)
            raw = json.dumps(body).encode()
            if kind < 0.25:
                raw = raw[: dice.randrange(len(raw) + 1)]
            elif kind < 0.35 and raw:
                at = dice.randrange(len(raw))
                raw = raw[:at] + bytes([dice.randrange(256)]) + raw[at + 1 :]
        yield path, raw, headers


def check(sent: Sent, status: int, raw: bytes) -> None:
    path, body, headers = sent
    told = f"{path} {body[:300]!r} {headers} -> {status} {raw[:300]!r}"
    # A deadline of 0 is one that is over.
    timed = "x-timeout" in headers or b'"timeout"' in body
    assert status == 200 or 400 <= status < 500 or (status == 504 and timed), told
    answer = json.loads(raw)
    if status != 200:
        assert answer.get("error"), told


@pytest.fixture(scope="module")
def application(models) -> Iterator[Callable[[Sent], tuple[int, bytes]]]:
    """A function that sends a request to the application in this process."""
    from bertrt.serve.app import make_app
    from bertrt.serve.settings import Settings

    loop = asyncio.new_event_loop()
    app = make_app(Settings(models=models, max_body=1 << 20))

    async def send_one(sent: Sent) -> tuple[int, bytes]:
        path, body, headers = sent
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        found: list[Any] = []

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            found.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [
                (name.encode(), value.encode("latin-1")) for name, value in headers.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        await asyncio.wait_for(app(scope, receive, send), PATIENCE)
        return found[0]["status"], b"".join(message.get("body", b"") for message in found[1:])

    async def ready(stack: contextlib.AsyncExitStack) -> None:
        await stack.enter_async_context(app.router.lifespan_context(app))
        while not app.state.bertrt.ready:
            await asyncio.sleep(0.02)

    stack = contextlib.AsyncExitStack()
    loop.run_until_complete(asyncio.wait_for(ready(stack), PATIENCE))
    yield lambda sent: loop.run_until_complete(send_one(sent))
    loop.run_until_complete(stack.aclose())
    loop.close()


@pytest.mark.parametrize("protocol", SEEDS)
def test_in_this_process(application, protocol: str) -> None:
    statuses: Counter[int] = Counter()
    for sent in mutated(protocol, COUNT):
        status, raw = application(sent)
        check(sent, status, raw)
        statuses[status] += 1
    print(protocol, dict(statuses))
    # It is the bodies that are wrong, and not all of them.
    assert statuses[200] > COUNT / 20 and statuses[400] + statuses[422] > COUNT / 5


@pytest.mark.parametrize("protocol", SEEDS)
def test_over_the_socket(server, protocol: str) -> None:
    for sent in mutated(protocol, min(COUNT, 300) // 3):
        path, body, headers = sent
        with server.socket() as connection:
            connection.sendall(request(path, body, headers))
            status, raw = response(connection)
        check(sent, status, raw)
    # A body that ends before it is there
    for path, body in SEEDS[protocol]:
        raw = request(path, json.dumps(body).encode(), {"content-type": "application/json"})
        with server.socket() as connection:
            connection.sendall(raw[: len(raw) - 5])
    assert server.get("/health/ready")[0] == 200
    assert not [line for line in server.log if line["event"] == "fault"]


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: a",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def response(connection: socket.socket) -> tuple[int, bytes]:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), body
