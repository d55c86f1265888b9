"""Directories of sentence-transformers, against what it answers.

The answers are recorded in ``tests/data/sentence_reference.npz``; where sentence-transformers is
installed, it writes the directories again and answers live.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bertrt.export.huggingface import import_huggingface

from bertrt import Classification, Embedding, Engine, Ranked, Regression
from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.evaluation.quantize import quantize
from bertrt.models.bundle import Bundle
from bertrt.models.model import Model
from bertrt.models.safetensors import read_safetensors
from bertrt.tasks.activations import ACTIVATIONS

DATA = Path(__file__).parents[1] / "data"
RECORDED = json.loads((DATA / "sentence_reference.json").read_text())
CASES: dict[str, dict[str, Any]] = RECORDED["cases"]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_sentence_reference", DATA / "make_sentence_reference.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA / "sentence_reference.npz") as archive:
        return dict(archive)


@pytest.fixture
def write(hugging):
    """A function: case, files -> the directory of a recorded case, with changes to its files: what
    is a dict goes over what is there, None takes the file away."""

    def write(case: str, name: str = "model", **changes: Any) -> Path:
        path = hugging.root / name
        files = {
            file: RECORDED["contents"][number] for file, number in CASES[case]["files"].items()
        }
        for file, content in changes.items():
            old = files.pop(file := file.replace("__", "/") + ".json", {})
            if content is not None:
                files[file] = old | content if isinstance(content, dict) else content
        for file, content in files.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(json.dumps(content))
        for file, number in CASES[case]["tensors"].items():
            tensors = RECORDED["contents"][number].items()
            hugging.write_safetensors(
                path / file, {key: reference.draw(key, tuple(shape)) for key, shape in tensors}
            )
        (path / "vocab.txt").write_text("\n".join(reference.WORDS) + "\n")
        return path

    return write


def ask(engine: Engine, case: dict[str, Any], asked: dict[str, Any]) -> np.ndarray:
    """What the engine answers, as sentence-transformers shapes it."""
    results = engine.predict(reference.PAIRS if case["cross"] else reference.TEXTS, **asked)
    if isinstance(results[0], Embedding):
        return np.stack([result.vector for result in results])
    if isinstance(results[0], Regression):
        return np.array([result.score for result in results])
    assert isinstance(results[0], Classification)
    assert all(result.score == max(result.scores.values()) for result in results)
    return np.array([list(result.scores.values()) for result in results])


def check(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_of_sentence_transformers(write, recorded, case) -> None:
    with Engine.load(write(case)) as engine:
        for index, asked in enumerate(CASES[case]["asked"]):
            check(ask(engine, CASES[case], asked), recorded[f"{case}/{index}"])


def test_every_activation_is_recorded() -> None:
    assert set(ACTIVATIONS) == set(reference.ACTIVATIONS)


@pytest.mark.parametrize("case", CASES)
def test_live(tmp_path, case) -> None:
    pytest.importorskip("sentence_transformers")
    made, path = reference.cases()[case], tmp_path / "model"
    reference.save(path, made)
    with Engine.load(path) as engine:
        for asked in CASES[case]["asked"]:
            check(ask(engine, CASES[case], asked), reference.answer(path, made, asked))


@pytest.mark.parametrize(
    "case",
    [
        *("truncate 5", "pooling list", "dense no bias, twice", "dense residual projected"),
        *("prompts, one of them always", "prompts left out of mean", "similarity dot"),
        *("cross 1", "cross 1, version 3, torch.nn.modules.linear.Identity", "cross 3 Tanh"),
        "cross 1, prompts",
    ],
)
@pytest.mark.parametrize("gluon", [False, True])
def test_a_bundle_gives_the_same_bits(write, tmp_path, monkeypatch, case, gluon) -> None:
    """With the graphs of Gluon where that is installed, and with the plan alone."""
    if not gluon:
        monkeypatch.setattr("bertrt.export.huggingface._in_gluon", lambda model: False)
    path = write(case)
    bundle = import_huggingface(path, tmp_path / "bundle")
    with Engine.load(path) as engine, Engine.load(bundle) as other:
        for asked in CASES[case]["asked"]:
            one, two = (ask(e, CASES[case], asked) for e in (engine, other))
            assert one.tobytes() == two.tobytes()
        if not CASES[case]["cross"]:
            similarity = engine.predict("a").similarity
            assert other.predict("a").similarity == similarity is not None


@pytest.mark.parametrize(
    "case", ["pooling list", "dense no bias, twice", "prompts left out of weightedmean", "cross 3"]
)
def test_the_bits_do_not_depend_on_the_batch(write, case) -> None:
    texts = reference.PAIRS if CASES[case]["cross"] else reference.TEXTS
    asked = CASES[case]["asked"][-2:][0]
    with Engine.load(write(case)) as engine:
        together = ask(engine, CASES[case], asked)
        for text, expected in zip(texts, together, strict=True):
            result = engine.predict([text], **asked)[0]
            found = result.vector if hasattr(result, "vector") else list(result.scores.values())
            assert np.asarray(found).tobytes() == expected.tobytes()


# --- similarity -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity(write, name) -> None:
    case = "pooling mean" if name == "cosine" else f"similarity {name}"
    with Engine.load(write(case)) as engine:
        assert engine.predict("a").similarity == name


def test_a_model_that_says_nothing_of_similarity(hugging) -> None:
    with Engine.load(hugging.write()) as engine:
        assert engine.predict("the boat").similarity is None


# --- prompts ----------------------------------------------------------------------------------


def test_a_prompt_goes_before_the_text(write) -> None:
    with Engine.load(write("prompts")) as engine:
        asked = engine.tokenize(["the boats", "a"], prompt="query")
        plain = engine.tokenize(["query : the boats", "query : a"])
        assert [own.ids.tolist() for own in asked] == [own.ids.tolist() for own in plain]
        pair = engine.tokenize(("the boats", "sea"), prompt="a : ")
        assert pair.ids.tolist() == engine.tokenize(("a : the boats", "sea")).ids.tolist()
        assert engine.predict("a", prompt="document").vector.tolist() == (
            engine.predict("a").vector.tolist()
        )


def test_prompts_that_are_not_there(write, hugging) -> None:
    with Engine.load(write("prompts")) as engine:
        with pytest.raises(InvalidInputError, match=r"no prompt 'qeury'; its prompts are .*query"):
            engine.predict("a", prompt="qeury")
        with pytest.raises(InvalidTypeError, match="prompt is a int"):
            engine.predict("a", prompt=3)
        with pytest.raises(InvalidInputError, match="prompt holds a NUL"):
            engine.predict("a", prompt="a: \0")
        # What is wrong with a text is told in the text's own terms.
        with pytest.raises(InvalidInputError, match=r"batch\[1\] holds a NUL .* position 1$"):
            engine.predict(["a", "b\0"], prompt="query")
    with Engine.load(hugging.write(name="plain")) as engine:
        with pytest.raises(InvalidInputError, match="no prompt 'query'; it has none"):
            engine.predict("the", prompt="query")
        vector = engine.predict("the boat", prompt="sea: ").vector
        assert vector.tolist() == engine.predict("sea: the boat").vector.tolist()


def test_a_prompt_for_a_task_that_takes_none(hugging) -> None:
    config = hugging.config | {"architectures": ["BertForTokenClassification"], "num_labels": 2}
    weights = hugging.weights(config, classes=2, pooler=False)
    engine = Engine.load(hugging.write(config, weights))
    with engine, pytest.raises(InvalidInputError, match="tagging takes no prompt"):
        engine.predict(["the boat"], prompt="sea: ")


def test_nothing_is_left_behind_a_prompt(write) -> None:
    case = "prompts left out of mean"
    # Two tokens, and with the text one that is unknown
    engine = Engine.load(write(case), settings={"prompts": {"long": "cafe"}})
    with engine, pytest.raises(InvalidInputError, match="nothing is left to pool"):
        engine.predict("x", prompt="long")


# --- reranking --------------------------------------------------------------------------------


def test_rerank(write) -> None:
    documents = ["sea", "the cafe . c", "the sea : the boats", "sea"]
    with Engine.load(write("cross 1")) as engine:
        scores = [r.score for r in engine.predict([("the boats", text) for text in documents])]
        ranked = engine.rerank("the boats", documents)
        assert all(isinstance(one, Ranked) for one in ranked)
        order = sorted(range(4), key=lambda i: -scores[i])  # equal ones in their order
        assert [(one.index, one.score) for one in ranked] == [(i, scores[i]) for i in order]
        assert [one.index for one in ranked].index(0) + 1 == [one.index for one in ranked].index(3)
        assert engine.rerank("the boats", documents, top_k=2) == ranked[:2]
        assert not any(one.truncated for one in ranked)
        assert engine.rerank("the boats", ["a " * 50])[0].truncated
        for arguments, error, message in (
            ((3, documents), InvalidTypeError, "query is a int"),
            (("a", "sea"), InvalidTypeError, "documents is a str"),
            (("a", []), InvalidInputError, "empty"),
            (("a", ["sea", None]), InvalidTypeError, r"batch\[1\]"),
        ):
            with pytest.raises(error, match=message):
                engine.rerank(*arguments)
        with pytest.raises(InvalidInputError, match="top_k is 0"):
            engine.rerank("a", documents, top_k=0)


def test_rerank_with_a_prompt(write) -> None:
    with Engine.load(write("cross 1, prompts")) as engine:
        (one,) = engine.rerank("a", ["sea"])  # the default
        assert one.score == engine.predict(("query : a", "sea"), prompt="").score
        (other,) = engine.rerank("a", ["sea"], prompt="")
        assert other.score == engine.predict(("a", "sea"), prompt="").score != one.score


@pytest.mark.parametrize("case", ["cross 3", "pooling mean"])
def test_rerank_needs_one_score(write, case) -> None:
    with (
        Engine.load(write(case)) as engine,
        pytest.raises(InvalidInputError, match="rerank needs a model that gives a pair one score"),
    ):
        engine.rerank("a", ["sea"])


# --- classifiers that are no CrossEncoder -----------------------------------------------------


@pytest.mark.parametrize(
    ("case", "config", "score"),
    [
        ("cross 1, nothing said", {}, lambda x: 1 / (1 + np.exp(-x))),
        ("cross 1, nothing said", {"problem_type": "regression"}, lambda x: x),
        (
            "cross 3, version 5, nothing said",
            {"sentence_transformers": None},
            lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
        ),
    ],
)
def test_as_the_pipeline_of_transformers(write, case, config, score) -> None:
    with Engine.load(write(case, config=config)) as engine:
        results, outputs = engine.predict_with_outputs(reference.PAIRS)
        for result, (logits,) in zip(results, outputs, strict=True):
            expected = score(logits.astype(np.float64))
            scores = result.scores.values() if len(expected) > 1 else [result.score]
            np.testing.assert_allclose(list(scores), expected, rtol=1e-12)


# --- what is refused --------------------------------------------------------------------------

REFUSED = [
    ("pooling mean", {"1_Pooling__config": {"pooling_mode": "best"}}, "'best' is not supported"),
    ("pooling mean", {"1_Pooling__config": {"pooling_mode": []}}, "pooling \\[\\]"),
    ("pooling mean", {"1_Pooling__config": {"pooling_mode_new": True}}, "pooling_mode_new"),
    ("pooling mean", {"sentence_bert_config": {"config_args": {"x": 1}}}, "config_args"),
    ("pooling mean", {"sentence_bert_config": {"new": 1}}, "new is not known"),
    ("pooling mean", {"sentence_bert_config": {"module_output_name": "x"}}, "module_output_name"),
    ("pooling mean", {"sentence_bert_config": {"transformer_task": "fill-mask"}}, "fill-mask"),
    (
        "pooling mean",
        {"sentence_bert_config": {"modality_config": {"text": {"method": "other"}}}},
        "modality_config",
    ),
    (
        "pooling mean",
        {"config_sentence_transformers": {"model_type": "SparseEncoder"}},
        "SparseEncoder",
    ),
    (
        "pooling mean",
        {"config_sentence_transformers": {"similarity_fn_name": "maxsim"}},
        "'maxsim'",
    ),
    ("dense Tanh", {"2_Dense__config": {"activation_function": "mine.Tanh"}}, "'mine.Tanh'"),
    (
        "dense Tanh",
        {"2_Dense__config": {"activation_function": "torch.nn.modules.activation.PReLU"}},
        "PReLU",
    ),
    ("dense Tanh", {"2_Dense__config": {"activation_function": None}}, "None"),
    (
        "dense Tanh",
        {"2_Dense__config": {"module_input_name": "token_embeddings"}},
        "module_input_name is 'token_embeddings'",
    ),
    ("dense Tanh", {"2_Dense__config": {"scale": 2}}, "scale is not supported"),
    (
        "cross 1",
        {"config_sentence_transformers": {"activation_fn": "mine.Sigmoid"}},
        "activation_fn is 'mine.Sigmoid'",
    ),
    (
        "cross 1, version 5, nothing said",
        {"config": {"sentence_transformers": {"activation_fn": "mine.Sigmoid"}}},
        "activation_fn is 'mine.Sigmoid'",
    ),
]
BROKEN = [
    ("pooling mean", {"1_Pooling__config": {"include_prompt": 1}}, "include_prompt should be"),
    ("flag mean", {"1_Pooling__config": {"pooling_mode_max_tokens": "no"}}, "true or false"),
    ("pooling mean", {"config_sentence_transformers": {"truncate_dim": 0}}, "truncate_dim"),
    ("pooling mean", {"config_sentence_transformers": {"truncate_dim": "5"}}, "truncate_dim"),
    ("pooling mean", {"config_sentence_transformers": {"prompts": ["a"]}}, "prompts should be"),
    ("pooling mean", {"config_sentence_transformers": {"prompts": {"a": 1}}}, "prompts should be"),
    (
        "pooling mean",
        {"config_sentence_transformers": {"default_prompt_name": "qeury"}},
        "default_prompt_name is 'qeury', and the prompts are query, document",
    ),
    ("dense Tanh", {"2_Dense__config": {"in_features": 13}}, "in_features is 13, .* 12"),
    ("dense Tanh", {"2_Dense__config": {"out_features": 13}}, "out_features is 13, .* 7"),
    ("dense Tanh", {"2_Dense__config": {"bias": False}}, "bias is False"),
    ("dense Tanh", {"2_Dense__config": {"use_residual": True}}, "residual"),
    (
        "dense Tanh",
        {"1_Pooling__config": {"pooling_mode": ["mean", "max"]}},
        "dense, takes 12 numbers, and gets 24",
    ),
    ("cross 1", {"config": {"sentence_transformers": "x"}}, "sentence_transformers should be"),
]


@pytest.mark.parametrize(("case", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_named(write, case, changes, message) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Engine.load(write(case, **changes))


@pytest.mark.parametrize(("case", "changes", "message"), BROKEN)
def test_what_is_broken_is_named(write, case, changes, message) -> None:
    with pytest.raises(ModelFormatError, match=message):
        Engine.load(write(case, **changes))


def test_modules_of_other_kinds(write) -> None:
    for index, (kinds, message) in enumerate(
        (
            (["sentence_transformers.models.Transformer"], "the modules Transformer are not"),
            (
                ["sentence_transformers.models.Transformer", "sentence_transformers.models.CNN"],
                "CNN",
            ),
            (["custom_st.Transformer", "sentence_transformers.models.Pooling"], "custom_st.Trans"),
        )
    ):
        modules = [{"type": kind, "path": ""} for kind in kinds]
        with pytest.raises(UnsupportedModelError, match=message):
            Engine.load(write("pooling mean", name=f"model{index}", modules=modules))


def test_a_module_whose_weights_are_torch_s(write, hugging) -> None:
    path = write("dense Tanh")
    with Engine.load(path) as engine:
        expected = engine.predict("the boats").vector
    old = path / "2_Dense" / "model.safetensors"
    arrays = {name: c.array for name, c in read_safetensors(old).items()}
    hugging.write_torch(path / "2_Dense" / "pytorch_model.bin", arrays)
    old.unlink()
    with Engine.load(path) as engine:
        np.testing.assert_array_equal(engine.predict("the boats").vector, expected)


def test_a_module_without_its_file(write) -> None:
    path = write("dense Tanh")
    (path / "2_Dense" / "config.json").write_text("{}")
    with pytest.raises(ModelFormatError, match="does not say in_features, out_features"):
        Engine.load(path)
    (path / "2_Dense" / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"2_Dense/config\.json does not exist"):
        Engine.load(path)


def test_a_tokenizer_from_elsewhere_is_refused(write) -> None:
    path = write("dense Tanh", sentence_bert_config={"tokenizer_name_or_path": "elsewhere"})
    with pytest.raises(UnsupportedModelError, match="tokenizer_name_or_path is 'elsewhere'"):
        Engine.load(path)


# --- settings of the user's own ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "settings", "like"),
    [
        ("pooling mean", {"pooling": "max"}, "pooling max"),
        ("pooling mean", {"pooling": ["weightedmean"]}, "pooling weightedmean"),
        ("pooling mean", {"pooling": ["lasttoken", "mean", "cls"]}, "pooling list"),
        ("pooling mean", {"normalize": True, "truncate_dim": 5}, "truncate 5"),
        ("truncate 5", {"truncate_dim": None}, "truncate 99"),
        (
            "pooling mean",
            {"include_prompt": False, "prompts": reference.PROMPTS},
            "prompts left out of mean",
        ),
        ("prompts", {"default_prompt_name": "query"}, "prompts, one of them always"),
        ("cross 1", {"activation": "tanh"}, "cross 1 Tanh"),
        ("cross 1", {"activation": "identity"}, "cross 1 Identity"),
        ("cross 3", {"activation": "sigmoid"}, "cross 3 Sigmoid"),
    ],
)
def test_settings(write, recorded, tmp_path, case, settings, like) -> None:
    path = write(case)
    bundle = import_huggingface(path, tmp_path / "bundle", settings=settings)
    with Engine.load(path, settings=settings) as engine, Engine.load(bundle) as other:
        for index, asked in enumerate(CASES[like]["asked"]):
            found = ask(engine, CASES[like], asked)
            check(found, recorded[f"{like}/{index}"])
            assert found.tobytes() == ask(other, CASES[like], asked).tobytes()
        for name in settings:
            assert f"{name}=" in engine.explain()
        first, second = (e.explain().split("settings ")[1].split("\n")[0] for e in (engine, other))
        assert first == second


def test_settings_of_length_and_labels(write, tmp_path) -> None:
    settings = {"max_length": 5, "labels": ["x", "y", "z"]}
    path = write("cross 3")
    bundle = import_huggingface(path, tmp_path / "bundle", settings=settings)
    for engine in (Engine.load(path, settings=settings), Engine.load(bundle)):
        with engine:
            assert (engine.max_length, engine.labels) == (5, ["x", "y", "z"])
            result = engine.predict("the boats . the boats")
            assert result.truncated and list(result.scores) == ["x", "y", "z"]
            assert 'labels=["x", "y", "z"]' in engine.explain()
            assert "max_length=5" in engine.explain()
    # A bundle's settings are changed like a directory's.
    with Engine.load(bundle, settings={"max_length": 20, "labels": ["p", "q", "r"]}) as engine:
        assert (engine.max_length, engine.labels) == (20, ["p", "q", "r"])
    with Engine.load(bundle) as engine:
        assert engine.max_length == 5


WRONG = [
    ("pooling mean", {"poolin": "max"}, "no 'poolin'; there is pooling, normalize, truncate_dim"),
    ("pooling mean", {"top_k": 3}, "no 'top_k'; there is .*max_length"),
    ("pooling mean", {"labels": ["a"]}, "no 'labels'"),
    ("pooling mean", {"similarity": "dot"}, "no 'similarity'"),
    ("pooling mean", {"modules": []}, "no 'modules'"),
    ("pooling mean", {"subwords": "avg"}, "no 'subwords'"),
    ("pooling mean", {"pooling": "best"}, "mode should be one of mean, cls, max.* found 'best'"),
    ("pooling mean", {"pooling": ["mean", "words"]}, "a list of two or more of"),
    ("pooling mean", {"pooling": {"mode": "cls"}}, "mode should be"),
    ("pooling mean", {"pooling": "pooled"}, None),
    ("pooling mean", {"normalize": "yes"}, "normalize should be true or false"),
    ("pooling mean", {"truncate_dim": 0}, "truncate_dim should be a whole number from 1"),
    ("pooling mean", {"truncate_dim": 13}, "from 1 to the 12 numbers of a vector, found 13"),
    ("pooling mean", {"truncate_dim": True}, "truncate_dim should be"),
    ("pooling mean", {"max_length": 2}, "max_length should be a whole number from 3 to .* 20"),
    ("pooling mean", {"max_length": 21}, "from 3 to the model's 20 positions, found 21"),
    ("pooling mean", {"max_length": "9"}, "max_length should be"),
    ("pooling mean", {"default_prompt_name": "x"}, "default_prompt_name is 'x'"),
    ("pooling mean", {"prompts": {"x": 1}}, "prompts should be an object of texts"),
    ("dense Tanh", {"pooling": ["mean", "max"]}, "dense, takes 12 numbers, and gets 24"),
    ("dense Tanh", {"pooling": "words"}, "the pooling words gives several vectors"),
    ("cross 3", {"labels": ["a", "b"]}, "labels should be 3 different names"),
    ("cross 3", {"labels": ["a", "b", "b"]}, "labels should be 3 different names"),
    ("cross 3", {"labels": "abc"}, "labels should be 3 different names"),
    ("cross 3", {"activation": "swish"}, "activation should be one of softmax, identity"),
    ("cross 1", {"labels": ["a"]}, "no 'labels'"),
]


@pytest.mark.parametrize(("case", "settings", "message"), WRONG)
def test_settings_that_do_not_fit(write, tmp_path, case, settings, message) -> None:
    path = write(case)
    if message is None:  # such a model has a pooler
        Engine.load(path, settings=settings).close()
        return
    with pytest.raises(InvalidInputError, match=message):
        Engine.load(path, settings=settings)
    with pytest.raises(InvalidInputError, match=message):
        import_huggingface(path, tmp_path / "bundle", settings=settings)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("settings", [["pooling"], "pooling=max", {3: 4}])
def test_settings_that_are_no_dict(write, settings) -> None:
    with pytest.raises(InvalidTypeError, match="settings should be a dict of names and values"):
        Engine.load(write("pooling mean"), settings=settings)


def test_a_bundle_with_modules_that_do_not_fit(write, tmp_path, hugging) -> None:
    bundle = import_huggingface(write("dense Tanh"), tmp_path / "bundle")
    opened = Bundle.open(bundle)
    assert opened.manifest["pooling"]["modules"] == [
        {"kind": "dense", "activation": "tanh", "residual": False}
    ]
    for described, message in (
        ([], r"0\.bias, 0\.weight belong to no module"),
        ([{"kind": "sparse"}], "the module 0 should be one of dense, layer_norm, normalize"),
        ([{"kind": "dense"}], "should say activation, residual"),
        ([{"kind": "dense", "activation": "x", "residual": False}], "activation should be one of"),
        ([{"kind": "dense", "activation": "tanh", "residual": 0}], "residual should be one of"),
        ([{"kind": "normalize"}], "has the arrays"),
    ):
        opened.manifest["pooling"]["modules"] = described
        with pytest.raises(ModelFormatError, match=message):
            opened.modules()


def test_a_bundle_of_before(hugging, tmp_path) -> None:
    """What its manifest does not say has the meaning that it had; a model that needs none of the
    new settings makes the manifest of before."""
    bundle = import_huggingface(hugging.write(), tmp_path / "bundle")
    manifest = Bundle.open(bundle).manifest
    assert manifest["pooling"] == {"mode": "mean", "normalize": False}
    assert manifest["settings"] == {}
    assert Model.open(bundle).shown_settings() == {
        "pooling": "mean",
        "normalize": False,
        "truncate_dim": None,
        "include_prompt": True,
        "prompts": {},
        "default_prompt_name": None,
        "max_length": 16,
    }


def test_a_quantised_bundle_keeps_what_is_behind_the_pooling(write, tmp_path) -> None:
    case = "dense no bias, twice"
    bundle = import_huggingface(write(case), tmp_path / "bundle")
    quantize(bundle, tmp_path / "quantised", precision="bf16")
    with Engine.load(bundle) as engine, Engine.load(tmp_path / "quantised") as other:
        one, two = (ask(e, CASES[case], {}) for e in (engine, other))
        np.testing.assert_allclose(one, two, atol=0.05)


def test_an_engine_is_pickled_with_its_settings(write) -> None:
    settings = {"pooling": "max", "max_length": 5}
    engine = Engine.load(write("pooling mean"), settings=settings)
    with engine, pickle.loads(pickle.dumps(engine)) as other:
        assert other.max_length == 5
        text = "the boats . the boats"
        assert other.predict(text).vector.tolist() == engine.predict(text).vector.tolist()
