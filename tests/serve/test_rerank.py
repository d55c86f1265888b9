"""The dialects of reranking."""

from __future__ import annotations

import pytest

QUERY = "the boat"
DOCUMENTS = ["the sea", "boats", "the boats the sea", "boats", "cafe"]


def expected(engine) -> list[tuple[int, float]]:
    return [(own.index, own.score) for own in engine.rerank(QUERY, DOCUMENTS)]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents(server, engines, path: str) -> None:
    body = {"model": "ranker", "query": QUERY, "documents": DOCUMENTS}
    status, found, _ = server.post(path, body)
    assert status == 200, found
    ranked = expected(engines["ranker"])
    assert [(one["index"], one["relevance_score"]) for one in found["results"]] == ranked
    # Equal ones are in their order.
    places = [index for index, _ in ranked]
    assert places.index(1) < places.index(3)
    assert ("document" in found["results"][0]) == (path != "/v2/rerank")
    assert found["model"] == "ranker" and found["id"]
    assert found["usage"]["total_tokens"] == found["meta"]["tokens"]["input_tokens"] > 0
    best = server.post(path, {**body, "top_n": 2})[1]
    assert best["results"] == found["results"][:2]
    assert len(server.post(path, {**body, "top_n": 99})[1]["results"]) == len(DOCUMENTS)


def test_objects_and_what_is_returned(server, engines) -> None:
    documents = [{"text": text, "id": i} for i, text in enumerate(DOCUMENTS[:2])] + ["cafe"]
    body = {"query": QUERY, "documents": documents, "return_documents": True}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        for one in server.post(path, body)[1]["results"]:
            document = documents[one["index"]]
            wanted = {"text": document} if isinstance(document, str) else document
            assert one["document"] == wanted
        for one in server.post(path, {**body, "return_documents": False})[1]["results"]:
            assert one.keys() == {"index", "relevance_score"}


def test_what_changes_nothing_is_taken(server) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    expected = server.post("/v1/rerank", body)[1]["results"]
    more = {
        "max_tokens_per_doc": 4096,
        "max_chunks_per_doc": 10,
        "truncate_prompt_tokens": -1,
        "rank_fields": ["text"],
        "priority": 999,
        "top_n": None,
    }
    assert server.post("/v1/rerank", {**body, **more})[1]["results"] == expected


@pytest.mark.parametrize(
    ("change", "status", "what"),
    [
        ({"documents": []}, 400, "empty"),
        ({"documents": ["a", {"title": "b"}]}, 422, "documents[1]"),
        ({"documents": [{"text": 3}]}, 422, "documents[0]"),
        ({"top_n": 0}, 422, "top_n is 0"),
        ({"top_n": 1.5}, 422, "int"),
        ({"query": None}, 422, "null"),
        ({"max_tokens_per_doc": 5}, 422, "max_tokens_per_doc is 5"),
        ({"max_chunks_per_doc": 0}, 422, "max_chunks_per_doc"),
        ({"truncate_prompt_tokens": 7}, 422, "truncate_prompt_tokens is 7"),
        ({"rank_fields": ["title"]}, 422, "rank_fields"),
        ({"model": "embedder"}, 424, "embedding"),
        ({"model": "classifier"}, 424, "classification"),
        ({"model": "rerank-v3.5"}, 404, "'ranker'"),
        ({"surprise": 1}, 422, "surprise"),
    ],
)
def test_refusals(server, change: dict, status: int, what: str) -> None:
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found, body, _ = server.post(path, {"query": QUERY, "documents": DOCUMENTS, **change})
        assert found == status, body
        # Each kind of client finds it where it looks.
        assert what in body["message"] and body["error"] == body["message"]


def test_the_field_tells_the_dialect(server, engines) -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "return_text": True}
    status, found, headers = server.post("/rerank", body)
    assert status == 200, found
    ranked = expected(engines["ranker"])
    assert [(one["index"], one["score"]) for one in found] == ranked
    assert [one["text"] for one in found] == [DOCUMENTS[index] for index, _ in ranked]
    characters = len(QUERY) * len(DOCUMENTS) + sum(map(len, DOCUMENTS))
    assert headers["x-compute-characters"] == str(characters)
    raw = server.post("/rerank", {**body, "raw_scores": True, "return_text": False})[1]
    logits = engines["ranker"].with_settings({"activation": "identity"})
    assert [(one["index"], one["score"]) for one in raw] == expected(logits)
    assert "text" not in raw[0]
    assert raw[0]["score"] != found[0]["score"]
    status, found, _ = server.post("/rerank", {"query": "a", "texts": ["b"], "documents": ["b"]})
    assert status == 422 and "'texts' and 'documents'" in found["error"]
    assert server.post("/rerank", {"query": "a", "texts": []})[0] == 400
    status, found, _ = server.post("/rerank", {"query": "a", "texts": ["b"]}, {"x-model": "tagger"})
    assert (status, found["error_type"]) == (424, "Backend")
    long = {"query": "a", "texts": ["b", "boats " * 600], "truncate": False}
    status, found, _ = server.post("/rerank", long)
    assert status == 422 and "input[1]" in found["error"]
