"""LlamaIndex: an embedding, and a reranker as a node postprocessor.

    from bertrt.adapters.llama_index import BertrtEmbedding, BertrtRerank

    Settings.embed_model = BertrtEmbedding("embedder")
    engine = index.as_query_engine(node_postprocessors=[BertrtRerank("reranker", top_n=3)])

See docs/adapters.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertrt.adapters.common import (
    aembed,
    arank,
    check_embeds,
    check_ranks,
    embed,
    needs,
    prompt_name,
    rank,
)
from bertrt.engine import Engine
from bertrt.errors import InvalidInputError
from bertrt.results import Ranked

with needs("llama-index-core", "llama-index"):
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

__all__ = ["BertrtEmbedding", "BertrtRerank"]


class BertrtEmbedding(BaseEmbedding):
    """Vectors of an embedding model, with its prompts for queries and documents where it has them.

    LlamaIndex writes components down and makes them again, and so this one has a path and loads
    the model itself.

    Args:
        model_name: the model's path, as for `Engine.load`. A text that is longer than its
            `max_length` is cut.
        model_kwargs: other arguments of `Engine.load`, such as ``{"threads": 2}``.
        kwargs: what every embedding of LlamaIndex takes, such as `embed_batch_size`.

    Raises:
        InvalidInputError: a model that does not give a text one vector.
        And what `Engine.load` raises.
    """

    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    _engine: Engine = PrivateAttr()
    _query: str | None = PrivateAttr()
    _document: str | None = PrivateAttr()

    def __init__(
        self, model_name: str, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model_name=str(model_name), model_kwargs=model_kwargs or {}, **kwargs)
        self._engine = check_embeds(Engine.load(model_name, **self.model_kwargs))
        self._query = prompt_name(self._engine, "query")
        self._document = prompt_name(self._engine, "document")

    @classmethod
    def class_name(cls) -> str:
        """Its name where LlamaIndex writes it down."""
        return "BertrtEmbedding"

    @property
    def engine(self) -> Engine:
        """The model, loaded; `engine.close()` lets go of it."""
        return self._engine

    def _get_query_embedding(self, query: str) -> list[float]:
        return embed(self._engine, [query], self._query)[0].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await aembed(self._engine, [query], self._query))[0].tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return embed(self._engine, texts, self._document).tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return (await aembed(self._engine, texts, self._document)).tolist()


class BertrtRerank(BaseNodePostprocessor):
    """The nodes that a model of pairs scores highest with the query.

    Args:
        model: the path of a model that gives a pair one score, such as a CrossEncoder.
        top_n: how many nodes to keep.
        model_kwargs: other arguments of `Engine.load`.

    Raises:
        InvalidInputError: another model.
        And what `Engine.load` raises.
    """

    model: str
    top_n: int
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    _engine: Engine = PrivateAttr()

    def __init__(
        self,
        model: str,
        top_n: int = 2,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=str(model), top_n=top_n, model_kwargs=model_kwargs or {}, **kwargs)
        self._engine = check_ranks(Engine.load(model, **self.model_kwargs))

    @classmethod
    def class_name(cls) -> str:
        """Its name where LlamaIndex writes it down."""
        return "BertrtRerank"

    @property
    def engine(self) -> Engine:
        """The model, loaded; `engine.close()` lets go of it."""
        return self._engine

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _pair(nodes, query_bundle)
        return _scored(nodes, rank(self._engine, query, texts, self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _pair(nodes, query_bundle)
        return _scored(nodes, await arank(self._engine, query, texts, self.top_n))


def _pair(nodes: Sequence[NodeWithScore], bundle: QueryBundle | None) -> tuple[str, list[str]]:
    if bundle is None:
        raise InvalidInputError(
            "there is no query to rank the nodes for: pass query_bundle or query_str"
        )
    return bundle.query_str, [
        node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes
    ]


def _scored(nodes: Sequence[NodeWithScore], ranked: Sequence[Ranked]) -> list[NodeWithScore]:
    return [NodeWithScore(node=nodes[found.index].node, score=found.score) for found in ranked]
