"""OpenAI's routes."""

from __future__ import annotations

import base64

import numpy as np
import pytest


def vectors(engine, texts: list[str]) -> np.ndarray:
    return np.stack([engine.predict(text).vector for text in texts])


def read(body: dict) -> np.ndarray:
    rows = [row["embedding"] for row in body["data"]]
    if isinstance(rows[0], str):
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings_have_the_bits_of_predict(server, engines, more: dict) -> None:
    texts = ["a boat on the sea", "Zürich, 蘇黎世 \U0001f6a2", "x " * 400, "a boat on the sea"]
    status, body, _ = server.post("/v1/embeddings", {"input": texts, "model": "embedder", **more})
    assert status == 200, body
    np.testing.assert_array_equal(read(body), vectors(engines["embedder"], texts))
    tokens = sum(len(one.ids) for one in engines["embedder"].tokenize(texts))
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (body["object"], body["model"]) == ("list", "embedder")
    assert [(row["object"], row["index"]) for row in body["data"]] == [
        ("embedding", i) for i in range(4)
    ]


def test_a_single_text_is_a_list_of_one(server, engines) -> None:
    _, body, _ = server.post("/v1/embeddings", {"input": "one", "user": "somebody"})
    np.testing.assert_array_equal(read(body), vectors(engines["embedder"], ["one"]))


def test_ids_run_as_they_are(server, engines) -> None:
    engine = engines["embedder"]
    texts = ["the boat", "a longer text about the sea"]
    ids = [own.ids.tolist() for own in engine.tokenize(texts)]
    _, body, _ = server.post("/v1/embeddings", {"input": ids})
    np.testing.assert_array_equal(read(body), vectors(engine, texts))
    _, body, _ = server.post("/v1/embeddings", {"input": ids[0]})
    np.testing.assert_array_equal(read(body), vectors(engine, texts[:1]))
    assert body["usage"]["prompt_tokens"] == len(ids[0])


def test_dimensions_cut_and_normalise(server, engines) -> None:
    (vector,) = vectors(engines["embedder"], ["the boat"])
    for count in (1, 7, 383, 384):
        _, body, _ = server.post("/v1/embeddings", {"input": "the boat", "dimensions": count})
        found = read(body)[0]
        assert found.shape == (count,)
        cut = vector[:count].astype(np.float64)
        np.testing.assert_allclose(found, cut / np.linalg.norm(cut), rtol=3e-7)
    np.testing.assert_array_equal(found, vector)


@pytest.mark.parametrize(
    ("change", "status", "what"),
    [
        ({"input": ""}, 400, "input[0] is an empty string"),
        ({"input": ["a", ""]}, 400, "input[1] is an empty string"),
        ({"input": []}, 400, "no input"),
        ({"input": [[]]}, 400, "empty list of ids"),
        ({"input": None}, 400, "null"),
        ({"input": ["a", 1]}, 400, "mixes"),
        ({"input": [1, [1]]}, 400, "mixes"),
        ({"input": [30522]}, 400, "30522"),
        ({"input": [-1]}, 400, ">= 0"),
        ({"input": [1 << 70]}, 400, "input"),
        ({"input": [1.5]}, 400, "float"),
        ({"input": [1] * 257}, 400, "257 ids"),
        ({"input": "a\0b"}, 400, "NUL"),
        ({"input": ["a"] * 2049}, 400, "2049 inputs"),
        ({"input": [[1] * 200] * 1501}, 400, "300200 tokens"),
        ({"input": ["hi " * 400] * 1200}, 400, "307200 tokens"),
        ({"dimensions": 0}, 400, "dimensions is 0"),
        ({"dimensions": 385}, 400, "have 384"),
        ({"encoding_format": "int8"}, 400, "int8"),
        ({"input_type": "query"}, 400, "input_type"),
        ({"model": "text-embedding-3-small"}, 404, "'embedder', 'classifier'"),
        ({"model": "classifier"}, 400, "classification"),
    ],
)
def test_what_cannot_be_answered_is_refused(server, change: dict, status: int, what: str) -> None:
    found, body, _ = server.post("/v1/embeddings", {"input": "a", "model": "embedder", **change})
    assert found == status, body
    error = body["error"]
    assert what in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error.keys() == {"message", "type", "param", "code"}
    if status == 404:
        assert (error["code"], error["param"]) == ("model_not_found", "model")


def test_no_json_and_no_body(server) -> None:
    for raw in (b"", b"{", b"[1]", b"\xff", b"null", b'{"input": "\\ud800"}'):
        status, body, _ = server.post("/v1/embeddings", raw)
        assert status == 400 and body["error"]["message"], raw


def test_models(server) -> None:
    status, body, _ = server.get("/v1/models")
    assert status == 200 and body["object"] == "list"
    names = [model["id"] for model in body["data"]]
    assert names == ["embedder", "classifier", "ranker", "tagger", "reader"]
    assert server.get("/v1/models/ranker")[1] == body["data"][2]
    assert body["data"][0]["object"] == "model" and body["data"][0]["created"] > 1.7e9
    status, body, _ = server.get("/v1/models/gpt-4")
    assert status == 404 and body["error"]["code"] == "model_not_found"


def test_a_key(start, models) -> None:
    server = start(f"embedder={models['embedder']}", "--api-key", "sesame", "--no-truncate")
    status, body, _ = server.post("/v1/embeddings", {"input": "a"})
    assert status == 401 and body["error"]["code"] == "invalid_api_key"
    key = {"authorization": "Bearer sesame"}
    assert server.post("/v1/embeddings", {"input": "a"}, key)[0] == 200
    # What is too long is refused, as the server was told.
    status, body, _ = server.post("/v1/embeddings", {"input": ["a", "x " * 300]}, key)
    assert status == 400 and "input[1] has more tokens than the 256" in body["error"]["message"]
    assert server.post("/embed", {"inputs": "a"})[0] == 401
    assert server.post("/embed", {"inputs": "x " * 300}, key)[0] == 422
    assert server.post("/embed", {"inputs": "x " * 300, "truncate": True}, key)[0] == 200
