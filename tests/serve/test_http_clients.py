"""Other people's clients, against the server."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

DOCUMENTS = ["the sea", "boats", "the boats the sea", "boats", "cafe"]


def vectors(engine, texts: list[str]) -> np.ndarray:
    return np.stack([engine.predict(text).vector for text in texts])


# --- openai ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai")


@pytest.fixture
def client(openai, server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai(client, engines, more: dict) -> None:
    texts = ["a boat", "Zürich 蘇黎世"]
    found = client.embeddings.create(model="embedder", input=texts, user="somebody", **more)
    rows = [one.embedding for one in found.data]
    if more.get("encoding_format") == "base64":
        import base64

        rows = [np.frombuffer(base64.b64decode(row), np.float32) for row in rows]
    np.testing.assert_array_equal(np.float32(rows), vectors(engines["embedder"], texts))
    assert found.usage.total_tokens > 0 and found.model == "embedder"
    raw = client.embeddings.with_raw_response.create(model="embedder", input="a", dimensions=8)
    assert raw.headers["x-request-id"] and len(raw.parse().data[0].embedding) == 8
    ids = engines["embedder"].tokenize(texts[0]).ids.tolist()
    again = client.embeddings.create(model="embedder", input=ids)
    np.testing.assert_array_equal(
        np.float32(again.data[0].embedding), vectors(engines["embedder"], texts[:1])[0]
    )


def test_openai_async(openai, server, engines) -> None:
    async def ask() -> list:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            found = await asyncio.gather(
                *(client.embeddings.create(model="embedder", input=f"text {i}") for i in range(8))
            )
            names = [model.id async for model in client.models.list()]
        assert "embedder" in names
        return [one.data[0].embedding for one in found]

    expected = vectors(engines["embedder"], [f"text {i}" for i in range(8)])
    np.testing.assert_array_equal(np.float32(asyncio.run(ask())), expected)


def test_openai_errors(openai, client, start, models) -> None:
    assert client.models.retrieve("ranker").id == "ranker"
    for name in ("text-embedding-3-small", "nobody"):
        with pytest.raises(openai.NotFoundError, match="the models are 'embedder'") as caught:
            client.embeddings.create(model=name, input="a")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert caught.value.status_code == 404
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    for body in ({"input": ""}, {"input": "a", "dimensions": 4000}, {"input": ["a"] * 2049}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="embedder", **body)
        assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="classification"):
        client.embeddings.create(model="classifier", input="a")
    locked = start(f"embedder={models['embedder']}", "--api-key", "sesame", "--queue", "1")
    base = f"{locked.url}/v1"
    with (
        openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        other.embeddings.create(model="embedder", input="a")
    assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=base, api_key="sesame", max_retries=0) as other:
        other.embeddings.create(model="embedder", input="a")
        with pytest.raises(openai.RateLimitError) as caught:
            other.embeddings.create(model="embedder", input=["b", "c"])
        assert caught.value.response.headers["retry-after"] == "1"


# --- huggingface_hub -----------------------------------------------------------------------------


@pytest.fixture
def inference(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    # Tests of other libraries keep it from the network, once for all that is imported.
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "is_offline_mode", lambda: False)
    return hub.InferenceClient


def test_huggingface_embeddings(inference, server, engines) -> None:
    engine = engines["embedder"]
    for route in ("", "/embed"):
        client = inference(server.url + route)
        found = client.feature_extraction("a boat")
        assert found.shape == (1, 384)
        np.testing.assert_array_equal(found, vectors(engine, ["a boat"]))
    more = {"truncate": True, "truncation_direction": "right", "prompt_name": "query"}
    found = client.feature_extraction("a boat", normalize=True, **more)
    np.testing.assert_array_equal(found, vectors(engine, ["a boat"]))
    plain = engine.with_settings({"normalize": False}).predict("a boat").vector
    np.testing.assert_array_equal(client.feature_extraction("a boat", normalize=False)[0], plain)
    assert client.feature_extraction("a boat", dimensions=8).shape == (1, 8)
    similar = inference(f"{server.url}/similarity").sentence_similarity("a boat", ["a ship", "tea"])
    one, *others = vectors(engine, ["a boat", "a ship", "tea"]).astype(np.float64)
    np.testing.assert_allclose(similar, [one @ other for other in others], rtol=1e-6)


def test_huggingface_predictions(inference, server, engines) -> None:
    def client(name: str):
        return inference(f"{server.url}/predict", headers={"x-model": name})

    # The client reads one label of TEI's answer, the first.
    best = client("classifier").text_classification("the boat")
    answer = engines["classifier"].predict("the boat")
    assert (best.label, best.score) == (answer.label, answer.score)
    text = "the boat the sea boats"
    found = client("tagger").token_classification(text)
    entities = engines["tagger"].predict(text).entities
    assert [(one.entity_group, one.word, one.start, one.end) for one in found] == [
        (one.label, one.text, one.start, one.end) for one in entities
    ]
    asked = {"question": "the boat", "context": "the sea the boats"}
    found = client("reader").question_answering(**asked)
    answer = engines["reader"].predict(tuple(asked.values()))
    assert (found.answer, found.score) == (answer.text, answer.score)
    assert (found.start, found.end) == (answer.start, answer.end)


def test_huggingface_errors(inference, server) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")
    client = inference(f"{server.url}/embed")
    with pytest.raises(errors.HfHubHTTPError) as caught:
        client.feature_extraction("x " * 300, truncate=False)
    assert caught.value.response.status_code == 422
    assert caught.value.response.json()["error_type"] == "Validation"


# --- cohere --------------------------------------------------------------------------------------


def test_cohere(server, engines) -> None:
    cohere = pytest.importorskip("cohere")
    ranked = [(own.index, own.score) for own in engines["ranker"].rerank("the boat", DOCUMENTS)]
    asked = {"model": "ranker", "query": "the boat", "documents": DOCUMENTS}
    for made in (cohere.ClientV2, cohere.Client):
        client = made(api_key="none", base_url=server.url)
        found = client.rerank(**asked)
        assert [(one.index, one.relevance_score) for one in found.results] == ranked
        best = client.rerank(**asked, top_n=2)
        assert [(one.index, one.relevance_score) for one in best.results] == ranked[:2]
        with pytest.raises(cohere.NotFoundError) as caught:
            client.rerank(**{**asked, "model": "rerank-v3.5"})
        assert "'ranker'" in caught.value.body["message"]
        with pytest.raises(cohere.UnprocessableEntityError):
            client.rerank(**asked, top_n=0)
    found = client.rerank(**asked, return_documents=True)
    assert [one.document.text for one in found.results] == [DOCUMENTS[i] for i, _ in ranked]
