"""The bodies of text-embeddings-inference's requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

__all__ = [
    "Cut",
    "DecodeRequest",
    "EmbedAllRequest",
    "EmbedRequest",
    "EmbedSparseRequest",
    "Info",
    "PredictRequest",
    "Prediction",
    "Question",
    "Rank",
    "RerankRequest",
    "Sentences",
    "SimilarityRequest",
    "SimpleToken",
    "TokenizeRequest",
]

Id = Annotated[int, msgspec.Meta(ge=0, le=(1 << 31) - 1)]
Side = Literal["left", "right", "Left", "Right"]


class Cut(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every request about texts may say: whether a text that is longer than the model is cut,
    or else refused, and at which side. `parameters` holds more of the request's fields, as Hugging
    Face's clients send them."""

    truncate: bool | None = None
    truncation_direction: Side | None = None
    parameters: dict[str, Any] | None = None


class EmbedAllRequest(Cut, kw_only=True, forbid_unknown_fields=True):
    """A text or a list of texts; `prompt_name` is one of the model's prompts."""

    inputs: str | list[str]
    prompt_name: str | None = None


class EmbedRequest(EmbedAllRequest, kw_only=True, forbid_unknown_fields=True):
    """Likewise; `normalize` asks for vectors of length 1, `dimensions` for the first of their
    numbers."""

    normalize: bool | None = None
    dimensions: int | None = None
    encoding_format: Literal["float"] | None = None


class EmbedSparseRequest(EmbedAllRequest, kw_only=True, forbid_unknown_fields=True):
    """Likewise."""


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """What a model for question answering takes."""

    question: str
    context: str


class PredictRequest(Cut, kw_only=True, forbid_unknown_fields=True):
    """A text; a pair of texts in a list; or a batch, a list of lists of one or two texts. For
    question answering a question with its context, too. `raw_scores` asks for logits."""

    inputs: str | list[str | list[str]] | Question
    raw_scores: bool | None = None


class RerankRequest(Cut, kw_only=True, forbid_unknown_fields=True):
    """Texts to be ordered by what a model of pairs gives for each with the query."""

    query: str
    texts: list[str]
    raw_scores: bool | None = None
    return_text: bool | None = None


class Sentences(msgspec.Struct, forbid_unknown_fields=True):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Cut, kw_only=True, forbid_unknown_fields=True):
    """Sentences to be compared."""

    inputs: Sentences
    prompt_name: str | None = None


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Texts to be tokenized."""

    inputs: str | list[str]
    add_special_tokens: bool | None = None
    prompt_name: str | None = None


class DecodeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Ids, a list or several, to be spelled out."""

    ids: list[Id | list[Id]]
    skip_special_tokens: bool | None = None


class Prediction(msgspec.Struct):
    """A label's score."""

    score: float
    label: str


class Rank(msgspec.Struct, omit_defaults=True):
    """A text's place."""

    index: int
    score: float
    text: str | None = None


class SimpleToken(msgspec.Struct):
    """A token, and where it stands, in characters."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Info(msgspec.Struct):
    """What is served, and how."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    tokenization_workers: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str
    sha: str | None
    docker_label: str | None
