"""Triton's own client, over HTTP and gRPC, as it comes."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient", reason="it wants a protobuf below 7")
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

DOC = Path(__file__).parents[2] / "docs/serving-inference-protocol.md"


@pytest.fixture(params=["http", "grpc"])
def triton(request):
    return getattr(tritonclient, request.param)


def url(server, module) -> str:
    return f"127.0.0.1:{server.grpc if 'grpc' in module.__name__ else server.port}"


@pytest.fixture
def client(server, triton):
    with triton.InferenceServerClient(url(server, triton)) as made:
        yield made


def texts(module, *values: str, name: str = "text", **more):
    own = module.InferInput(name, [len(values)], "BYTES")
    own.set_data_from_numpy(np.array([value.encode() for value in values], object), **more)
    return own


def test_the_messages_are_the_protocol_s(stub, server) -> None:
    from tritonclient.grpc import model_config_pb2, service_pb2

    def check(own, other) -> None:
        for field in own.fields:
            found = other.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                (found.number, found.type, found.is_repeated)
            ), field.full_name
            if field.message_type is not None:
                assert field.message_type.full_name == found.message_type.full_name
                check(field.message_type, found.message_type)

    for name, message in stub(server).messages.items():
        if not name.startswith("Health"):
            module = service_pb2 if hasattr(service_pb2, name) else model_config_pb2
            check(message.DESCRIPTOR, getattr(module, name).DESCRIPTOR)


def test_what_there_is(client, triton) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("reader") and client.is_model_ready("reader", "1")
    more = {"as_json": True} if "grpc" in triton.__name__ else {}
    assert client.get_server_metadata(**more)["name"] == "bertrt"
    told = client.get_model_metadata("reader", **more)
    assert told["versions"] == ["1"]
    config = client.get_model_config("reader", **more)
    assert config.get("config", config)["backend"] == "bertrt"
    index = client.get_model_repository_index(**more)
    assert len(index["models"] if more else index) == 5
    assert client.get_inference_statistics("reader", **more)["model_stats"][0]["name"] == "reader"
    assert len(client.get_inference_statistics(**more)["model_stats"]) == 5


def test_texts(client, triton, engines) -> None:
    answer = client.infer("embedder", [texts(triton, "a text", "än other")], request_id="7")
    expected = [one.vector for one in engines["embedder"].predict(["a text", "än other"])]
    np.testing.assert_array_equal(answer.as_numpy("embedding"), expected)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "7"
    pair = [texts(triton, "the boat"), texts(triton, "the sea", name="text_pair")]
    asked = [triton.InferRequestedOutput(name) for name in ("label", "scores", "result")]
    answer = client.infer("classifier", pair, outputs=asked)
    one = engines["classifier"].predict(("the boat", "the sea"))
    assert answer.as_numpy("label").tolist() == [one.label.encode()]
    assert answer.as_numpy("scores").tolist() == [list(one.scores.values())]
    assert json.loads(answer.as_numpy("result")[0])["label"] == one.label
    answer = client.infer("tagger", [texts(triton, "the boat the sea")])
    assert json.loads(answer.as_numpy("result")[0])["tags"] == list(
        engines["tagger"].predict("the boat the sea").tags
    )


def test_json_instead_of_bytes(server, engines) -> None:
    module = tritonclient.http
    with module.InferenceServerClient(url(server, module)) as client:
        for binary in (True, False):
            answer = client.infer(
                "embedder",
                [texts(module, "in JSON", binary_data=binary)],
                outputs=[module.InferRequestedOutput("embedding", binary_data=not binary)],
            )
            np.testing.assert_array_equal(
                answer.as_numpy("embedding")[0], engines["embedder"].predict("in JSON").vector
            )


def test_ids(client, triton, engines) -> None:
    ids = engines["embedder"].tokenize("the sea").ids.astype(np.int64)[None]
    given = []
    for name, values in (("input_ids", ids), ("attention_mask", np.ones_like(ids))):
        given.append(triton.InferInput(name, list(ids.shape), "INT64"))
        given[-1].set_data_from_numpy(values)
    asked = [triton.InferRequestedOutput(name) for name in ("sequence_output", "embedding")]
    answer = client.infer("embedder", given, outputs=asked)
    np.testing.assert_array_equal(
        answer.as_numpy("sequence_output"), engines["embedder"].run(ids)["sequence_output"]
    )
    np.testing.assert_array_equal(
        answer.as_numpy("embedding")[0], engines["embedder"].predict("the sea").vector
    )


def test_errors(client, triton) -> None:
    grpc = "grpc" in triton.__name__
    for model, given, more, status in (
        ("nobody", texts(triton, "a"), {}, ("404", "NOT_FOUND")),
        ("embedder", texts(triton, "a", name="b"), {}, ("400", "INVALID_ARGUMENT")),
        ("embedder", texts(triton, "late"), {"timeout": 1}, ("504", "DEADLINE_EXCEEDED")),
        ("embedder", texts(triton, "a"), {"sequence_id": 3}, ("400", "INVALID_ARGUMENT")),
        ("embedder", texts(triton, "a"), {"model_version": "3"}, ("404", "NOT_FOUND")),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [given], **more)
        assert caught.value.status() == (f"StatusCode.{status[1]}" if grpc else status[0])
        assert caught.value.message()
    answer = client.infer(
        "embedder",
        [texts(triton, "soon")],
        priority=1,
        timeout=60_000_000,
        parameters={"prompt": "query: "},
    )
    assert answer.as_numpy("embedding").shape == (1, 384)


def test_many_by_its_threads(client, triton, engines) -> None:
    def ask(text: str):
        given = [texts(triton, text)]
        if "http" in triton.__name__:
            return client.async_infer("embedder", given).get_result
        import queue

        place: queue.Queue = queue.Queue()
        client.async_infer("embedder", given, lambda result, error: place.put(error or result))
        return lambda: place.get(timeout=60)

    asked = {f"text {i}": ask(f"text {i}") for i in range(20)}
    for text, result in asked.items():
        np.testing.assert_array_equal(
            result().as_numpy("embedding")[0], engines["embedder"].predict(text).vector
        )


def test_its_asyncio(server, triton, engines) -> None:
    async def ask() -> list:
        async with triton.aio.InferenceServerClient(url(server, triton)) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(
                *(client.infer("embedder", [texts(triton, f"async {i}")]) for i in range(20))
            )

    for i, answer in enumerate(asyncio.run(ask())):
        np.testing.assert_array_equal(
            answer.as_numpy("embedding")[0], engines["embedder"].predict(f"async {i}").vector
        )


def test_loading(start, models, tmp_path, triton) -> None:
    shutil.copytree(models["ranker"], tmp_path / "ranker")
    server = start("--repository", str(tmp_path), "--grpc-port", "0")
    with triton.InferenceServerClient(url(server, triton)) as client:
        assert not client.is_model_ready("ranker")
        client.load_model("ranker")
        assert client.is_model_ready("ranker")
        assert client.infer("ranker", [texts(triton, "the sea")]).as_numpy("score").shape == (1,)
        for more in ({"config": "{}"}, {"config": "{}", "files": {"file:1/a.onnx": b"x"}}):
            with pytest.raises(InferenceServerException, match=r"config|file"):
                client.load_model("ranker", **more)
        client.unload_model("ranker")
        assert not client.is_model_ready("ranker")


def test_the_page_s_example(server) -> None:
    program = re.search(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert program
    found: dict = {}
    exec(program[1].replace("localhost:8001", f"127.0.0.1:{server.grpc}"), found)
    assert found["vectors"].shape == (2, 384)
