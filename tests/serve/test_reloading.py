"""Models that are loaded, replaced and unloaded while others ask."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def repository(models, tmp_path) -> Path:
    for name in ("classifier", "ranker"):
        shutil.copytree(models[name], tmp_path / name)
    return tmp_path


def infer(server, model: str, text: str) -> tuple[int, dict]:
    own = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    return server.post(f"/v2/models/{model}/infer", {"inputs": [own]})[:2]


def scores(body: dict) -> list[float]:
    return next(own["data"] for own in body["outputs"] if own["name"] == "scores")


def state(server, model: str) -> dict:
    found = server.post("/v2/repository/index", b"")[1]
    return next(own for own in found if own["name"] == model)


def test_a_model_that_is_replaced_loses_no_request(start, repository, engines) -> None:
    server = start("--repository", str(repository), "--cache-mb", "0")
    assert state(server, "classifier")["state"] == "UNAVAILABLE"
    assert infer(server, "classifier", "sea")[0] == 503
    assert server.post("/v2/repository/models/classifier/load", {})[0] == 200
    assert state(server, "classifier")["state"] == "READY"
    over = threading.Event()
    answers: list[tuple[str, int, dict]] = []

    def ask(number: int) -> None:
        count = 0
        while not over.is_set():
            text = f"the boat {number} " + "sea " * (count % 7)
            answers.append((text, *infer(server, "classifier", text)))
            count += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        assert server.post("/v2/repository/models/classifier/load", {})[0] == 200
    over.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 20
    for text, status, body in answers:
        assert status == 200, body
        assert scores(body) == list(engines["classifier"].predict(text).scores.values())
    assert server.stop() == 0
    assert not [own for own in server.log if own["level"] == "error"]


def test_what_cannot_be_loaded_leaves_what_was_there(start, repository) -> None:
    server = start(f"it={repository / 'classifier'}", "--repository", str(repository))
    before = scores(infer(server, "it", "the sea")[1])
    weights = next((repository / "classifier").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    for name in ("it", "classifier"):
        status, body, _ = server.post(f"/v2/repository/models/{name}/load", {})
        assert (status, name in body["error"]) == (400, True), body
    assert scores(infer(server, "it", "the sea")[1]) == before
    assert state(server, "it")["state"] == "READY"
    assert server.get("/v2/health/ready")[0] == 200
    told = state(server, "classifier")
    assert told["state"] == "UNAVAILABLE" and weights.name in told["reason"]
    status, body = infer(server, "classifier", "a")
    assert status == 503 and weights.name in body["error"]


def test_what_is_unloaded_answers_what_it_has(start, repository) -> None:
    server = start(f"it={repository / 'classifier'}", "--cache-mb", "0")
    answers: list[tuple[int, dict]] = []

    def ask(number: int) -> None:
        for i in range(50):
            answers.append(infer(server, "it", f"{number} {i}"))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    while len(answers) < 40:
        time.sleep(0.001)
    parameters = {"parameters": {"unload_dependents": False}}
    assert server.post("/v2/repository/models/it/unload", parameters)[0] == 200
    for thread in threads:
        thread.join()
    # Each was answered, or told.
    assert {status for status, _ in answers} <= {200, 503}
    assert all(len(scores(body)) == 2 for status, body in answers if status == 200)
    assert answers[-1][0] == 503 and "unloaded" in answers[-1][1]["error"]
    assert server.get("/v2/models/it/ready")[0] == 503
    assert server.post("/v2/repository/models/it/unload", b"")[0] == 200
    assert server.post("/v2/repository/models/it/load", b"")[0] == 200
    assert infer(server, "it", "a")[0] == 200
    assert not [own for own in server.log if own["level"] == "error"]


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_what_is_not_known(start, repository, verb: str, stub) -> None:
    server = start("--repository", str(repository), "--grpc-port", "0")
    for name in ("nobody", "..", "%2e%2e", "a%2fb", "ranker%2f..%2franker", "x" * 300):
        status, body, _ = server.post(f"/v2/repository/models/{name}/{verb}", {})
        assert status == 404 and "error" in body
    config = {"parameters": {"config": "{}"}}
    status, body, _ = server.post(f"/v2/repository/models/ranker/{verb}", config)
    assert (status, "config" in body["error"]) == (400, True)
    assert server.post(f"/v2/repository/models/ranker/{verb}", b"{")[0] == 400
    assert state(server, "ranker")["state"] == "UNAVAILABLE"
    grpc = pytest.importorskip("grpc")
    call = stub(server)
    with pytest.raises(grpc.RpcError) as caught:
        call(f"RepositoryModel{verb.title()}", model_name="nobody")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    message = call.messages[f"RepositoryModel{verb.title()}Request"](model_name="ranker")
    message.parameters["file:1/model.onnx"].bytes_param = b"x"
    with pytest.raises(grpc.RpcError) as caught:
        call.method(f"RepositoryModel{verb.title()}")(message)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_does_not_wait_for_a_model(start, repository, stub) -> None:
    """What it asked for is loaded all the same, and nothing is left over."""
    server = start("--repository", str(repository), "--grpc-port", "0")
    call = stub(server)
    message = call.messages["RepositoryModelLoadRequest"](model_name="ranker")
    future = call.method("RepositoryModelLoad").future(message)
    while "loading" not in [own["event"] for own in server.log]:
        time.sleep(0.001)
    future.cancel()
    while not call("ModelReady", name="ranker").ready:
        pass
    assert server.stop() == 0
    call.close()


def test_over_grpc(start, repository, stub, engines) -> None:
    server = start("--repository", str(repository), "--grpc-port", "0")
    call = stub(server)
    assert not call("RepositoryIndex", ready=True).models
    call("RepositoryModelLoad", model_name="ranker")
    assert [own.name for own in call("RepositoryIndex", ready=True).models] == ["ranker"]
    message = call.messages["ModelInferRequest"](model_name="ranker")
    own = message.inputs.add(name="text", datatype="BYTES", shape=[1, 1])
    own.contents.bytes_contents.append(b"the boat")
    answer = call.method("ModelInfer")(message)
    score = np.frombuffer(answer.raw_output_contents[0])[0]
    assert score == engines["ranker"].predict("the boat").score
    call("RepositoryModelUnload", model_name="ranker")
    assert not call("ModelReady", name="ranker").ready


def test_a_repository_with_odd_names(start, repository) -> None:
    for name in (b".git", b"bad\xff", b"a b"):
        (repository / os.fsdecode(name)).mkdir()
    server = start("--repository", str(repository))
    known = server.post("/v2/repository/index", b"")[1]
    assert [own["name"] for own in known] == sorted(
        path.name for path in repository.iterdir() if path.name.isalpha()
    )
    assert server.get("/models")[0] == 200
    for name in (".git", "..", "%2e%2e", "a%20b", "%00", "bad%ff"):
        assert server.post(f"/v2/repository/models/{name}/load", {})[0] == 404
    # What is loaded answers on where the directory is gone.
    assert server.post("/v2/repository/models/classifier/load", {})[0] == 200
    shutil.rmtree(repository)
    assert server.post("/models/classifier/predict", {"batch": "the boat"})[0] == 200
    assert server.post("/models/other/predict", {"batch": "the boat"})[0] == 404


def test_many_loads_at_once_are_few(start, repository) -> None:
    server = start("--repository", str(repository))
    request = (
        b"POST /v2/repository/models/classifier/load HTTP/1.1\r\nhost: x\r\n"
        b"content-length: 0\r\nconnection: close\r\n\r\n"
    )
    connections = [server.socket() for _ in range(50)]
    for connection in connections:
        connection.sendall(request)
    for connection in connections:
        with connection, connection.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 200")
    assert sum(line["event"] == "loading" for line in server.log) < 25


def test_a_model_that_is_gone_leaves_nothing_to_the_garbage_collector(engines) -> None:
    from bertrt.serve.backlog import Backlog
    from bertrt.serve.metrics import Metrics
    from bertrt.serve.served import Served

    async def answer() -> weakref.ref[Served]:
        served = Served("m", engines["classifier"], 1 << 20, Metrics(list), Backlog(60))
        for own in (served, served.with_settings({"activation": "identity"})):
            assert (await own.answer(["the boat"])).whole()
        return weakref.ref(served)

    gc.collect()
    gc.disable()
    try:
        gone = asyncio.run(answer())
        end = time.monotonic() + 60  # the engine's threads let go of it a little later
        while gone() is not None and time.monotonic() < end:
            time.sleep(0.01)
        assert gone() is None
    finally:
        gc.enable()
