"""LlamaIndex, by its own classes."""

from __future__ import annotations

import asyncio
import json
import pickle

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bertrt import BertrtError, Engine, InvalidInputError, MissingFileError
from bertrt.adapters.llama_index import BertrtEmbedding, BertrtRerank

# The last is longer than the model.
TEXTS = ["the boats", "", "caf the sea boat", "sea " * 40]


@pytest.fixture
def answers(embedder):
    with Engine.load(embedder) as engine:
        yield lambda texts, prompt: [
            found.vector.tolist() for found in engine.predict(texts, prompt=prompt)
        ]


def test_vectors_are_the_engines_with_the_prompts_of_each_kind(embedder, answers) -> None:
    embedding = BertrtEmbedding(str(embedder), embed_batch_size=3)
    assert isinstance(embedding, BaseEmbedding)
    documents = answers(TEXTS, "passage")
    (query,) = answers(TEXTS[:1], "query")
    assert embedding.get_text_embedding_batch(TEXTS) == documents
    assert embedding.get_text_embedding(TEXTS[0]) == documents[0] != query
    assert embedding.get_query_embedding(TEXTS[0]) == query
    assert embedding.get_text_embedding_batch([]) == []

    async def ask() -> None:
        assert await embedding.aget_text_embedding_batch(TEXTS) == documents
        assert await embedding.aget_text_embedding(TEXTS[0]) == documents[0]
        assert await embedding.aget_query_embedding(TEXTS[0]) == query

    asyncio.run(ask())
    embedding.engine.close()
    with pytest.raises(BertrtError, match="closed"):
        embedding.get_text_embedding("a")


def test_nodes_are_embedded_in_a_pipeline(embedder, answers) -> None:
    pipeline = IngestionPipeline(transformations=[BertrtEmbedding(str(embedder))])
    nodes = pipeline.run(nodes=[TextNode(text=text) for text in TEXTS if text])
    assert [node.embedding for node in nodes] == answers([t for t in TEXTS if t], "passage")


def test_it_is_written_down_and_made_again(embedder, reranker) -> None:
    cut = {"settings": {"truncate_dim": 5}, "threads": 1}
    embedding = BertrtEmbedding(embedder, model_kwargs=cut)
    data = json.loads(embedding.to_json())
    assert data["class_name"] == "BertrtEmbedding"
    assert (data["model_name"], data["model_kwargs"]) == (str(embedder), cut)
    expected = embedding.get_text_embedding("the sea")
    assert len(expected) == 5
    for again in (BertrtEmbedding.from_dict(data), pickle.loads(pickle.dumps(embedding))):
        assert again.engine.threads == 1
        assert again.get_text_embedding("the sea") == expected
    rerank = BertrtRerank.from_dict(BertrtRerank(reranker, top_n=3).to_dict())
    assert (rerank.model, rerank.top_n) == (str(reranker), 3)


def test_a_reranker_orders_nodes_and_leaves_them_as_they_are(reranker) -> None:
    rerank = BertrtRerank(str(reranker), top_n=3, model_kwargs={"threads": 1})
    assert isinstance(rerank, BaseNodePostprocessor)
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5)
             for i, text in enumerate(TEXTS)]  # fmt: skip
    expected = [(str(r.index), r.score) for r in rerank.engine.rerank("the sea", TEXTS, top_k=3)]
    for found in (
        rerank.postprocess_nodes(nodes, query_str="the sea"),
        rerank.postprocess_nodes(nodes, QueryBundle("the sea")),
        asyncio.run(rerank.apostprocess_nodes(nodes, query_str="the sea")),
    ):
        assert [(one.node.node_id, one.score) for one in found] == expected
    assert [one.score for one in nodes] == [0.5] * 4
    assert rerank.postprocess_nodes([], query_str="the sea") == []
    with pytest.raises(InvalidInputError, match="no query to rank the nodes for"):
        rerank.postprocess_nodes(nodes)


def test_metadata_are_read_as_llama_index_shows_them(reranker) -> None:
    node = TextNode(text="the sea", metadata={"boat": "caf"})
    rerank = BertrtRerank(str(reranker))
    (found,) = rerank.postprocess_nodes([NodeWithScore(node=node)], query_str="the")
    shown = node.get_content(metadata_mode="embed")
    assert "caf" in shown
    assert found.score == rerank.engine.predict(("the", shown)).score
    assert np.isfinite(found.score)


def test_models_for_something_else_are_refused(embedder, reranker) -> None:
    with pytest.raises(InvalidInputError, match=r"\(embedding\); the task .* is regression"):
        BertrtEmbedding(str(reranker))
    with pytest.raises(InvalidInputError, match=r"\(regression\); the task .* is embedding"):
        BertrtRerank(str(embedder))
    with pytest.raises(MissingFileError, match="nowhere"):
        BertrtEmbedding("nowhere")
    with pytest.raises(InvalidInputError, match="precision is 'float'"):
        BertrtEmbedding(str(embedder), model_kwargs={"precision": "float"})
