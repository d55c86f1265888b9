"""LangChain: embeddings, and a reranker as a document compressor.

    from bertrt import Engine
    from bertrt.adapters.langchain import BertrtEmbeddings, BertrtRerank

    store = InMemoryVectorStore(BertrtEmbeddings(Engine.load("embedder")))
    rerank = BertrtRerank(engine=Engine.load("reranker"), top_n=3)

See docs/adapters.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bertrt.adapters.common import (
    Kind,
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
from bertrt.results import Ranked

with needs("langchain-core", "langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import ConfigDict, field_validator

__all__ = ["BertrtEmbeddings", "BertrtRerank"]


class BertrtEmbeddings(Embeddings):
    """Vectors of an embedding model, with its prompts for queries and documents where it has them.

    Args:
        engine: a loaded embedding model; it stays the caller's to close. A text that is longer
            than its `max_length` is cut.

    Raises:
        InvalidInputError: a model that does not give a text one vector.
        InvalidTypeError: no engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = check_embeds(engine)
        self._prompts: dict[Kind, str | None] = {
            "query": prompt_name(engine, "query"),
            "document": prompt_name(engine, "document"),
        }

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each of `texts`, of none none. Raises what `Engine.predict` raises."""
        return _lists(embed(self.engine, texts, self._prompts["document"]))

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query. Raises what `Engine.predict` raises."""
        return _lists(embed(self.engine, [text], self._prompts["query"]))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`."""
        return _lists(await aembed(self.engine, texts, self._prompts["document"]))

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`."""
        return _lists(await aembed(self.engine, [text], self._prompts["query"]))[0]


def _lists(vectors: np.ndarray) -> list[list[float]]:
    found: list[list[float]] = vectors.tolist()
    return found


class BertrtRerank(BaseDocumentCompressor):
    """The documents that a model of pairs scores highest with a query.

    Attributes:
        engine: a loaded model that gives a pair one score, such as a CrossEncoder; it stays the
            caller's to close.
        top_n: how many documents to keep; None: all.

    Raises:
        pydantic.ValidationError: another engine, or none.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    engine: Engine
    top_n: int | None = 3

    @field_validator("engine")
    @classmethod
    def _ranks(cls, engine: Engine) -> Engine:
        return check_ranks(engine)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best documents, the highest score first; copies, whose metadata have the score as
        `relevance_score`. Raises what `Engine.rerank` raises, but for no documents."""
        texts = [document.page_content for document in documents]
        return _scored(documents, rank(self.engine, query, texts, self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """As `compress_documents`."""
        texts = [document.page_content for document in documents]
        return _scored(documents, await arank(self.engine, query, texts, self.top_n))


def _scored(documents: Sequence[Document], ranked: Sequence[Ranked]) -> list[Document]:
    return [
        document.model_copy(
            update={"metadata": {**document.metadata, "relevance_score": found.score}}
        )
        for found in ranked
        for document in [documents[found.index]]
    ]
