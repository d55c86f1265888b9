"""export_model with each of GluonNLP's tokenizers."""

from __future__ import annotations

import hashlib

import pytest
from bertrt.export import export_model

from bertrt import Engine
from bertrt.errors import InvalidInputError, InvalidTypeError, MissingFileError
from bertrt.models.bundle import Bundle

pytestmark = pytest.mark.mxnet


def export(net, vocab, out, **options):
    return export_model(net, out, vocab=vocab, task="embedding", max_length=20, **options)


def test_the_tokenizer_may_be_named(
    make_bert, make_vocab, roberta_files, train_sentencepiece, tmp_path
):
    """GluonNLP's own objects, as a program that fine-tuned with them has them."""
    import gluonnlp

    vocab_path, merges = roberta_files
    pytest.importorskip("regex")

    class Ranks(gluonnlp.data.GPT2BPETokenizer):
        bpe_ranks_file_hash = (merges.name, hashlib.sha1(merges.read_bytes()).hexdigest())

    texts = ["A word, another word", "words"]
    roberta = make_bert(kind="RoBERTaModel", vocab_size=266, layer_norm_eps=1e-5, use_decoder=False)
    vocab = gluonnlp.Vocab.from_json(vocab_path.read_text())
    tokenizer = Ranks(root=str(tmp_path))
    path = export(roberta, vocab, tmp_path / "roberta", tokenizer=tokenizer)
    with Engine.load(path) as engine:
        for text, encoding in zip(texts, engine.tokenize(texts), strict=True):
            assert encoding.ids.tolist() == vocab[["<s>", *tokenizer(text), "</s>"]]
    assert (path / "merges.txt").read_text().split("\n")[1:] == merges.read_text().split("\n")[1:]

    model = train_sentencepiece(tmp_path / "ko.spiece", ["word words", "한국어"] * 9, size=40)
    kobert = make_bert(vocab_size=40)
    vocab = gluonnlp.vocab.BERTVocab.from_sentencepiece(str(model), padding_token="[PAD]")
    for lower in (True, False):
        tokenizer = gluonnlp.data.BERTSPTokenizer(str(model), vocab, lower=lower)
        path = export(kobert, vocab, tmp_path / f"ko{lower}", tokenizer=tokenizer)
        settings = Bundle.open(path).manifest["tokenizer"]
        assert (settings["kind"], settings["lower"]) == ("gluonnlp-sentencepiece", lower)
    path = export(kobert, model, tmp_path / "path", lower=False)
    assert Bundle.open(path).manifest["tokenizer"] == settings

    words = make_vocab()
    tokenizer = gluonnlp.data.BERTTokenizer(words, lower=False)
    path = export(make_bert(), words, tmp_path / "bert", tokenizer=tokenizer)
    assert Bundle.open(path).manifest["tokenizer"]["lower"] is False

    for net, given, error, message in (
        (roberta, vocab_path, InvalidInputError, "not that of a BERTTokenizer"),
        (kobert, vocab, InvalidInputError, "not that of a BERTTokenizer"),
    ):
        with pytest.raises(error, match=message):
            export(net, given, tmp_path / "no")
    with pytest.raises(InvalidTypeError, match="found str"):
        export(make_bert(), words, tmp_path / "no", tokenizer="bpe")
    tokenizer = gluonnlp.data.BERTSPTokenizer(str(tmp_path / "gone"), vocab)
    with pytest.raises(MissingFileError, match="gone does not exist"):
        export(kobert, vocab, tmp_path / "no", tokenizer=tokenizer)
