"""Tiny nets and vocabularies for the tests of export."""

from __future__ import annotations

import collections
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def data_directory():
    """The directory of test corpora."""
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory of test data")
    return Path(directory)


def call_once(net):
    import mxnet
    from bertrt.export.gluon_to_symbol import input_names

    one = mxnet.nd.zeros((1, 1))
    net(*(one[0] + 1 if name == "valid_length" else one for name in input_names(net)))


@pytest.fixture(scope="session")
def mxnet():
    import mxnet

    return mxnet


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


@pytest.fixture
def roberta_files(mxnet, tmp_path):
    """The paths of a RoBERTa vocabulary of 266 tokens and of the merges that go with it."""
    import gluonnlp
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("w", "o"), ("r", "d"), ("wo", "rd"), ("Ġ", "word")]
    pieces = [*sorted(ByteLevel.alphabet()), *(first + second for first, second in merges)]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<s2>", "<mask>"]
    vocab = gluonnlp.Vocab(
        collections.Counter(tokens),
        token_to_idx={token: idx for idx, token in enumerate(tokens)},
        unknown_token="<unk>",
        padding_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    )
    (tmp_path / "roberta.vocab").write_text(vocab.to_json())
    (tmp_path / "merges.txt").write_text("\n".join(["#version", *map(" ".join, merges), ""]))
    return tmp_path / "roberta.vocab", tmp_path / "merges.txt"


@pytest.fixture(scope="session")
def make_bert(mxnet):
    """A function: options -> an initialised BERTModel, or another `kind` of it, with wide random
    weights.

    `deferred` leaves the shapes open that MXNet settles on the first call.
    Wide, so that attention is far from uniform and a wrong mask or scale shows.
    """
    import gluonnlp
    from gluonnlp.model import BERTEncoder

    def make(
        kind="BERTModel",
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
        wanted = {"BERTModel": {"use_decoder": False, "use_classifier": False}}.get(kind, {})
        wanted |= {"token_type_vocab_size": 2} if kind == "BERTModel" else {}
        net = getattr(gluonnlp.model, kind)(
            encoder, vocab_size=vocab_size, units=units, embed_size=units, **wanted | heads_wanted
        )
        mxnet.random.seed(seed)
        net.initialize(mxnet.init.Normal(sigma))
        if not deferred:
            # Only the first call tells MXNet every shape, and draws the weights that it affects.
            call_once(net)
        return net

    return make


@pytest.fixture(scope="session")
def make_classifier(mxnet, make_bert):
    """A function: classes and options of make_bert -> an initialised BERTClassifier, or
    RoBERTaClassifier for the other kinds."""
    from gluonnlp.model import BERTClassifier, RoBERTaClassifier

    def make(classes=3, head_dropout=0.1, **options):
        bert = make_bert(**options)
        pooled = options.get("kind", "BERTModel") == "BERTModel"
        head = BERTClassifier if pooled else RoBERTaClassifier
        net = head(bert, num_classes=classes, dropout=head_dropout)
        net.classifier.initialize(mxnet.init.Normal(0.3))
        call_once(net)
        return net

    return make


@pytest.fixture(scope="session")
def make_bundle(request, recorded, with_mxnet, assemble) -> Callable[..., Path]:
    """A function: path, kind and options of a net, options of export_model -> a bundle.

    The kinds are "bert", "classifier", "question-answering" and "tagging"; the options of the net
    are those of `make_bert` and `make_classifier`. Without MXNet the bundle is made of the symbol
    that was recorded, of weights with the spread of the net's, and its golden outputs are the
    plan's in double precision.
    """

    def build(kind: str, classes: int = 3, **options: Any) -> Any:
        from bertrt.export.heads import bert_for_qa, bert_tagger

        if kind == "classifier":
            return request.getfixturevalue("make_classifier")(classes=classes, **options)
        bert = request.getfixturevalue("make_bert")(**options)
        if kind == "bert":
            return bert
        net = bert_for_qa(bert) if kind == "question-answering" else bert_tagger(bert, classes)
        head = net.span_classifier if kind == "question-answering" else net.tag_classifier
        head.initialize(request.getfixturevalue("mxnet").init.Normal(1.0))
        call_once(net)
        return net

    def make(out: Path, kind: str, net: dict[str, Any], *, task: str, **options: Any) -> Path:
        from bertrt.export import export_model

        from bertrt.models.symbol.params import read_params

        size = net.get("vocab_size", 60)
        path = Path(out)
        if with_mxnet:
            vocab = request.getfixturevalue("make_vocab")(size)
            export_model(build(kind, **net), path, vocab=vocab, task=task, **options)
        name = f"{kind} {json.dumps(net, sort_keys=True)}"
        symbol = recorded.symbol(name, lambda: (path / "model-symbol.json").read_text())
        spreads = recorded.text(
            f"{name}/weights",
            lambda: json.dumps(
                {
                    name: [array.shape, round(float(array.mean()), 2), round(float(array.std()), 2)]
                    for name, array in (
                        (name, constant.array)
                        for name, constant in read_params(path / "model-0000.params").items()
                    )
                }
            ),
            lambda text: [shape for shape, *_ in json.loads(text).values()],
        )
        tokens = recorded.text(f"vocabulary of {size}", lambda: vocab.to_json())
        if not with_mxnet:
            # The 1 was chosen: the tests of quantisation want steps of unlike sensitivity.
            random = np.random.default_rng(zlib.crc32(name.encode(), 1))
            arrays = [
                (name, random.normal(mean, spread, shape).astype(np.float32))
                for name, (shape, mean, spread) in json.loads(spreads).items()
            ]
            assemble(path, symbol, arrays, tokens, task=task, **options)
        return path

    return make
