"""Gluon nets with wide random weights, and the bundles made of them."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class Exported:
    """A live Gluon net, the bundle made of it, and the net's answers, each computed once."""

    net: Any
    path: Path
    answers: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def gluon(self, name: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from bertrt.export.gluon_to_symbol import run_gluon

        if name not in self.answers:
            self.answers[name] = run_gluon(self.net, batch)
        return self.answers[name]


@pytest.fixture(scope="session")
def export_net(tmp_path_factory, wide):
    """A function: the shape of a net -> :class:`Exported`."""
    import gluonnlp
    from bertrt.export import export_model
    from bertrt.export.heads import bert_tagger

    def make(
        *,
        kind="BERTModel",
        layers=2,
        units=32,
        heads=4,
        ffn=64,
        vocab_size=97,
        max_length=64,
        activation="gelu",
        layer_norm_eps=1e-12,
        classes=None,
        over_tokens=False,
        output_attention=False,
        output_all_encodings=False,
        score_std=2.0,
        **wanted,
    ):
        encoder = gluonnlp.model.BERTEncoder(
            num_layers=layers,
            units=units,
            hidden_size=ffn,
            num_heads=heads,
            max_length=max_length,
            dropout=0.1,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            output_attention=output_attention,
            output_all_encodings=output_all_encodings,
        )
        sizes = {"vocab_size": vocab_size, "units": units, "embed_size": units}
        if kind == "RoBERTaModel":
            sizes |= {"use_decoder": False}
        elif kind == "BERTModel":
            sizes |= {"token_type_vocab_size": 2, "use_pooler": True, "use_decoder": False}
            sizes |= {"use_classifier": False}
        net = getattr(gluonnlp.model, kind)(encoder, **sizes | wanted)
        task = "embedding" if classes is None else "classification"
        if over_tokens:
            task = "tagging"
            net = bert_tagger(net, classes)
        elif classes is not None:
            pooled = kind == "BERTModel"
            head = gluonnlp.model.BERTClassifier if pooled else gluonnlp.model.RoBERTaClassifier
            net = head(net, num_classes=classes, dropout=0.1)
        wide(net, score_std)
        words = collections.Counter(f"word{index}" for index in range(vocab_size - 5))
        path = export_model(
            net,
            tmp_path_factory.mktemp("parity") / "bundle",
            vocab=gluonnlp.vocab.BERTVocab(words),
            task=task,
            max_length=min(max_length, 128),
        )
        return Exported(net, path)

    return make
