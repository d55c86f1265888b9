"""Every row of the zoo, at its true shapes, from files with GluonNLP's formats and names.

Vocabulary, token types, positions, activation and epsilon are a row's own; weights are random. What
a text becomes, and what comes out of it, is compared with GluonNLP.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bertrt.export import export_zoo
from bertrt.export.gluon_to_symbol import run_gluon
from bertrt.export.zoo import zoo_rows

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.evaluation.verify import bound, difference, verify
from bertrt.models.model import Model

pytestmark = pytest.mark.mxnet

BERT = "bert_12_768_12"
BOTH = ("next-sentence", "fill-mask")

# Model, data set, tokens, token types, positions, activation, epsilon, heads of pretraining, and
# how the first ids of the vocabulary go: "early" as in GluonNLP's first converter, "google" as in
# the file that was converted.
TABLE = [
    (BERT, "book_corpus_wiki_en_cased", 28996, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "book_corpus_wiki_en_uncased", 30522, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "openwebtext_book_corpus_wiki_en_uncased", 30522, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "wiki_multilingual_uncased", 105879, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "wiki_multilingual_cased", 119547, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "wiki_cn_cased", 21128, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (BERT, "scibert_scivocab_uncased", 31090, 2, 512, "gelu", 1e-12, BOTH, "google"),
    (BERT, "scibert_scivocab_cased", 31116, 2, 512, "gelu", 1e-12, BOTH, "google"),
    (BERT, "scibert_basevocab_uncased", 30522, 2, 512, "gelu", 1e-12, BOTH, "google"),
    (BERT, "scibert_basevocab_cased", 28996, 2, 512, "gelu", 1e-12, BOTH, "google"),
    (BERT, "biobert_v1.0_pmc_cased", 28996, 2, 512, "gelu", 1e-12, (), "google"),
    (BERT, "biobert_v1.0_pubmed_cased", 28996, 2, 512, "gelu", 1e-12, (), "google"),
    (BERT, "biobert_v1.0_pubmed_pmc_cased", 28996, 2, 512, "gelu", 1e-12, (), "google"),
    (BERT, "biobert_v1.1_pubmed_cased", 28996, 2, 512, "gelu", 1e-12, (), "google"),
    (BERT, "clinicalbert_uncased", 30522, 2, 512, "gelu", 1e-12, BOTH[:1], "google"),
    (BERT, "kobert_news_wiki_ko_cased", 8002, 2, 512, "gelu", 1e-12, BOTH, "sentencepiece"),
    ("bert_24_1024_16", "book_corpus_wiki_en_cased", 28996, 2, 512, "gelu", 1e-12, BOTH, "early"),
    ("bert_24_1024_16", "book_corpus_wiki_en_uncased", 30522, 2, 512, "gelu", 1e-12, BOTH, "early"),
    (
        *("roberta_12_768_12", "openwebtext_ccnews_stories_books_cased"),
        *(50265, 0, 512, "gelu", 1e-5, BOTH[1:], "bpe"),
    ),
    (
        *("roberta_24_1024_16", "openwebtext_ccnews_stories_books_cased"),
        *(50265, 0, 512, "gelu", 1e-5, BOTH[1:], "bpe"),
    ),
    (
        *("distilbert_6_768_12", "distilbert_book_corpus_wiki_en_uncased"),
        *(30522, 0, 512, "gelu", 1e-5, (), "google"),
    ),
    ("ernie_12_768_12", "baidu_ernie_uncased", 17964, 2, 513, "relu", 1e-5, (), "google"),
]
# What a row does not have in full, to keep the tests short: layers, but for two rows, and most have
# a quarter of the width. (tests/parity has base and large in full, with a small vocabulary.)
ONE_LAYER = {"num_layers": 1}
NARROW = {"units": 192, "embed_size": 192, "hidden_size": 768, "num_heads": 3}
IN_FULL = (BERT, "book_corpus_wiki_en_uncased")
ALL_LAYERS = ("bert_24_1024_16", "book_corpus_wiki_en_uncased")
TRUE_WIDTH = ("book_corpus_wiki_en_cased", "kobert", "distilbert", "baidu")


def changes(model: str, dataset: str) -> dict[str, int]:
    if (model, dataset) == IN_FULL:
        return {}
    if (model, dataset) == ALL_LAYERS:
        return NARROW
    return ONE_LAYER if dataset.startswith(TRUE_WIDTH) else ONE_LAYER | NARROW


# A row of each kind.
VERIFIED = [row for row in TABLE if row[1].startswith(("wiki_cn", "kobert", "distil", "baidu"))]
VERIFIED.append(next(row for row in TABLE if row[0] == "roberta_12_768_12"))

TEXTS = [
    "Word10 word20, UNHEARD of! Word7's 3.14",
    "[MASK] <s> Ünïcödé 中文 한국어 ﬁ ①",
    " ".join(f"word{i * 37 % 900}" for i in range(200)),
]
PAIRS = [("word1 word2 word3", "word4?"), ("word1", TEXTS[2])]


def test_the_list(capsys) -> None:
    """What ``bertrt export --list`` says, against this file's own table."""
    fields = ("model", "dataset", "vocab_size", "token_types", "max_length", "activation")
    fields += ("layer_norm_eps", "heads")
    found = [tuple(getattr(row, field) for field in fields) for row in zoo_rows()]
    assert sorted(found) == sorted(row[:8] for row in TABLE)
    assert main(["export", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(TABLE) + 3
    (line,) = (line for line in lines if line.startswith("ernie"))
    facts = "ernie_12_768_12 baidu_ernie_uncased 17964 2 513 relu 1e-05 gluonnlp yes none"
    assert line.split()[:10] == facts.split()
    assert "ernie_12_768_12_baidu_ernie_uncased-f869f3f8.params" in line
    assert "baidu_ernie_uncased-22355364.vocab" in line
    assert main(["export", "--list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (row,) = (row for row in rows if row["model"] == "roberta_12_768_12")
    assert row["files"][2] == {
        "name": "openai_webtext_bpe_ranks-396d4d8e.json",
        "sha1": "396d4d8ec90cb02f4d56e049e0e4add868bcd943",
        "option": "--merges",
    }


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@dataclasses.dataclass
class Zoo:
    """Files of the zoo, made here, at the places where GluonNLP looks for them."""

    home: Path
    monkeypatch: pytest.MonkeyPatch
    train_sentencepiece: object
    wide: object
    made: dict[object, object] = dataclasses.field(default_factory=dict)

    def place(self, made: Path, name: str) -> str:
        """Put a file there under its name, with its sha1 in it."""
        digest = self.made.setdefault(made, None) or sha1(made)
        self.made[made] = digest
        stem, dot, suffix = name.rpartition(".")
        target = self.home / "models" / f"{stem}-{digest[:8]}{dot}{suffix}"
        if not target.exists():
            os.link(made, target)
        return digest

    def vocabulary(self, dataset: str, size: int, layout: str):
        """A vocabulary of so many tokens, as an object of GluonNLP, at its place."""
        import gluonnlp

        key = (size, layout)
        if key not in self.made:
            path = self.home / f"{size}-{layout}"
            if layout == "sentencepiece":
                draw = random.Random(0)
                words = ["한국", "어", "모델", "word", "공유", *(f"word{i}" for i in range(90))]
                texts = [" ".join(draw.choices(words, k=9)) for _ in range(900)]
                self.train_sentencepiece(path, texts, size=size)
                vocab = gluonnlp.vocab.BERTVocab.from_sentencepiece(
                    str(path), padding_token="[PAD]"
                )
            else:
                vocab = {"bpe": self.roberta, "early": self.bert, "google": self.bert}[layout](
                    size, layout
                )
                path.write_text(vocab.to_json())
            assert len(vocab) == size
            self.made[key] = path, vocab
        path, vocab = self.made[key]
        suffix = "spiece" if layout == "sentencepiece" else "vocab"
        known = gluonnlp.data.utils._vocab_sha1
        digest = self.place(path, f"{dataset}.{suffix}")
        self.monkeypatch.setitem(known, dataset, [digest, *known[dataset][1:]])
        return vocab

    @staticmethod
    def bert(size: int, layout: str):
        import gluonnlp

        first = {
            "early": ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"],
            "google": [
                *("[PAD]", *(f"[unused{i}]" for i in range(99))),
                *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
            ],
        }[layout]
        letters = [*"abcdefghijklmnopqrstuvwxyz0123456789,.!?[]'", "中", "ᄒ", "##ᅡ", "Word10"]
        tokens = [*first, *letters, *(f"##{i}" for i in range(10))]
        tokens += [f"word{i}" for i in range(size - len(tokens))]
        return gluonnlp.vocab.BERTVocab(
            gluonnlp.data.count_tokens(tokens),
            token_to_idx={token: idx for idx, token in enumerate(tokens)},
        )

    def roberta(self, size: int, layout: str):
        """As the published one: 256 bytes, 50,000 merges, and fairseq's tokens around them."""
        import gluonnlp
        from tokenizers.pre_tokenizers import ByteLevel

        draw = random.Random(0)
        alphabet = sorted(ByteLevel.alphabet())
        merges = [(a, b) for a in alphabet for b in alphabet]
        draw.shuffle(merges)
        path = self.home / "merges"
        path.write_text("\n".join(["#version: 0.2", *map(" ".join, merges[:50000]), ""]))
        pieces = [*alphabet, *map("".join, merges[:50000]), "<|endoftext|>"]
        draw.shuffle(pieces)
        fakes = [f"madeupword{i:04}" for i in range(3)]
        tokens = ["<s>", "<pad>", "</s>", "<unk>", *pieces, *fakes, "<mask>"]
        tokenizer = gluonnlp.data.GPT2BPETokenizer
        digest = self.place(path, "openai_webtext_bpe_ranks.json")
        name = f"openai_webtext_bpe_ranks-{digest[:8]}.json"
        self.monkeypatch.setattr(tokenizer, "bpe_ranks_file_hash", (name, digest))
        return gluonnlp.Vocab(
            gluonnlp.data.count_tokens(tokens),
            token_to_idx={token: idx for idx, token in enumerate(tokens)},
            unknown_token="<unk>",
            padding_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            mask_token="<mask>",
        )

    def weights(self, model: str, dataset: str, heads: tuple[str, ...], vocab, score_std: float):
        """A pretrained net, at its place."""
        import gluonnlp
        import mxnet

        settings = gluonnlp.model.bert.bert_hparams[model]
        key = (model, settings["num_layers"], settings["units"], heads, len(vocab))
        if key not in self.made:
            options = {}
            if model.startswith("roberta"):
                options = {"use_decoder": True}
            elif not model.startswith("distilbert"):
                options = {
                    "use_pooler": True,
                    "use_decoder": "fill-mask" in heads,
                    "use_classifier": "next-sentence" in heads,
                }
            net, _ = gluonnlp.model.get_model(
                model, dataset_name=None, vocab=vocab, pretrained=False, **options
            )
            self.wide(net, score_std)
            path = self.home / "-".join(map(str, key))
            net.save_parameters(str(path))
            self.made[key] = path, net
        path, net = self.made[key]
        name = f"{model}_{dataset}"
        self.monkeypatch.setitem(
            mxnet.gluon.model_zoo.model_store._model_sha1,
            name,
            self.place(path, f"{name}.params"),
        )
        return net

    def tokenizer(self, dataset: str, vocab, layout: str):
        import gluonnlp

        lower = dataset.endswith("uncased")
        if layout == "bpe":
            pytest.importorskip("regex")
            return gluonnlp.data.GPT2BPETokenizer(root=str(self.home / "models"))
        if layout == "sentencepiece":
            import sentencepiece

            path, _ = self.made[len(vocab), layout]
            made = gluonnlp.data.BERTSPTokenizer(str(path), vocab, lower=lower)
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            made.sentencepiece = processor.encode_as_pieces
            return made
        return gluonnlp.data.BERTTokenizer(vocab, lower=lower)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, train_sentencepiece, wide) -> Iterator[Zoo]:
    home = tmp_path_factory.mktemp("mxnet")
    (home / "models").mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MXNET_HOME", str(home))
        monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9/")
        yield Zoo(home, monkeypatch, train_sentencepiece, wide)
    shutil.rmtree(home)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where a bundle goes, and goes again: pytest keeps what tests leave, and these are large."""
    yield tmp_path / "bundle"
    shutil.rmtree(tmp_path / "bundle", ignore_errors=True)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_row(zoo: Zoo, out: Path, monkeypatch, capsys, row: tuple) -> None:
    import gluonnlp

    model, dataset, size, types, positions, activation, epsilon, heads, layout = row
    hparams = gluonnlp.model.bert.bert_hparams
    monkeypatch.setitem(hparams, model, hparams[model] | changes(model, dataset))
    layers = hparams[model]["num_layers"]

    vocab = zoo.vocabulary(dataset, size, layout)
    # Scores spread less in 24 layers, as in tests/parity.
    net = zoo.weights(model, dataset, heads, vocab, 1.0 if layers > 12 else 2.0)
    path = export_zoo(model, dataset, out, max_length=128)

    opened = Model.open(path)
    facts = opened.architecture
    assert (facts["vocab_size"], facts["type_vocab_size"]) == (size, types)
    assert (facts["max_length"], facts["layers"]) == (positions, layers)
    assert facts["activation"] == {"gelu": "gelu_erf", "relu": "relu"}[activation]
    assert facts["layer_norm_eps"] == epsilon
    assert opened.outputs == ["sequence_output", "pooled_output"][: 1 + (types > 0)]

    tokenizer = zoo.tokenizer(dataset, vocab, layout)
    transform, pair = (
        gluonnlp.data.BERTSentenceTransform(tokenizer, 128, vocab=vocab, pair=pair)
        for pair in (False, True)
    )
    with Engine.load(path) as engine:
        rows = [transform((text,)) for text in TEXTS]
        rows += [pair(text) for text in PAIRS]
        found = [*engine.tokenize(TEXTS), *engine.tokenize(PAIRS)]
        for (ids, length, segments), encoding in zip(rows, found, strict=True):
            assert encoding.ids.tolist() == ids[:length].tolist()
            assert encoding.types.tolist() == segments[:length].tolist()
        token_ids, lengths, segments = (np.array(part) for part in zip(*rows, strict=True))
        batch = {"token_ids": token_ids, "token_types": segments, "valid_length": lengths}
        expected = run_gluon(net, batch | {"masked_positions": np.zeros((len(rows), 1), int)})
        rows_of_tokens = expected["sequence_output"]
        for index, embedding in enumerate(engine.predict(TEXTS) + engine.predict(PAIRS)):
            mean = rows_of_tokens[index, : lengths[index]].mean(axis=0)
            assert difference(mean, embedding.vector) <= bound("sequence_output", layers)
        # The last of its positions too.
        draw = np.random.default_rng(0)
        longest = {
            "token_ids": draw.integers(0, size, (1, positions)),
            "token_types": draw.integers(0, max(types, 1), (1, positions)),
            "valid_length": np.array([positions]),
        }
        expected = run_gluon(net, longest | {"masked_positions": np.zeros((1, 1), int)})
        for name, array in engine.run(**longest).items():
            assert difference(expected[name], array) <= bound(name, layers), name
    # Exporting has held every backend against the golden outputs; this adds live Gluon, once for
    # each kind of model.
    if row in VERIFIED:
        assert main(["verify", str(path)]) == 0
        assert "live Gluon" in capsys.readouterr().out
        assert main(["inspect", str(path)]) == 0
        assert opened.manifest["tokenizer"]["kind"] in capsys.readouterr().out
        for task in heads:
            shutil.rmtree(out)
            path = export_zoo(model, dataset, out, task=task)
            assert verify(path).ok
            with Engine.load(path) as engine:
                mask = engine.predict(f"word1 {vocab.mask_token}" if task == "fill-mask" else PAIRS)
                assert mask
