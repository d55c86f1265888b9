"""Zoo models from local files: both checkpoints, both names of the head, and what does not fit."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bertrt.export import export_zoo, zoo
from bertrt.export.gluon_to_symbol import run_gluon
from bertrt.export.heads import bert_for_qa, bert_tagger

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import (
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
)
from bertrt.models.bundle import Bundle

pytestmark = pytest.mark.mxnet

DATASET = "book_corpus_wiki_en_uncased"


@pytest.fixture(autouse=True)
def tiny_zoo(monkeypatch):
    """The zoo's builders with two narrow layers; all else of get_model is as it is."""
    from gluonnlp.model import bert

    tiny = {"num_layers": 2, "units": 32, "hidden_size": 48, "num_heads": 4, "embed_size": 32}
    for name in zoo.MODELS:
        monkeypatch.setitem(bert.bert_hparams, name, bert.bert_hparams[name] | tiny)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty MXNET_HOME, and a repository that nothing can be downloaded from."""
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9/")
    return tmp_path / "home" / "models"


@pytest.fixture
def vocab(make_vocab, tmp_path):
    (tmp_path / "vocab").write_text(make_vocab().to_json())
    return tmp_path / "vocab"


def save(net, path):
    net.save_parameters(str(path))
    return path


BATCH = {
    "token_ids": np.arange(12).reshape(2, 6),
    "token_types": np.arange(12).reshape(2, 6) % 2,
    "valid_length": np.array([6, 4]),
}

NO_TYPES = {name: array for name, array in BATCH.items() if name != "token_types"}


def full(make_bert, **options):
    return make_bert(max_length=512, use_decoder=True, use_classifier=True, **options)


@pytest.mark.parametrize("model", ["bert_12_768_12", "bert_24_1024_16"])
def test_a_pretraining_checkpoint(make_bert, vocab, tmp_path, model):
    net = full(make_bert)
    params = save(net, tmp_path / "params")
    path = export_zoo(model, DATASET, tmp_path / "bundle", params=params, vocab=vocab)
    manifest = Bundle.open(path).manifest
    assert manifest["task"] == "embedding"
    assert manifest["tokenizer"]["lower"] is True
    assert manifest["tokenizer"]["max_length"] == 128
    assert manifest["origin"]["model"] == model and manifest["origin"]["dataset"] == DATASET
    expected = run_gluon(net, BATCH | {"masked_positions": np.zeros((2, 1), int)})
    with Engine.load(path) as engine:
        found = engine.run(**BATCH)
    assert list(found) == ["sequence_output", "pooled_output"]
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("task", "classes"), [("classification", 3), ("regression", 1)])
def test_a_fine_tuned_checkpoint(make_classifier, vocab, tmp_path, task, classes, dropout):
    net = make_classifier(classes=classes, head_dropout=dropout, max_length=512)
    params = save(net, tmp_path / "params")
    path = export_zoo(
        "bert_12_768_12", DATASET, tmp_path / "bundle", task=task, params=params, vocab=vocab
    )
    assert Bundle.open(path).manifest["labels"] == (["0", "1", "2"] if classes == 3 else None)
    with Engine.load(path) as engine:
        found = engine.run(**BATCH)["logits"]
    np.testing.assert_allclose(found, run_gluon(net, BATCH)["logits"], atol=2e-5)
    # Its encoder alone makes embeddings.
    path = export_zoo("bert_12_768_12", DATASET, tmp_path / "e", params=params, vocab=vocab)
    with Engine.load(path) as engine:
        found = engine.run(**BATCH)["pooled_output"]
    np.testing.assert_allclose(found, run_gluon(net.bert, BATCH)["pooled_output"], atol=2e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("model", "kind"),
    [("roberta_12_768_12", "RoBERTaModel"), ("distilbert_6_768_12", "DistilBERTModel")],
)
def test_a_fine_tuned_roberta(
    make_classifier, roberta_files, vocab, tmp_path, model, kind, dropout
):
    files = {"vocab": vocab}
    if kind == "RoBERTaModel":
        files = dict(zip(("vocab", "merges"), roberta_files, strict=True))
    options = {"kind": kind, "head_dropout": dropout, "max_length": 512, "layer_norm_eps": 1e-5}
    if kind == "RoBERTaModel":
        options |= {"vocab_size": 266, "use_decoder": False}
    net = make_classifier(classes=3, **options)
    params = save(net, tmp_path / "params")
    path = export_zoo(
        *(model, "my_uncased", tmp_path / "b"), task="classification", params=params, **files
    )
    expected = run_gluon(net, BATCH)["logits"]
    with Engine.load(path) as engine:
        np.testing.assert_allclose(engine.run(**NO_TYPES)["logits"], expected, atol=2e-5)
        assert engine.predict(("word", "word1")).label in ("0", "1", "2")
    # Its encoder alone makes embeddings.
    path = export_zoo(model, "my_uncased", tmp_path / "e", params=params, **files)
    with Engine.load(path) as engine:
        found = engine.run(**NO_TYPES)["sequence_output"]
    expected = run_gluon(net.roberta, BATCH)["sequence_output"]
    np.testing.assert_allclose(found, expected, atol=5e-5)
    with pytest.raises(ModelFormatError, match="of a fine-tuned RoBERTaClassifier are wanted"):
        export_zoo(
            *(model, "my_uncased", tmp_path / "c"),
            task="classification",
            params=save(net.roberta, tmp_path / "pretrained"),
            **files,
        )


def test_a_data_set_that_gluonnlp_knows(make_classifier, vocab, tmp_path):
    params = save(make_classifier(classes=2, max_length=512), tmp_path / "params")
    out = str(tmp_path / "b")
    command = ["export", "bert_12_768_12", "--dataset", DATASET, "--task", "RTE", "--out", out]
    assert main([*command, "--params", str(params), "--vocab", str(vocab)]) == 0
    manifest = Bundle.open(out).manifest
    assert manifest["task"] == "classification"
    assert manifest["labels"] == ["not_entailment", "entailment"]
    assert manifest["settings"] == {"pair": True}


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("fill-mask", "masked_lm_outputs"),
        ("next-sentence", "next_sentence_classifier_output"),
    ],
)
def test_heads_of_pretraining(make_bert, vocab, tmp_path, task, output):
    net = full(make_bert)
    params = save(net, tmp_path / "params")
    path = export_zoo(
        *("bert_12_768_12", DATASET, tmp_path / "b"), task=task, params=params, vocab=vocab
    )
    batch = BATCH | {"masked_positions": np.array([[1, 2], [0, 3]])}
    expected = run_gluon(net, batch)[output]
    with Engine.load(path) as engine:
        assert engine.task == task
        found = engine.run(**(batch if task == "fill-mask" else BATCH))
    np.testing.assert_allclose(found[output], expected, atol=5e-5)
    # A file without the head, and rows of the zoo without it.
    bare = save(make_bert(max_length=512), tmp_path / "bare")
    with pytest.raises(ModelFormatError, match=f"no head for {task}"):
        export_zoo(
            *("bert_12_768_12", DATASET, tmp_path / "c"), task=task, params=bare, vocab=vocab
        )
    with pytest.raises(InvalidInputError, match=f"biobert.* no head for {task}"):
        export_zoo("bert_12_768_12", "biobert_v1.1_pubmed_cased", tmp_path / "c", task=task)


@pytest.mark.parametrize("task", ["question-answering", "tagging"])
def test_nets_of_the_scripts(mxnet, make_bert, vocab, tmp_path, task):
    bert = make_bert(max_length=512, use_pooler=False)
    net = bert_for_qa(bert) if task == "question-answering" else bert_tagger(bert, 4)
    net.collect_params(".*(span|tag|dense).*").initialize(mxnet.init.Normal(0.3))
    run_gluon(net, BATCH)
    params = save(net, tmp_path / "params")
    labels = ["O", "B-a", "I-a", "X"] if task == "tagging" else None
    common = {"task": task, "vocab": vocab, "labels": labels}
    path = export_zoo("bert_12_768_12", DATASET, tmp_path / "b", params=params, **common)
    with Engine.load(path) as engine:
        found = engine.run(**BATCH)["logits"]
    expected = run_gluon(net, BATCH)["logits"]
    rows = np.arange(6) < BATCH["valid_length"][:, None]
    np.testing.assert_allclose(found[rows], expected[rows], atol=5e-5)
    with pytest.raises(ModelFormatError, match=f"no head for {task}: the parameters of a fine"):
        export_zoo(
            *("bert_12_768_12", DATASET, tmp_path / "c"),
            params=save(bert, tmp_path / "bare"),
            **common,
        )
    with pytest.raises(InvalidInputError, match=f"no net for {task} over distilbert"):
        export_zoo("distilbert_6_768_12", DATASET, tmp_path / "c", params=params, **common)
    # Its encoder alone makes embeddings, but for the pooler that it was trained without.
    with pytest.raises(ModelFormatError, match="missing: pooler"):
        export_zoo("bert_12_768_12", DATASET, tmp_path / "c", params=params, vocab=vocab)


def test_files_of_roberta_must_fit_together(make_bert, roberta_files, tmp_path):
    vocab, merges = roberta_files
    options = {"max_length": 512, "layer_norm_eps": 1e-5, "vocab_size": 266}
    net = make_bert(kind="RoBERTaModel", **options)
    params = save(net, tmp_path / "params")
    merges.write_text("#version\nx y\n")
    for error, match, changes in (
        (ModelFormatError, "lacks 1 of the 257 pieces", {}),
        (ModelFormatError, "not a file of BPE merges", {"merges": vocab}),
        (MissingFileError, "the merges file .*nowhere does not exist", {"merges": "nowhere"}),
    ):
        with pytest.raises(error, match=match):
            export_zoo(
                *("roberta_12_768_12", "my_cased", tmp_path / "b"),
                **{"params": params, "vocab": vocab, "merges": merges} | changes,
            )
    with pytest.raises(InvalidInputError, match="not a vocabulary for WordPiece"):
        export_zoo("bert_12_768_12", "my_cased", tmp_path / "b", params=params, vocab=vocab)
    assert not (tmp_path / "b").exists()


def test_kobert_from_a_file(make_bert, train_sentencepiece, tmp_path, monkeypatch):
    texts = ["한국어 모델을 공유합니다", "word and words"] * 20
    vocab = train_sentencepiece(tmp_path / "kobert.spiece", texts, size=60)
    params = save(full(make_bert), tmp_path / "params")
    arguments = ("bert_12_768_12", "my_cased", tmp_path / "b")
    path = export_zoo(*arguments, params=params, vocab=vocab)
    settings = Bundle.open(path).manifest["tokenizer"]
    assert settings["kind"] == "gluonnlp-sentencepiece" and settings["lower"] is False
    with Engine.load(path) as engine:
        ids = engine.tokenize("한국어 ☃").ids.tolist()
        assert ids[0] == 2 and ids[-2:] == [0, 3]
    arguments = (*arguments[:2], tmp_path / "c")
    vocab.write_bytes(b"abc")
    with pytest.raises(ModelFormatError, match=r"kobert\.spiece: GluonNLP cannot read"):
        export_zoo(*arguments, params=params, vocab=vocab)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingDependencyError, match="sentencepiece"):
        export_zoo(*arguments, params=params, vocab=vocab)


@pytest.mark.parametrize(
    ("dataset", "lower"), [("wiki_multilingual_cased", False), ("my_corpus_uncased", True)]
)
def test_the_dataset_says_the_case(make_bert, vocab, tmp_path, dataset, lower):
    params = save(full(make_bert), tmp_path / "params")
    path = export_zoo("bert_12_768_12", dataset, tmp_path / "b", params=params, vocab=vocab)
    assert Bundle.open(path).manifest["tokenizer"]["lower"] is lower


def test_arguments(make_bert, vocab, tmp_path, home):
    params = save(full(make_bert), tmp_path / "params")
    common = {"model": "bert_12_768_12", "dataset": DATASET, "params": params, "vocab": vocab}
    for change, message in (
        ({"model": "gpt2_117m"}, "supported are bert_12_768_12, bert_24_1024_16, roberta"),
        ({"merges": vocab}, "--merges goes with RoBERTa"),
        ({"dataset": "wikipedia"}, "neither cased nor uncased"),
        ({"task": "translation"}, "one of .*embedding.*MRPC"),
        ({"labels": ["a"]}, "labels are for"),
        ({"settings": {"top_k": 3}}, "there is no 'top_k'"),
        ({"task": "classification", "params": None}, "--params"),
        ({"dataset": "my_corpus_uncased", "params": None}, "no weights.*my_corpus_uncased"),
        ({"dataset": "my_corpus_uncased", "vocab": None}, "no vocabulary for 'my_corpus_uncased'"),
        ({"max_length": 513}, "512 positions"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            export_zoo(out=tmp_path / "bundle", **common | change)
    with pytest.raises(MissingFileError, match="nowhere"):
        export_zoo(out=tmp_path / "bundle", **common | {"params": tmp_path / "nowhere"})
    assert not (tmp_path / "bundle").exists()


def test_files_that_cannot_be_downloaded_are_named(make_bert, vocab, tmp_path, home, capsys):
    params = save(full(make_bert), tmp_path / "params")
    with pytest.raises(MissingFileError) as caught:
        export_zoo("bert_12_768_12", DATASET, tmp_path / "b", vocab=vocab)
    for part in ("bert_12_768_12_book_corpus_wiki_en_uncased-75cc780f.params", str(home), "--para"):
        assert part in str(caught.value)
    with pytest.raises(MissingFileError) as caught:
        export_zoo("bert_12_768_12", DATASET, tmp_path / "b", params=params)
    for part in ("book_corpus_wiki_en_uncased-a6607397.vocab", str(home), "--vocab"):
        assert part in str(caught.value)
    assert "--params" not in str(caught.value)
    with pytest.raises(MissingFileError) as caught:
        export_zoo("roberta_12_768_12", "openwebtext_ccnews_stories_books_cased", tmp_path / "b")
    for name, sha1, option in (
        (
            "roberta_12_768_12_openwebtext_ccnews_stories_books_cased-5cf21fcd.params",
            "5cf21fcddb5ae1a4c21c61201643460c9d65d3b0",
            "--params",
        ),
        (
            "openwebtext_ccnews_stories_books_cased-2b804f8f.vocab",
            "2b804f8f90f9f93c07994b703ce508725061cf43",
            "--vocab",
        ),
        (
            "openai_webtext_bpe_ranks-396d4d8e.json",
            "396d4d8ec90cb02f4d56e049e0e4add868bcd943",
            "--merges",
        ),
    ):
        assert f"{name} (sha1 {sha1}; or name one with {option})" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_files_that_are_there_are_taken(make_bert, vocab, tmp_path, home, monkeypatch):
    """With the zoo's own hashes replaced by those of our files."""
    import gluonnlp
    import mxnet

    home.mkdir(parents=True)
    net = full(make_bert)
    params = save(net, tmp_path / "params")
    name = f"bert_12_768_12_{DATASET}"
    digests = []
    for path in (params, vocab):
        import hashlib

        digests.append(hashlib.sha1(path.read_bytes()).hexdigest())
    store = mxnet.gluon.model_zoo.model_store
    monkeypatch.setitem(store._model_sha1, name, digests[0])
    monkeypatch.setitem(gluonnlp.data.utils._vocab_sha1, DATASET, [digests[1], ".vocab", {}])
    params.rename(home / f"{name}-{digests[0][:8]}.params")
    vocab.rename(home / f"{DATASET}-{digests[1][:8]}.vocab")
    path = export_zoo("bert_12_768_12", DATASET, tmp_path / "bundle")
    with Engine.load(path) as engine:
        found = engine.run(**BATCH)["pooled_output"]
    expected = run_gluon(net, BATCH | {"masked_positions": np.zeros((2, 1), int)})
    np.testing.assert_allclose(found, expected["pooled_output"], atol=2e-5)


def test_checkpoints_of_other_networks(make_bert, make_classifier, vocab, tmp_path):
    def attempt(net, match, task=None):
        params = save(net, tmp_path / "params")
        with pytest.raises(ModelFormatError, match=match):
            export_zoo(
                "bert_12_768_12",
                DATASET,
                tmp_path / "bundle",
                task=task,
                params=params,
                vocab=vocab,
            )

    attempt(full(make_bert, layers=3), r"unexpected: encoder\.transformer_cells\.2")
    attempt(full(make_bert, layers=1), r"missing: encoder\.transformer_cells\.1")
    attempt(full(make_bert, ffn=64), r"ffn_1\.weight is \(64, 32\) and should be \(48,")
    attempt(full(make_bert, vocab_size=61), r"word_embed\.0\.weight is \(61, 32\)")
    attempt(full(make_bert), "has no head for classification", task="classification")
    attempt(make_bert(max_length=512, use_pooler=False), r"missing: pooler\.weight")
    params = save(full(make_bert), tmp_path / "params")
    params.write_bytes(params.read_bytes()[:-100])
    with pytest.raises(ModelFormatError, match="params"):
        export_zoo("bert_12_768_12", DATASET, tmp_path / "b", params=params, vocab=vocab)
