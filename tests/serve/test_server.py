"""The server around its protocols: its life, its limits, its keys, what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bertrt.commands.main import main

TEXT = "a text that nobody may read in a log"


def predict(server, batch, headers=None, model="embedder"):
    return server.post(f"/models/{model}/predict", {"batch": batch}, headers)


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("embedder", ["a text", "another one"]),
        ("classifier", ["the boat", ["the boat", "the sea"]]),
        ("ranker", [["the boat", "the sea"]]),
        ("tagger", ["the boat the sea", ["the", "boat"]]),
        ("reader", [["the boat", "the sea the boats"]]),
    ],
)
def test_every_task_answers_as_predict(server, engines, name: str, batch: list) -> None:
    status, body, _ = predict(server, batch, model=name)
    assert status == 200, body
    assert body["tokens"] > 0
    for item, found in zip(batch, body["results"], strict=True):
        item = tuple(item) if isinstance(item, list) and name != "tagger" else item
        expected = engines[name].predict([item])[0]
        if name == "embedder":
            np.testing.assert_array_equal(np.float32(found["vector"]), expected.vector)
        elif name == "classifier":
            assert found["scores"] == expected.scores
        elif name == "ranker":
            assert found["score"] == expected.score
        elif name == "tagger":
            assert (found["tags"], found["scores"]) == (list(expected.tags), list(expected.scores))
        else:
            assert (found["text"], found["score"]) == (expected.text, expected.score)


@pytest.mark.parametrize("kind", ["classifier", "tagger", "reader"])
def test_what_is_no_number_is_an_error_and_no_null(hugging, with_head, start, kind: str) -> None:
    """Of a model whose numbers run over."""
    architecture = {
        "classifier": "BertForSequenceClassification",
        "tagger": "BertForTokenClassification",
        "reader": "BertForQuestionAnswering",
    }[kind]
    config, weights = with_head(hugging, architecture, ["start", "end"])
    name = "qa_outputs" if kind == "reader" else "classifier"
    weights[f"{name}.weight"][:] = 3e38
    weights[f"{name}.bias"][:] = 3e38
    server = start(f"m={hugging.write(config, weights)}")
    batch = [["the boat", "the sea the boats"]] if kind == "reader" else ["the boat"]
    status, body, _ = server.post("/models/m/predict", {"batch": batch})
    assert (status, body["error"]) == (500, "the model's answer holds numbers that are not finite")
    status, body, _ = server.post("/models/m/predict", {"batch": batch, "on_error": "return"})
    assert (status, list(body["results"][0])) == (200, ["error"])
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["the boat"]}]
    if kind != "reader":
        status, body, _ = server.post("/v2/models/m/infer", {"inputs": inputs})
        assert (status, "not finite" in body["error"]) == (500, True), body


def test_vectors_of_what_is_no_number_are_errors(runs_over) -> None:
    """On every route that gives vectors: base64 would carry them without a word."""
    for path, body in (
        ("/models/m/predict", {"batch": ["the boat"]}),
        ("/v1/embeddings", {"input": "the boat"}),
        ("/v1/embeddings", {"input": ["sea", "the boat"], "encoding_format": "base64"}),
        ("/v1/embeddings", {"input": "the boat", "dimensions": 3}),
        ("/embed", {"inputs": "the boat"}),
        ("/embed_all", {"inputs": "the boat"}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    ):
        status, told, _ = runs_over.post(path, body)
        assert (status, "not finite" in str(told)) == (500, True), (path, told)


def test_tensors_have_what_predict_gives(runs_over, stub) -> None:
    """Bits can say that they are no number."""
    pytest.importorskip("grpc")
    call = stub(runs_over)
    message = call.messages["ModelInferRequest"](model_name="m")
    text = message.inputs.add(name="text", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b"sea")
    answer = call.method("ModelInfer")(message, timeout=600)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    assert len(found) and not np.isfinite(found).all()


@pytest.fixture
def runs_over(hugging, start):
    """An embedding model whose last layer runs over."""
    weights = hugging.weights(hugging.config)
    last = max(name for name in weights if name.endswith(".output.LayerNorm.weight"))
    weights[last][:] = 3e38
    return start(f"m={hugging.write(hugging.config, weights)}", "--grpc-port", "0")


def test_what_is_too_long_is_cut_or_refused(server) -> None:
    body = {"batch": ["a", "word " * 300]}
    _, found, _ = server.post("/models/embedder/predict", body)
    assert [one["truncated"] for one in found["results"]] == [False, True]
    body["truncate"] = False
    status, found, _ = server.post("/models/embedder/predict", body)
    assert status == 422 and "input[1] has more tokens than the 256" in found["error"]
    _, found, _ = server.post("/models/embedder/predict", {**body, "on_error": "return"})
    assert "vector" in found["results"][0] and "256" in found["results"][1]["error"]


def test_what_cannot_be_answered_is_told_with_its_place(server) -> None:
    status, body, _ = predict(server, ["a", "b\0", "c"])
    assert (status, body["status"]) == (422, 422)
    assert body["error"].startswith("input[1]")
    _, body, _ = server.post(
        "/models/embedder/predict", {"batch": ["a", "b\0", "a\0", "c"], "on_error": "return"}
    )
    assert [sorted(found) for found in body["results"]][1:3] == [["error"], ["error"]]
    assert body["results"][2]["error"].startswith("input[2]")
    assert "vector" in body["results"][3]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/models/nobody/predict", {"batch": ["a"]}, {}, 404),
        ("/models/embedder/predict", {"batch": []}, {}, 400),
        ("/models/embedder/predict", {"batch": ["a"] * 2049}, {}, 413),
        ("/models/embedder/predict", {"batch": [1]}, {}, 422),
        ("/models/embedder/predict", {"batch": None}, {}, 422),
        ("/models/embedder/predict", {"batch": ["a"], "other": 1}, {}, 422),
        ("/models/embedder/predict", {"batch": ["a"], "timeout": -1}, {}, 422),
        ("/models/embedder/predict", {"batch": ["a"], "on_error": "x"}, {}, 422),
        ("/models/embedder/predict", {"batch": ["a"]}, {"x-priority": "high"}, 400),
        ("/models/embedder/predict", {"batch": ["a"]}, {"x-timeout": "nan"}, 400),
        ("/models/embedder/predict", b"", {}, 400),
        ("/models/embedder/predict", b"{", {}, 400),
        ("/models/embedder/predict", b'{"batch": ["\xff"]}', {}, 400),
        ("/models/embedder/predict", b'{"batch": ["\\ud800"]}', {}, 400),
        ("/models/embedder/predict", b"[" * 1_000_000, {}, 422),
        ("/models/embedder/predict", b"{}", {"content-type": "text/plain"}, 415),
        ("/models/embedder/predict", b" " * (17 << 20), {}, 413),
        ("/models/embedder/other", {}, {}, 404),
        ("/models", {}, {}, 405),
        ("/models/embedder/predict/", {"batch": ["a"]}, {}, 404),
        ("/models/embedder/predict", b"\x1f\x8b", {"content-encoding": "gzip"}, 415),
        ("/models/embedder/predict", {"batch": ["a"], "model": ""}, {}, 422),
        ("/predict", {"batch": ["a"], "model": ""}, {}, 400),
        ("/predict", {"batch": ["a"]}, {"x-model": ""}, 400),
        ("/predict", {"batch": ["a"]}, {"x-model": "  "}, 400),
    ],
)
def test_bad_requests(server, path, body, headers, status) -> None:
    found, answer, sent = server.post(path, body, headers)
    assert found == status, answer
    assert answer["error"] and answer.get("status", status) == status
    assert sent["x-request-id"] or status in (404, 405)
    # As of a redirect, which would be built from the header Host.
    assert "location" not in sent


def raw(server, *parts: bytes, pause: float = 0) -> bytes:
    """Send bytes as they are, and read to the end."""
    with server.socket() as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        found = b""
        try:
            while data := connection.recv(1 << 16):
                found += data
        except ConnectionResetError:
            pass
        return found


def test_a_head_without_end_is_refused(server) -> None:
    lines = [b"x-%d: %s\r\n" % (i, b"y" * 900) for i in range(200)]
    assert raw(server, b"GET /health/live HTTP/1.1\r\n", *lines).startswith(b"HTTP/1.1 431")
    one = b"GET /health/live HTTP/1.1\r\nx: " + b"y" * (1 << 20)
    assert raw(server, one).startswith(b"HTTP/1.1 431")
    assert server.get("/health/live")[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET /health/live HTTP/9.9\r\n\r\n",
        b"POST /models/embedder/predict HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_no_http_is_refused(server, sent: bytes) -> None:
    found = raw(server, sent)
    assert found == b"" or found.startswith(b"HTTP/1.1 4"), found
    assert server.get("/health/live")[0] == 200


def test_a_body_that_does_not_come(start, models) -> None:
    server = start(f"m={models['classifier']}", "--body-seconds", "0.5")
    head = b"POST /models/m/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{"
    assert raw(server, head).startswith(b"HTTP/1.1 408")


def test_a_large_body_is_refused_before_it_is_there(server) -> None:
    head = b"POST /models/embedder/predict HTTP/1.1\r\nhost: a\r\n"
    long, open_ended = b"content-length: 104857600\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n"
    with server.socket() as connection:
        connection.sendall(head + long)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    # Of unknown length, it is refused when the limit is passed, and read to its end.
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with server.socket() as connection:
        connection.sendall(head + open_ended)
        for _ in range(100):
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_keys(start, models) -> None:
    server = start(f"m={models['classifier']}", environment={"BERTRT_API_KEYS": "one, two,"})
    for headers, expected in (
        ({}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "Basic one"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer two"}, 200),
        ({"x-api-key": "two"}, 200),
        ({"api-key": "one"}, 200),
    ):
        status, body, sent = predict(server, ["the boat"], headers, "m")
        assert status == expected, (headers, body)
        assert (sent["www-authenticate"] == "Bearer") == (status == 401)
    # A wrong key is told before the body is looked at.
    assert server.post("/models/m/predict", b"{", {})[0] == 401
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert server.get(path)[0] == 200
    assert server.get("/models")[0] == 401


def test_request_ids_and_logs_without_texts(start, models) -> None:
    server = start(f"m={models['embedder']}")
    _, _, headers = predict(server, [TEXT], {"x-request-id": "mine-1"}, "m")
    assert headers["x-request-id"] == "mine-1"
    _, _, headers = predict(server, [TEXT, "\0" + TEXT], {"x-request-id": "no id\x80"}, "m")
    assert len(headers["x-request-id"]) == 32
    server.post("/models/m/predict", json.dumps({"batch": TEXT}).encode()[:-3])
    assert server.stop() == 0
    lines = [line for line in server.log if line["event"] == "request"]
    assert [line["status"] for line in lines] == [200, 422, 400]
    assert lines[0]["id"] == "mine-1"
    assert (lines[0]["model"], lines[0]["inputs"], lines[0]["route"]) == (
        "m",
        1,
        "/models/{model}/predict",
    )
    assert not server.noise
    assert TEXT not in json.dumps(server.log)


def test_metrics(start, models) -> None:
    server = start(f"m={models['embedder']}")
    for texts in (["one", "two", "one"], ["two"], ["\0"]):
        predict(server, texts, model="m")
    text = server.get("/metrics")[1].decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    route = 'route="/models/{model}/predict"'
    assert float(values[f'bertrt_requests_total{{code="200",{route}}}']) == 2
    assert float(values[f'bertrt_requests_total{{code="422",{route}}}']) == 1
    assert float(values['bertrt_inputs_total{model="m"}']) == 5
    assert float(values['bertrt_tokens_total{model="m"}']) == 6
    # "one" a second time in its request, "two" in the next one.
    assert float(values['bertrt_cache_hits_total{model="m"}']) == 2
    assert float(values['bertrt_cache_bytes{model="m"}']) > 2 * 4 * 384
    assert float(values['bertrt_model_loaded{model="m"}']) == 1
    assert float(values['bertrt_batch_tokens_sum{model="m"}']) == 6
    assert float(values['bertrt_batch_sequences_sum{model="m"}']) == 2
    assert float(values["bertrt_requests_under_way"]) == 1


def test_draining(start, models) -> None:
    """What is under way is answered, what comes is told, and the process ends."""
    server = start(
        f"m={models['embedder']}", "--threads", "1", "--cache-mb", "0", "--drain-seconds", "600"
    )
    texts = [f"{i} " + "word " * 200 for i in range(100)]
    found = {}
    long = threading.Thread(target=lambda: found.update(long=predict(server, texts, model="m")))
    long.start()
    while b"bertrt_requests_under_way 2.0" not in server.get("/metrics")[1]:
        time.sleep(0.01)
    server.process.terminate()
    while server.get("/health/ready")[0] == 200:
        time.sleep(0.01)
    assert server.get("/health/live")[0] == 200
    status, body, headers = predict(server, ["late"], model="m")
    assert (status, headers["retry-after"]) == (503, "1"), body
    long.join()
    assert found["long"][0] == 200 and len(found["long"][1]["results"]) == 100
    assert server.process.wait(600) == 0


def test_draining_has_an_end(start, models) -> None:
    server = start(
        f"m={models['embedder']}", "--threads", "1", "--cache-mb", "0", "--drain-seconds", "0.2"
    )
    texts = [f"{i} " + "word " * 240 for i in range(2048)]
    found = []

    def ask() -> None:
        try:
            found.append(predict(server, texts, model="m")[0])
        except OSError as error:
            found.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    while b"bertrt_requests_under_way 7.0" not in server.get("/metrics")[1]:
        time.sleep(0.01)
    server.process.terminate()
    server.process.wait(60)
    for thread in threads:
        thread.join()
    assert any(line["event"] == "not drained" and line["left"] for line in server.log)


def test_a_client_that_goes_away_is_cancelled(start, models) -> None:
    server = start(f"m={models['embedder']}", "--threads", "1", "--cache-mb", "0")
    texts = [f"{i} " + "word " * 240 for i in range(2000)]
    body = json.dumps({"batch": texts}).encode()
    head = b"POST /models/m/predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with server.socket() as connection:
        connection.sendall(head + body)
        while b"bertrt_requests_under_way 2.0" not in server.get("/metrics")[1]:
            time.sleep(0.01)
    while b"bertrt_requests_under_way 1.0" not in server.get("/metrics")[1]:
        time.sleep(0.01)
    text = server.get("/metrics")[1].decode()
    assert 'code="499",route="/models/{model}/predict"} 1.0' in text
    # Nothing waits any more, and all of it was never executed.
    while b'bertrt_queue_inputs{model="m"} 0.0' not in server.get("/metrics")[1]:
        time.sleep(0.01)
    assert predict(server, ["short"], model="m")[0] == 200
    executed = float(
        next(
            line
            for line in server.get("/metrics")[1].decode().splitlines()
            if line.startswith("bertrt_batch_sequences_sum")
        ).split()[1]
    )
    assert executed < 1900


def test_equal_prefixes_share_nothing(server, engines) -> None:
    """The cache's keys are whole texts, pairs as pairs, with the prompt."""
    texts = ["the boat", "the boat ", "the boat\n", "The boat", "the boat the", "the", "the boa"]
    pairs = [["the", "boat"], ["the boat", "the"], ["the", "the boat"]]
    for _ in range(2):
        _, body, _ = predict(server, [*texts, *pairs], model="classifier")
        for item, found in zip([*texts, *pairs], body["results"], strict=True):
            item = item if isinstance(item, str) else tuple(item)
            assert found["scores"] == engines["classifier"].predict([item])[0].scores


