"""Haystack: a text embedder, a document embedder and a ranker.

    from bertrt.adapters.haystack import BertrtDocumentEmbedder, BertrtRanker, BertrtTextEmbedder

    pipeline.add_component("embedder", BertrtTextEmbedder("embedder"))
    pipeline.add_component("ranker", BertrtRanker("reranker", top_k=3))

See docs/adapters.md.
"""

# No annotations in strings: Haystack reads a component's sockets from its signatures. And no
# super(): its decorator makes another class of the one that is written here.

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

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
from bertrt.errors import InvalidTypeError
from bertrt.results import Ranked

with needs("haystack-ai", "haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict

__all__ = ["BertrtDocumentEmbedder", "BertrtRanker", "BertrtTextEmbedder"]


class _Component:
    """A model that is loaded when it is first needed: Haystack writes components down and makes
    them again."""

    def __init__(self, model: str, model_kwargs: dict[str, Any] | None) -> None:
        self.model = str(model)
        self.model_kwargs = model_kwargs or {}
        self.engine: Engine | None = None

    def _check(self, engine: Engine) -> Engine:
        return check_embeds(engine)

    def warm_up(self) -> None:
        """Load the model, if it is not; `run` does so too.

        Raises:
            InvalidInputError: a model for something else.
            And what `Engine.load` raises.
        """
        self._loaded()

    def _loaded(self) -> Engine:
        if self.engine is None:
            self.engine = self._check(Engine.load(self.model, **self.model_kwargs))
        return self.engine

    def close(self) -> None:
        """Let go of the model; the next `run` loads it again."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    def _texts(self, documents: Sequence[Document], fields: list[str], separator: str) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(d, Document) for d in documents):
            raise InvalidTypeError(
                f"documents are {type(documents).__name__}; expected a list of haystack.Document"
            )
        return [
            separator.join(
                [str(document.meta[f]) for f in fields if document.meta.get(f) is not None]
                + [document.content or ""]
            )
            for document in documents
        ]

    def to_dict(self) -> dict[str, Any]:
        """The component, as Haystack writes it down."""
        return default_to_dict(self, model=self.model, model_kwargs=self.model_kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """The component again."""
        return default_from_dict(cls, data)


@component
class BertrtTextEmbedder(_Component):
    """The vector of a query, with the model's prompt for queries if it has one.

    Args:
        model: an embedding model's path, as for `Engine.load`. A text that is longer than its
            `max_length` is cut.
        model_kwargs: other arguments of `Engine.load`, such as ``{"threads": 2}``.
    """

    def __init__(self, model: str, model_kwargs: dict[str, Any] | None = None) -> None:
        _Component.__init__(self, model, model_kwargs)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """``{"embedding": list of float}``. Raises what `warm_up` and `Engine.predict` raise."""
        engine = self._loaded()
        return {"embedding": embed(engine, [text], prompt_name(engine, "query"))[0].tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`."""
        engine = self._loaded()
        vectors = await aembed(engine, [text], prompt_name(engine, "query"))
        return {"embedding": vectors[0].tolist()}


@component
class BertrtDocumentEmbedder(_Component):
    """Documents with their vectors, with the model's prompt for documents if it has one.

    Args:
        model, model_kwargs: as of `BertrtTextEmbedder`.
        meta_fields_to_embed: the names of metadata that go before the content.
        embedding_separator: what goes between them.
    """

    def __init__(
        self,
        model: str,
        model_kwargs: dict[str, Any] | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _Component.__init__(self, model, model_kwargs)
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """The component, as Haystack writes it down."""
        return default_to_dict(
            self,
            model=self.model,
            model_kwargs=self.model_kwargs,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """``{"documents": copies with their vectors}``, of none none. Raises what `warm_up` and
        `Engine.predict` raise."""
        texts = self._texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        engine = self._loaded()
        return self._filled(documents, embed(engine, texts, prompt_name(engine, "document")))

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`."""
        texts = self._texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        engine = self._loaded()
        return self._filled(documents, await aembed(engine, texts, prompt_name(engine, "document")))

    def _filled(self, documents: list[Document], vectors: np.ndarray) -> dict[str, Any]:
        return {
            "documents": [
                replace(document, embedding=vector)
                for document, vector in zip(documents, vectors.tolist(), strict=True)
            ]
        }


@component
class BertrtRanker(_Component):
    """The documents that a model of pairs scores highest with a query.

    Args:
        model: the path of a model that gives a pair one score, such as a CrossEncoder.
        model_kwargs: other arguments of `Engine.load`.
        top_k: how many documents to keep.
        meta_fields_to_embed, embedding_separator: as of `BertrtDocumentEmbedder`.
    """

    def __init__(
        self,
        model: str,
        model_kwargs: dict[str, Any] | None = None,
        top_k: int = 10,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _Component.__init__(self, model, model_kwargs)
        self.top_k = top_k
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def _check(self, engine: Engine) -> Engine:
        return check_ranks(engine)

    def to_dict(self) -> dict[str, Any]:
        """The component, as Haystack writes it down."""
        return default_to_dict(
            self,
            model=self.model,
            model_kwargs=self.model_kwargs,
            top_k=self.top_k,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """``{"documents": copies with their scores, the highest first}``, at most `top_k` (None:
        the component's). Raises what `warm_up` and `Engine.rerank` raise, but for no documents."""
        texts = self._texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        top = self.top_k if top_k is None else top_k
        return self._ordered(documents, rank(self._loaded(), query, texts, top))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """As `run`."""
        texts = self._texts(documents, self.meta_fields_to_embed, self.embedding_separator)
        top = self.top_k if top_k is None else top_k
        return self._ordered(documents, await arank(self._loaded(), query, texts, top))

    def _ordered(self, documents: list[Document], ranked: Sequence[Ranked]) -> dict[str, Any]:
        return {
            "documents": [replace(documents[found.index], score=found.score) for found in ranked]
        }
