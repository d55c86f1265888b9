"""LangChain, by its own classes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore

from bertrt import Engine, InvalidInputError, InvalidTypeError
from bertrt.adapters.langchain import BertrtEmbeddings, BertrtRerank

# The last is longer than the model.
TEXTS = ["the boats", "", "caf the sea boat", "sea " * 40]


def _vectors(engine: Engine, texts: list[str], prompt: str) -> list[list[float]]:
    return [found.vector.tolist() for found in engine.predict(texts, prompt=prompt)]


def test_vectors_are_the_engines_with_the_prompts_of_each_kind(embedder) -> None:
    with Engine.load(embedder) as engine:
        embeddings = BertrtEmbeddings(engine)
        documents = _vectors(engine, TEXTS, "passage")
        assert embeddings.embed_documents(TEXTS) == documents
        assert asyncio.run(embeddings.aembed_documents(TEXTS)) == documents
        (query,) = _vectors(engine, TEXTS[:1], "query")
        assert embeddings.embed_query(TEXTS[0]) == query != documents[0]
        assert asyncio.run(embeddings.aembed_query(TEXTS[0])) == query
        assert embeddings.embed_documents([]) == []
        assert asyncio.run(embeddings.aembed_documents([])) == []


def test_a_model_without_prompts(hugging) -> None:
    with Engine.load(hugging.write(pooling=hugging.pooling)) as engine:
        embeddings = BertrtEmbeddings(engine)
        (expected,) = _vectors(engine, ["the sea"], "")
        assert embeddings.embed_query("the sea") == expected
        assert embeddings.embed_documents(["the sea"]) == [expected]


def test_a_vector_store_finds(embedder) -> None:
    with Engine.load(embedder) as engine:
        store = InMemoryVectorStore(BertrtEmbeddings(engine))
        store.add_texts(TEXTS)
        (query,) = _vectors(engine, ["boat"], "query")
        scores = np.array(_vectors(engine, TEXTS, "passage")) @ np.array(query)
        found = store.similarity_search_with_score("boat", k=len(TEXTS))
        assert [text.page_content for text, _ in found] == [TEXTS[i] for i in np.argsort(-scores)]
        np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1], atol=1e-5)


def test_a_reranker_orders_documents_and_leaves_them_as_they_are(reranker) -> None:
    documents = [Document(text, metadata={"place": i}) for i, text in enumerate(TEXTS)]
    with Engine.load(reranker) as engine:
        rerank = BertrtRerank(engine=engine, top_n=3)
        expected = engine.rerank("the sea", TEXTS, top_k=3)
        for found in (
            rerank.compress_documents(documents, "the sea"),
            asyncio.run(rerank.acompress_documents(documents, "the sea")),
        ):
            assert [one.metadata["place"] for one in found] == [one.index for one in expected]
            assert [one.metadata["relevance_score"] for one in found] == [
                one.score for one in expected
            ]
            assert [one.page_content for one in found] == [TEXTS[one.index] for one in expected]
        assert [one.metadata for one in documents] == [{"place": i} for i in range(4)]
        assert rerank.compress_documents([], "the sea") == []
        assert asyncio.run(rerank.acompress_documents([], "the sea")) == []
        every = BertrtRerank(engine=engine, top_n=None).compress_documents(documents, "the sea")
        assert len(every) == len(documents)


def test_models_for_something_else_are_refused(hugging, embedder, reranker) -> None:
    with Engine.load(embedder) as vectors, Engine.load(reranker) as scores:
        with pytest.raises(InvalidInputError, match=r"\(embedding\); the task .* is regression"):
            BertrtEmbeddings(scores)
        with pytest.raises(ValueError, match=r"\(regression\); the task .* is embedding"):
            BertrtRerank(engine=vectors)
        with pytest.raises(ValueError, match="instance of Engine"):
            BertrtRerank(engine=str(reranker))
        with pytest.raises(InvalidTypeError, match="engine is a str"):
            BertrtEmbeddings(str(embedder))
        with pytest.raises(InvalidInputError, match=r"batch\[1\] holds a NUL"):
            BertrtEmbeddings(vectors).embed_documents(["a", "\0"])
        with pytest.raises(InvalidInputError, match="top_k is 0"):
            BertrtRerank(engine=scores, top_n=0).compress_documents([Document("a")], "b")
    with (
        Engine.load(embedder, settings={"pooling": "tokens"}) as engine,
        pytest.raises(InvalidInputError, match="'tokens', which gives several"),
    ):
        BertrtEmbeddings(engine)
