"""Tiny nets and vocabularies for the tests of export."""

from __future__ import annotations

import collections

import pytest


@pytest.fixture(scope="session")
def mxnet():
    pytest.importorskip("gluonnlp", exc_type=ImportError)
    return pytest.importorskip("mxnet", exc_type=ImportError)


@pytest.fixture(scope="session")
def make_vocab(mxnet):
    """A function: the number of tokens -> a BERTVocab with the five special tokens."""
    import gluonnlp

    def make(size=60):
        words = [f"word{index}" for index in range(size - 5)]
        vocab = gluonnlp.vocab.BERTVocab(collections.Counter(words))
        assert len(vocab) == size
        return vocab

    return make


@pytest.fixture(scope="session")
def make_bert(mxnet):
    """A function: options -> an initialised BERTModel with wide random weights.

    `deferred` leaves the shapes open that MXNet settles on the first call.
    Wide, so that attention is far from uniform and a wrong mask or scale shows.
    """
    from gluonnlp.model import BERTEncoder, BERTModel

    def make(
        layers=2,
        units=32,
        heads=4,
        ffn=48,
        vocab_size=60,
        max_length=40,
        dropout=0.1,
        seed=0,
        activation="gelu",
        layer_norm_eps=1e-12,
        sigma=0.3,
        deferred=False,
        **heads_wanted,
    ):
        encoder = BERTEncoder(
            num_layers=layers,
            units=units,
            hidden_size=ffn,
            num_heads=heads,
            max_length=max_length,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
        )
        wanted = {"use_pooler": True, "use_decoder": False, "use_classifier": False}
        net = BERTModel(
            encoder,
            vocab_size=vocab_size,
            units=units,
            embed_size=units,
            **{"token_type_vocab_size": 2} | wanted | heads_wanted,
        )
        mxnet.random.seed(seed)
        net.initialize(mxnet.init.Normal(sigma))
        if not deferred:
            # Only the first call tells MXNet every shape, and draws the weights that it affects.
            one = mxnet.nd.zeros((1, 1))
            masked = [one] if heads_wanted.get("use_decoder") else []
            net(one, one, one[0] + 1, *masked)
        return net

    return make


@pytest.fixture(scope="session")
def make_classifier(mxnet, make_bert):
    """A function: classes and options of make_bert -> an initialised BERTClassifier."""
    from gluonnlp.model import BERTClassifier

    def make(classes=3, head_dropout=0.1, **options):
        net = BERTClassifier(make_bert(**options), num_classes=classes, dropout=head_dropout)
        net.classifier.initialize(mxnet.init.Normal(0.3))
        one = mxnet.nd.zeros((1, 1))
        net(one, one, one[0] + 1)
        return net

    return make
