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


def wide(mxnet: Any, net: Any, score_std: float) -> None:
    """Draw every weight so that attention scores spread by `score_std`.

    GluonNLP's own initialisation leaves attention all but uniform, and then a wrong mask, scale
    or head order hardly shows. LayerNorm's gamma and every bias are drawn as well: at 1 and 0
    they could be mixed up, or left out, and nobody would see.
    """
    units = net.encoder._units if hasattr(net, "encoder") else net.bert.encoder._units
    sigma = (score_std**0.5) / units**0.5
    # The first call settles the shapes that MXNet leaves open.
    one = mxnet.nd.zeros((1, 1))
    net.initialize(mxnet.init.Zero())
    masked = [one] if getattr(net, "_use_decoder", False) else []
    net(one, one, one[0] + 1, *masked)
    random = np.random.default_rng(units)
    for name, parameter in net.collect_params().items():
        if name.endswith("gamma"):
            mean, spread = 1, 0.2
        elif name.endswith(("beta", "bias")):
            mean, spread = 0, 0.1
        elif "embed" in name or "position" in name:
            mean, spread = 0, 1
        else:
            mean, spread = 0, sigma
        array = random.standard_normal(parameter.shape, dtype=np.float32)
        parameter.set_data(mxnet.nd.array(mean + np.float32(spread) * array))


@pytest.fixture(scope="session")
def export_net(tmp_path_factory):
    """A function: the shape of a net -> :class:`Exported`."""
    mxnet = pytest.importorskip("mxnet", exc_type=ImportError)
    gluonnlp = pytest.importorskip("gluonnlp", exc_type=ImportError)
    from bertrt.export import export_model

    def make(
        *,
        layers=2,
        units=32,
        heads=4,
        ffn=64,
        vocab_size=97,
        max_length=64,
        activation="gelu",
        layer_norm_eps=1e-12,
        classes=None,
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
        )
        net = gluonnlp.model.BERTModel(
            encoder,
            vocab_size=vocab_size,
            token_type_vocab_size=2,
            units=units,
            embed_size=units,
            **{"use_pooler": True, "use_decoder": False, "use_classifier": False} | wanted,
        )
        if classes is not None:
            net = gluonnlp.model.BERTClassifier(net, num_classes=classes, dropout=0.1)
        wide(mxnet, net, score_std)
        words = collections.Counter(f"word{index}" for index in range(vocab_size - 5))
        path = export_model(
            net,
            tmp_path_factory.mktemp("parity") / "bundle",
            vocab=gluonnlp.vocab.BERTVocab(words),
            task="embedding" if classes is None else "classification",
            max_length=min(max_length, 128),
        )
        return Exported(net, path)

    return make
