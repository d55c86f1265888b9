"""Gluon nets with wide random weights, and the bundles made of them."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclasses.dataclass(frozen=True)
class Exported:
    """A live Gluon net, the bundle made of it, and the net's answers, each computed once. Without
    MXNet there is no net, and the answers are the plan's in double precision."""

    net: Any
    path: Path
    answers: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def gluon(self, name: str, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if name not in self.answers:
            self.answers[name] = self.run(batch)
        return self.answers[name]

    def run(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        from bertrt.export.gluon_to_symbol import run_gluon

        from bertrt.models.bundle import Bundle
        from bertrt.plan.interpret import interpret

        if self.net is None:
            return interpret(Bundle.open(self.path).plan(), batch)
        return run_gluon(self.net, batch)


@pytest.fixture(scope="session")
def export_net(tmp_path_factory, request, with_mxnet, recorded, assemble, draw_wide):
    """A function: the shape of a net -> :class:`Exported`.

    Without MXNet the bundle is made of the recorded symbol, and the weights are the same."""

    def make(*, record: bool = True, **options):
        """The options are those of `build`; `record` is off for what runs with MXNet only."""
        path = tmp_path_factory.mktemp("parity") / "bundle"
        size = options.get("vocab_size", 97)
        task = "embedding" if options.get("classes") is None else "classification"
        task = "tagging" if options.get("over_tokens") else task
        max_length = min(options.get("max_length", 64), 128)
        net = vocab = None
        if with_mxnet:
            import gluonnlp
            from bertrt.export import export_model

            net = build(request.getfixturevalue("wide"), **options)
            words = collections.Counter(f"word{index}" for index in range(size - 5))
            vocab = gluonnlp.vocab.BERTVocab(words)
            export_model(net, path, vocab=vocab, task=task, max_length=max_length)
        if not record:
            return Exported(net, path)
        name = f"wide {json.dumps(options, sort_keys=True)}"
        symbol = recorded.symbol(name, lambda: (path / "model-symbol.json").read_text())
        shapes = recorded.text(
            f"{name}/shapes",
            lambda: json.dumps({n: p.shape for n, p in net.collect_params().items()}),
            lambda text: list(json.loads(text).values()),
        )
        tokens = recorded.text(f"vocabulary of {size}", lambda: vocab.to_json())
        if not with_mxnet:
            arrays = draw_wide(json.loads(shapes), options.get("score_std", 2.0))
            assemble(path, symbol, list(arrays), tokens, task=task, max_length=max_length)
        return Exported(net, path)

    return make


def build(
    wide,
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
    import gluonnlp
    from bertrt.export.heads import bert_tagger

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
    if over_tokens:
        net = bert_tagger(net, classes)
    elif classes is not None:
        pooled = kind == "BERTModel"
        head = gluonnlp.model.BERTClassifier if pooled else gluonnlp.model.RoBERTaClassifier
        net = head(net, num_classes=classes, dropout=0.1)
    wide(net, score_std)
    return net
