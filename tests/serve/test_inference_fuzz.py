"""What is nearly a request of the Open Inference Protocol is refused, and nothing worse.

BERTRT_TEST_MUTATIONS sets how many of each kind are tried.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
import random
import struct
from collections import Counter

import pytest

COUNT = int(os.environ.get("BERTRT_TEST_MUTATIONS", "300"))

TEXTS = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["the sea", "boats"]}
PAIR = {"name": "text_pair", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
IDS = [
    {"name": name, "datatype": "INT64", "shape": [2, 3], "data": rows}
    for name, rows in (
        ("input_ids", [[2, 5, 3], [2, 3, 0]]),
        ("attention_mask", [[1, 1, 1], [1, 1, 0]]),
        ("token_type_ids", [[0, 0, 0], [0, 0, 0]]),
    )
]
OUTPUTS = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "result"}]
BODIES = [
    {"inputs": [TEXTS]},
    {"id": "x", "inputs": [TEXTS, PAIR], "outputs": OUTPUTS},
    {"inputs": IDS, "parameters": {"priority": 3, "timeout": 60_000_000}},
    {"inputs": IDS, "outputs": [{"name": "logits"}], "parameters": {"binary_data_output": True}},
    {"inputs": [TEXTS], "parameters": {"prompt": "query: ", "truncate": True}},
]
MODELS = ("classifier", "ranker", "tagger", "reader")
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 3, 1 << 31, 1 << 63, 1 << 64, 1 << 200, -(1 << 63)),
    *(0.5, 1e308, "", "x", "text", "BYTES", "INT32", "FP32", "\0", "é" * 1000, "a" * 100_000),
    *([], [[]], [[[1]]], {}, {"a": 1}, [None], ["a", 1], [1] * 3000, {"name": "text"}),
]


def places(value, path=()):
    """The paths to all that is in a value."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def mutated(body, rng: random.Random):
    """A body of which some parts are others, gone, there twice or called otherwise."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(list(places(body)))
        if not path:
            continue
        inner = body
        for key in path[:-1]:
            inner = inner[key]
        key = path[-1]
        kind = rng.randrange(6)
        if kind < 3:
            inner[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            del inner[key]
        elif isinstance(inner, list):
            inner.insert(key, copy.deepcopy(inner[key]))
        else:
            inner[rng.choice(("x", "name", "data", "shape", str(key)))] = inner[key]
    return body


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Bytes of which some are others, gone or there twice."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 1, 4, 20)))
        other = rng.choice(
            (rng.randbytes(end - start), rng.randbytes(3), b"", data[start:end] * 2, b"\xff" * 4)
        )
        data = data[:start] + other + data[end:]
    return data


def in_bytes(body, rng: random.Random) -> tuple[bytes, int]:
    """A body whose tensors come in bytes, and the size of its JSON."""
    body, parts = copy.deepcopy(body), []
    for own in body["inputs"]:
        data = own.pop("data")
        if own["datatype"] == "BYTES":
            part = b"".join(struct.pack("<I", len(one)) + one.encode() for one in data)
        else:
            part = b"".join(struct.pack("<3q", *row) for row in data)
        own["parameters"] = {"binary_data_size": len(part)}
        parts.append(part)
    rest = b"".join(parts)
    if rng.random() < 0.6:
        body = mutated(body, rng)
    if rng.random() < 0.6:
        rest = scrambled(rest, rng)
    head = json.dumps(body).encode()
    return head + rest, len(head)


class Sender:
    def __init__(self, server) -> None:
        self._server = server
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def __call__(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        try:
            self._connection.request("POST", path, body, headers)
            answer = self._connection.getresponse()
            told = answer.read()
        except (http.client.HTTPException, ConnectionError) as error:
            pytest.fail(f"no answer to {headers} {body[:1000]!r}: {error!r}")
        if answer.status != 200:
            assert list(json.loads(told)) == ["error"], (told, path, body[:1000])
        return answer.status


@pytest.mark.parametrize("kind", ["json", "bytes", "repository"])
def test_http(server, kind: str) -> None:
    send, found = Sender(server), Counter()
    for seed in range(COUNT):
        rng = random.Random(f"{kind} {seed}")
        model = rng.choice(MODELS)
        path, headers = f"/v2/models/{model}/infer", {}
        if kind == "json":
            body = json.dumps(mutated(rng.choice(BODIES), rng)).encode()
            body = scrambled(body, rng) if rng.random() < 0.3 else body
        elif kind == "bytes":
            body, size = in_bytes(rng.choice(BODIES), rng)
            size += rng.choice((0, 0, 0, 0, 1, -1, 9, -200))
            said = scrambled(str(size).encode(), rng) if rng.random() < 0.1 else str(size).encode()
            said = bytes(byte for byte in said if 32 < byte < 127)
            headers["Inference-Header-Content-Length"] = said.decode()
        else:
            path = "/v2/repository/" + rng.choice(
                ("index", "models/nobody/load", "models/a/unload")
            )
            body = scrambled(b'{"parameters": {"config": "x"}, "ready": true}', rng)
        status = send(path, body, headers)
        # 504 where a timeout became a short one.
        assert status < 500 or status == 504, (seed, status, headers, body[:1000])
        found[status] += 1
    print(kind, dict(found))
    assert server.get("/v2/health/ready")[0] == 200
    assert not [own for own in server.log if own["event"] == "fault"]


def message_of(stub, body, model: str) -> object:
    """A body as a message."""
    made = stub.messages["ModelInferRequest"](model_name=model, id=body.get("id", ""))
    for own in body["inputs"]:
        tensor = made.inputs.add(name=own["name"], datatype=own["datatype"], shape=own["shape"])
        if own["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(one.encode() for one in own["data"])
        else:
            tensor.contents.int64_contents.extend(one for row in own["data"] for one in row)
    for name, value in body.get("parameters", {}).items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(made.parameters[name], field, value)
    for own in body.get("outputs", ()):
        made.outputs.add(name=own["name"])
    return made


def change(message, stub, rng: random.Random) -> None:
    """Make some field of a message another one."""
    numbers = (0, 1, -1, 2, 7, 1 << 31, (1 << 63) - 1, -(1 << 63))
    for _ in range(rng.choice((1, 1, 2, 4))):
        inputs, outputs = list(message.inputs), list(message.outputs)
        own = rng.choice(inputs) if inputs else message.inputs.add()
        match rng.randrange(12):
            case 0:
                own.name = rng.choice(("", "x", "text", "input_ids", "é" * 999))
            case 1:
                own.datatype = rng.choice(("", "BYTES", "INT32", "INT64", "FP32", "FP99"))
            case 2:
                own.shape.append(rng.choice(numbers))
            case 3 if own.shape:
                own.shape[rng.randrange(len(own.shape))] = rng.choice(numbers)
            case 4:
                own.contents.bytes_contents.append(rng.randbytes(rng.randrange(9)))
            case 5:
                own.contents.int64_contents.append(rng.choice(numbers))
            case 6:
                own.ClearField("contents")
            case 7:
                message.raw_input_contents.append(rng.randbytes(rng.choice((0, 8, 24, 48))))
            case 8:
                message.model_version = rng.choice(("", "1", "2", "x" * 9999))
            case 9:
                name = rng.choice(("priority", "prompt", "truncate", "x", "binary_data_output"))
                field = rng.choice(("bool_param", "int64_param", "string_param", "double_param"))
                value = {"bool": True, "int64": rng.choice(numbers), "string": "x", "double": 0.5}
                setattr(message.parameters[name], field, value[field.partition("_")[0]])
            case 10:
                message.outputs.add(name=rng.choice(("", "x", "logits", "result", "scores")))
            case 11 if outputs:
                rng.choice(outputs).parameters["classification"].int64_param = 3


@pytest.mark.parametrize("kind", ["fields", "bytes", "noise"])
def test_grpc(server, stub, kind: str) -> None:
    grpc = pytest.importorskip("grpc")
    call, found = stub(server), Counter()
    method = call.method("ModelInfer")
    code = grpc.StatusCode
    fine = {code.INVALID_ARGUMENT, code.NOT_FOUND, code.DEADLINE_EXCEEDED}
    for seed in range(COUNT):
        rng = random.Random(f"{kind} {seed}")
        message = message_of(call, rng.choice(BODIES), rng.choice(MODELS))
        if kind == "fields":
            change(message, call, rng)
        sent = message.SerializeToString()
        if kind == "bytes":
            sent = scrambled(sent, rng)
        elif kind == "noise":
            sent = rng.randbytes(rng.randrange(200))
        try:
            method(sent, timeout=60)
            found["OK"] += 1
        except grpc.RpcError as error:
            assert error.code() in fine, (seed, error, sent)
            found[error.code().name] += 1
    print(kind, dict(found))
    assert call("ServerReady").ready
    assert not [own for own in server.log if own["event"] == "fault"]
