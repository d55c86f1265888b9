"""Haystack, by its own classes."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore

from bertrt import Engine, InvalidInputError, InvalidTypeError
from bertrt.adapters.haystack import BertrtDocumentEmbedder, BertrtRanker, BertrtTextEmbedder

# The last is longer than the model.
TEXTS = ["the boats", "", "caf the sea boat", "sea " * 40]


@pytest.fixture
def documents() -> list[Document]:
    return [Document(id=str(i), content=text) for i, text in enumerate(TEXTS)]


@pytest.fixture
def answers(embedder):
    with Engine.load(embedder) as engine:
        yield lambda texts, prompt: [
            found.vector.tolist() for found in engine.predict(texts, prompt=prompt)
        ]


def test_vectors_are_the_engines_with_the_prompts_of_each_kind(
    embedder, answers, documents
) -> None:
    query, texts = BertrtTextEmbedder(str(embedder)), BertrtDocumentEmbedder(str(embedder))
    expected = {"embedding": answers(["the boats"], "query")[0]}
    assert query.run("the boats") == expected
    assert asyncio.run(query.run_async("the boats")) == expected
    for found in (texts.run(documents), asyncio.run(texts.run_async(documents))):
        assert [one.embedding for one in found["documents"]] == answers(TEXTS, "passage")
        assert [one.content for one in found["documents"]] == TEXTS
    assert all(one.embedding is None for one in documents)
    assert texts.run([]) == {"documents": []}
    nothing = texts.run([Document(content=None)])["documents"]
    assert nothing[0].embedding == answers([""], "passage")[0]


def test_metadata_go_before_the_content(embedder, reranker, answers) -> None:
    document = Document(content="the sea", meta={"title": "boat", "year": None, "n": 3})
    fields = {"meta_fields_to_embed": ["title", "year", "n", "other"], "embedding_separator": " "}
    (found,) = BertrtDocumentEmbedder(str(embedder), **fields).run([document])["documents"]
    assert found.embedding == answers(["boat 3 the sea"], "passage")[0]
    ranker = BertrtRanker(str(reranker), **fields)
    (found,) = ranker.run("caf", [document])["documents"]
    assert found.score == ranker.engine.predict(("caf", "boat 3 the sea")).score


def test_a_ranker_orders_documents_and_leaves_them_as_they_are(reranker, documents) -> None:
    ranker = BertrtRanker(str(reranker), top_k=3)
    ranker.warm_up()
    expected = [(str(r.index), r.score) for r in ranker.engine.rerank("the sea", TEXTS)]
    for found, count in (
        (ranker.run("the sea", documents), 3),
        (ranker.run("the sea", documents, top_k=1), 1),
        (asyncio.run(ranker.run_async("the sea", documents)), 3),
        (asyncio.run(ranker.run_async("the sea", documents, top_k=4)), 4),
    ):
        assert [(one.id, one.score) for one in found["documents"]] == expected[:count]
    assert all(one.score is None for one in documents)
    assert ranker.run("the sea", []) == {"documents": []}
    with pytest.raises(InvalidInputError, match="top_k is 0"):
        ranker.run("the sea", documents, top_k=0)


def test_pipelines_run_and_are_written_down(embedder, reranker, documents, answers) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    index = Pipeline()
    index.add_component("embed", BertrtDocumentEmbedder(str(embedder)))
    index.add_component("write", DocumentWriter(store))
    index.connect("embed", "write")
    index.run({"embed": {"documents": documents}})

    search = Pipeline()
    search.add_component("embed", BertrtTextEmbedder(str(embedder), {"threads": 1}))
    search.add_component("retrieve", InMemoryEmbeddingRetriever(store, top_k=3))
    search.add_component("rank", BertrtRanker(str(reranker), top_k=2))
    search.connect("embed.embedding", "retrieve.query_embedding")
    search.connect("retrieve.documents", "rank.documents")
    found = search.run({"embed": {"text": "boat"}, "rank": {"query": "boat"}})
    ranked = found["rank"]["documents"]
    assert len(ranked) == 2 and ranked[0].score >= ranked[1].score
    best = search.run({"embed": {"text": "boat"}, "rank": {"query": "boat"}},
                      include_outputs_from={"retrieve"})["retrieve"]["documents"]  # fmt: skip
    (query,) = answers(["boat"], "query")
    scores = [
        sum(a * b for a, b in zip(vector, query, strict=True))
        for vector in answers(TEXTS, "passage")
    ]
    order = sorted(range(len(TEXTS)), key=lambda i: -scores[i])[:3]
    assert [one.content for one in best] == [TEXTS[i] for i in order]

    again = Pipeline.loads(search.dumps(), allowed_modules=["bertrt.adapters.haystack"])
    component = again.get_component("embed")
    assert (component.model, component.model_kwargs) == (str(embedder), {"threads": 1})
    assert component.run("boat") == {"embedding": query}
    assert component.engine.threads == 1


def test_components_are_written_down_and_made_again(embedder, reranker) -> None:
    kwargs = {"settings": {"truncate_dim": 5}}
    made = (
        BertrtTextEmbedder(str(embedder), kwargs),
        BertrtDocumentEmbedder(str(embedder), kwargs, ["title"], " "),
        BertrtRanker(str(reranker), {"threads": 1}, 2, ["title"], " "),
    )
    for component in made:
        data = component.to_dict()
        assert data["type"] == f"bertrt.adapters.haystack.{type(component).__name__}"
        again = type(component).from_dict(data)
        assert again.to_dict() == data
    assert len(type(made[0]).from_dict(made[0].to_dict()).run("the")["embedding"]) == 5


def test_a_closed_component_loads_again(embedder) -> None:
    component = BertrtTextEmbedder(str(embedder))
    component.close()
    before = component.run("the sea")
    engine = component.engine
    component.close()
    assert component.engine is None
    with pytest.raises(Exception, match="closed"):
        engine.predict("a")
    assert component.run("the sea") == before


def test_what_is_refused(embedder, reranker) -> None:
    with pytest.raises(InvalidInputError, match=r"\(embedding\); the task .* is regression"):
        BertrtTextEmbedder(str(reranker)).warm_up()
    ranker = BertrtRanker(str(embedder))
    with pytest.raises(InvalidInputError, match=r"\(regression\); the task .* is embedding"):
        ranker.warm_up()
    assert ranker.engine is None
    embed = BertrtDocumentEmbedder(str(embedder))
    for wrong in ("a text", ["a text"], [Document(content="a"), "b"]):
        with pytest.raises(InvalidTypeError, match=r"list of haystack\.Document"):
            embed.run(wrong)
