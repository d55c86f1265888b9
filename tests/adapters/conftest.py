"""Small models with prompts, and what an engine answers for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Nothing of the libraries' goes over the network in a test.
os.environ |= {"HAYSTACK_TELEMETRY_ENABLED": "False", "HF_HUB_OFFLINE": "1"}

PROMPTS = {"query": "the sea ", "passage": "boat: "}


@pytest.fixture
def embedder(hugging) -> Path:
    """A model of vectors, whose prompts for queries and documents differ."""
    return hugging.write(
        pooling=hugging.pooling,
        name="embedder",
        modules=hugging.modules("Transformer", "Pooling", "Normalize"),
        config_sentence_transformers={"prompts": PROMPTS, "similarity_fn_name": "dot"},
    )


@pytest.fixture
def reranker(hugging) -> Path:
    """A model that gives a pair one score."""
    config = hugging.config | {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    }
    weights = hugging.weights(config, classes=1)
    # So that documents are told apart, and scores are no sigmoid's ends.
    weights["classifier.weight"] *= 2
    return hugging.write(config, weights, name="reranker")
