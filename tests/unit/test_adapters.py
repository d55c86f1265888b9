"""What the adapters share, and what they say where their library is missing. Beside the libraries
they are tested in tests/adapters."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from bertrt import Batching, Engine, MissingDependencyError
from bertrt.adapters import common

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("sentence_transformers", "sentence_transformers", "sentence-transformers"),
        ("mteb", "mteb", "mteb"),
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("haystack", "haystack", "haystack"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, module, library, extra) -> None:
    name = f"bertrt.adapters.{module}"
    for loaded in [own for own in sys.modules if own == name or own.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependencyError, match=re.escape(f"pip install 'bertrt[{extra}]'")):
        importlib.import_module(name)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("prompts", "query", "document"),
    [
        ({}, "", ""),
        ({"passage": "boat: "}, "", "passage"),
        ({"query": "sea: ", "document": "", "passage": "boat: "}, "query", "passage"),
        ({"document": "the: ", "passage": "boat: "}, "", "document"),
        ({"corpus": "boat: "}, "", "corpus"),
    ],
)
def test_prompts_of_a_kind(hugging, prompts, query, document) -> None:
    path = hugging.write(
        pooling=hugging.pooling,
        modules=hugging.modules("Transformer", "Pooling"),
        config_sentence_transformers={"prompts": prompts},
    )
    with Engine.load(path) as engine:
        for kind, name in (("query", query), ("document", document)):
            found = common.embed(engine, ["the sea"], common.prompt_name(engine, kind))
            expected = engine.predict("the sea", prompt=name).vector
            assert found.tobytes() == expected.tobytes()


def test_a_default_prompt_is_that_of_kinds_without_one(hugging) -> None:
    path = hugging.write(
        pooling=hugging.pooling,
        modules=hugging.modules("Transformer", "Pooling"),
        config_sentence_transformers={"prompts": {"x": "sea: "}, "default_prompt_name": "x"},
    )
    settings = {"prompts": {"x": "sea: "}}
    with Engine.load(path, settings=settings) as engine:
        assert common.prompt_name(engine, "query") is None
        found = common.embed(engine, ["the"], None)
        assert found.tobytes() == engine.predict("the", prompt="x").vector.tobytes()


def test_no_texts_and_no_documents(hugging) -> None:
    config = hugging.config | {"architectures": ["BertForSequenceClassification"]}
    config |= {"id2label": {"0": "a"}}
    scores = hugging.write(config, hugging.weights(config, classes=1), name="reranker")
    with Engine.load(hugging.write(pooling=hugging.pooling)) as engine:
        for found in (
            common.embed(engine, [], None),
            asyncio.run(common.aembed(engine, [], None)),
        ):
            assert found.shape == (0, 24) and found.dtype == np.float32
    with Engine.load(scores) as engine:
        assert common.check_ranks(engine) is engine
        assert common.rank(engine, "a", [], 3) == []
        assert asyncio.run(common.arank(engine, "a", [], 3)) == []


def test_what_the_queue_has_no_room_for_waits(hugging) -> None:
    config = hugging.config | {"architectures": ["BertForSequenceClassification"]}
    config |= {"id2label": {"0": "a"}}
    scores = hugging.write(config, hugging.weights(config, classes=1), name="reranker")
    texts = ["the", "sea", "boats", "caf", ""] * 3
    small = Batching(queue=2)
    with Engine.load(hugging.write(pooling=hugging.pooling), batching=small) as engine:

        async def ask() -> list[np.ndarray]:
            parts = (texts[i : i + 4] for i in range(0, len(texts), 4))
            return await asyncio.gather(*(common.aembed(engine, part, None) for part in parts))

        found = np.concatenate(asyncio.run(ask()))
        assert found.tobytes() == common.embed(engine, texts, None).tobytes()
    for batching in (small, Batching()):
        with Engine.load(scores, batching=batching) as engine:
            found = asyncio.run(common.arank(engine, "sea", texts, 4))
            assert found == engine.rerank("sea", texts, top_k=4)


def test_settings_are_a_copy(hugging) -> None:
    with Engine.load(
        hugging.write(pooling=hugging.pooling), settings={"prompts": {"query": "sea: "}}
    ) as engine:
        settings = engine.settings
        assert settings["prompts"] == {"query": "sea: "}
        assert (settings["pooling"], settings["max_length"]) == ("mean", engine.max_length)
        settings["prompts"]["query"] = "boat: "
        assert engine.settings["prompts"] == {"query": "sea: "}
    again = Engine.load(engine._model.path, settings=engine.settings)
    assert again.settings == engine.settings
    again.close()