def test_a_model_that_cannot_be_loaded_ends_the_start(tmp_path: Path, models) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["classifier"], broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "bertrt",
            "serve",
            f"good={models['tagger']}",
            str(broken),
            "--port",
            "0",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 1
    failed = [json.loads(line) for line in process.stderr.splitlines()]
    assert any(line["event"] == "load failed" and "broken" in line["reason"] for line in failed)


def test_a_port_that_is_taken(models) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = subprocess.run(
            [sys.executable, "-m", "bertrt", "serve", str(models["tagger"]), "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert process.returncode == 1
    assert "address already in use" in process.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to serve"),
        (["a b=/x"], "cannot be a model's name"),
        (["/x/m", "/y/m"], "two models have the name 'm'"),
        (["--repository", "/nowhere/at/all"], "there is no such directory"),
        (["m=/x", "--api-key", ""], "--api-key holds no key"),
        (["m=/x", "--api-key", "sch\u00f6n"], "printable ASCII"),
    ],
)
def test_wrong_use(arguments, told, capsys) -> None:
    assert main(["serve", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("said", ["", " ", ",", " , "])
def test_no_key_where_keys_are_set_is_refused(said: str, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BERTRT_API_KEYS", said)
    assert main(["serve", "m=/x"]) == 1
    assert "BERTRT_API_KEYS holds no key" in capsys.readouterr().err


def test_tls(start, models, tmp_path: Path) -> None:
    import ssl
    import urllib.request

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
        ],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    server = start(
        f"m={models['tagger']}",
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        ready=False,
    )
    context = ssl.create_default_context(cafile=str(certificate))
    url = f"https://127.0.0.1:{server.port}/health/live"
    with urllib.request.urlopen(url, context=context, timeout=60) as answer:
        assert answer.status == 200
    # A client that waits for no answer says no word when its connection is closed.
    with server.socket() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as idle:
        idle.sendall(b"GET /health/live HTTP/1.1\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.1 200"
        assert server.stop() == 0
    events = [line["event"] for line in server.log]
    assert "drained" in events and "not drained" not in events


def test_an_upgrade_that_is_not_taken_keeps_the_body(server) -> None:
    # As Java's HttpClient asks for HTTP/2. Byte by byte, too, and followed by another request.
    body = json.dumps({"batch": ["the boat"]}).encode()
    head = (
        b"POST /models/classifier/predict HTTP/1.1\r\nhost: x\r\nconnection: %supgrade, "
        b"http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n%s\r\n\r\n"
    )
    length = head % (b"", b"content-length: %d" % len(body)) + body
    chunked = head % (b"close, ", b"transfer-encoding: chunked")
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for parts in ([length + length + chunked], [bytes([own]) for own in length + chunked]):
        with server.socket() as connection:
            for part in parts:
                connection.sendall(part)
            found = b"".join(iter(lambda: connection.recv(65536), b""))
        expected = 3 if len(parts) == 1 else 2
        assert found.count(b"HTTP/1.1 200 OK") == found.count(b'"label"') == expected


def test_bodies_in_memory_are_bounded_while_they_come(start, models) -> None:
    server = start(f"m={models['classifier']}", "--max-body", "64K", "--body-seconds", "60")
    head = b"POST /models/m/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"
    connections = [server.socket() for _ in range(24)]
    for connection in connections:
        connection.sendall(head + b" " * 59_999)
    answered = 0
    end = time.monotonic() + 30
    while not answered and time.monotonic() < end:
        for connection in connections:
            connection.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                answered += connection.recv(12) == b"HTTP/1.1 429"
    for connection in connections:
        connection.close()
    assert answered
    end = time.monotonic() + 30
    while (status := predict(server, ["the boat"], model="m")[0]) != 200 and time.monotonic() < end:
        pass
    assert status == 200


def test_a_client_that_takes_no_answer_is_let_go(monkeypatch) -> None:
    from unittest.mock import Mock

    import uvicorn
    from uvicorn.server import ServerState

    from bertrt.serve import http
    from bertrt.serve.app import make_app
    from bertrt.serve.settings import Settings

    monkeypatch.setattr(http, "_SEND_SECONDS", 0.001)

    async def watch(left: list[int]) -> list[str]:
        app = make_app(Settings({}))
        config = uvicorn.Config(app, log_config=None)
        protocol = http.BoundedProtocol(config, ServerState(), {})
        transport, gone = Mock(), asyncio.Event()
        transport.get_write_buffer_size.side_effect = left
        transport.abort.side_effect = gone.set
        transport.get_extra_info.return_value = None
        protocol.connection_made(transport)
        protocol.pause_writing()
        await asyncio.wait_for(gone.wait(), 60)
        protocol.connection_lost(None)
        return [name for name, *_ in transport.method_calls]

    calls = asyncio.run(watch([300, 200, 100, 100, 100]))
    assert calls.count("get_write_buffer_size") == 5  # once for the log
    assert calls.count("abort") == 1
    # One that takes a little each time is let go, too.
    monkeypatch.setattr(http, "_ANSWER_SECONDS", 0.05)
    calls = asyncio.run(watch(list(range(100_000, 0, -1))))
    assert calls.count("abort") == 1
    # Where too much waits, the one that has waited longest.
    monkeypatch.setattr(http, "_UNTAKEN", 299)
    assert asyncio.run(watch([300, 300])).count("abort") == 1


@pytest.mark.parametrize("trickle", [False, True])
def test_an_answer_that_is_not_taken(start, models, tmp_path, trickle: bool) -> None:
    """Nothing of it, or a little again and again."""
    times = "_SEND_SECONDS, http._ANSWER_SECONDS = " + ("1000, 1" if trickle else "1, 1000")
    patch = f"from bertrt.serve import http\nhttp.{times}\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    server = start(f"m={models['embedder']}", environment={"PYTHONPATH": path})
    body = json.dumps({"batch": ["a"] * 2048}).encode()
    head = b"POST /models/m/predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head + body)
        end = time.monotonic() + 60
        while not (told := [line for line in server.log if line["event"] == "answer not taken"]):
            assert time.monotonic() < end
            time.sleep(0.02)
            if trickle:
                connection.recv(100)
        assert told[0]["left"] > 100_000 and told[0]["level"] == "warning"
        connection.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 16):
                pass
    assert predict(server, ["a"], model="m")[0] == 200


def test_the_slowest_of_those_who_take_no_answer_is_let_go(monkeypatch) -> None:
    from unittest.mock import Mock

    import uvicorn
    from uvicorn.server import ServerState

    from bertrt.serve import http
    from bertrt.serve.app import make_app
    from bertrt.serve.settings import Settings

    monkeypatch.setattr(http, "_UNTAKEN", 500)

    async def watch() -> list[list[str]]:
        config = uvicorn.Config(make_app(Settings({})), log_config=None)
        made = []
        for size in (200, 200, 200, 50, 300):
            protocol = http.BoundedProtocol(config, ServerState(), {})
            transport = Mock()
            transport.get_write_buffer_size.return_value = size
            transport.get_extra_info.return_value = None
            transport.abort.side_effect = lambda own=protocol: own.connection_lost(None)
            protocol.connection_made(transport)
            protocol.pause_writing()
            made.append((protocol, transport))
            if size == 50:
                protocol.resume_writing()
        await asyncio.sleep(0)
        aborted = [transport.abort.called for _, transport in made]
        for protocol, _ in made:
            protocol.connection_lost(None)
        assert not config.app.state.bertrt.untaken
        return aborted

    assert asyncio.run(watch()) == [True, False, False, False, False] or asyncio.run(watch()) == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_path_and_a_body_that_name_two_models(server) -> None:
    status, body, _ = server.post("/models/embedder/predict", {"batch": "a", "model": "classifier"})
    assert (status, body["error"]) == (
        422,
        "the path names the model 'embedder', and the body 'classifier'",
    )
