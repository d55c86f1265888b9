"""MTEB: an embedding model as its EncoderProtocol.

    import mteb
    from bertrt.adapters.mteb import BertrtEncoder

    encoder = BertrtEncoder(Engine.load("embedder"), "me/embedder", revision="1")
    mteb.evaluate(encoder, mteb.get_tasks(["STSBenchmark"]))

See docs/adapters.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.adapters.common import check_embeds, embed, needs, prompt_name, similarity, width
from bertrt.engine import Engine
from bertrt.errors import InvalidInputError, InvalidTypeError

with needs("mteb", "mteb"):
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from sentence_transformers import SimilarityFunction

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader

__all__ = ["BertrtEncoder"]


class BertrtEncoder(AbsEncoder):
    """An embedding model, with the prompt that it has for a task or for queries and documents.

    Args:
        engine: a loaded embedding model; it stays the caller's to close.
        name: how results are named, "organisation/model".
        revision: MTEB keeps results by name and revision, and does not run again what it has: other
            weights, settings or another precision are another revision.

    Raises:
        InvalidInputError: a model that does not give a text one vector; a name of another form.
        InvalidTypeError: no engine; name or revision are no str.
    """

    def __init__(self, engine: Engine, name: str, revision: str) -> None:
        self.engine = check_embeds(engine)
        for what, value in (("name", name), ("revision", revision)):
            if not isinstance(value, str):
                raise InvalidTypeError(f"{what} is a {type(value).__name__}; expected a str")
            if not value:
                raise InvalidInputError(f"{what} is empty; MTEB keeps results by it")
        if name.count("/") != 1 or not all(name.split("/")):
            raise InvalidInputError(f"name is {name!r}; expected 'organisation/model'")
        self.model_prompts = engine.settings.get("prompts", {})
        compared = similarity(engine) or "cosine"
        self._compare = SimilarityFunction.to_similarity_fn(compared)
        self._compare_pairs = SimilarityFunction.to_similarity_pairwise_fn(compared)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "embed_dim": width(engine),
                "max_tokens": engine.max_length,
                "use_instructions": any(self.model_prompts.values()),
            }
        )

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """The vectors of all texts of `inputs`: float32, shape (texts, width).

        The prompt is that of the model for the task and kind of text, by MTEB's rule, else that
        for queries or documents. Of `kwargs` nothing is used: how many texts share a batch shows
        in no vector.

        Raises:
            InvalidInputError: inputs that are no texts, and what `Engine.predict` raises for them.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise InvalidInputError(
                    f"the inputs of {task_metadata.name} are {', '.join(batch)}; expected text"
                )
            texts += batch["text"]
        prompt = self.get_prompt_name(task_metadata, prompt_type)
        if prompt is None and prompt_type is not None:
            prompt = prompt_name(
                self.engine, "query" if prompt_type.value == "query" else "document"
            )
        return embed(self.engine, texts, prompt)

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Every vector with every other, as the model's are meant to be compared, else by cosine:
        a tensor of shape (first, second)."""
        return self._compare(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """As `similarity`, each vector with that of its place: a tensor of shape (vectors,)."""
        return self._compare_pairs(embeddings1, embeddings2)
