"""ALBERT and MPNet: what they have that no other family has. Their numbers are among those of
``test_huggingface_classes.py``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from bertrt import Answer, Embedding, Engine, FillMask, Tagging, _native
from bertrt.backends import native
from bertrt.bench.arithmetic import weight_bytes
from bertrt.bench.engines import engine_module
from bertrt.bench.engines.base import Inputs
from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.huggingface.distances import distance_bias
from bertrt.models.huggingface.model import HuggingFaceModel
from bertrt.models.model import Model
from bertrt.plan.quantized import product_steps, state_precisions, store_quantized

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "huggingface_reference.json").read_text())
spec = importlib.util.spec_from_file_location(
    "make_huggingface_reference", DATA / "make_huggingface_reference.py"
)
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def write(hugging, case: str, config=None, changes=None, **options) -> Path:
    """A recorded case, with changes; a setting or a tensor that becomes None is left out."""
    tensors = {
        name: reference.draw(name, tuple(shape)) for name, shape in CASES[case]["tensors"].items()
    } | (changes or {})
    settings = CASES[case]["config"] | (config or {})
    return hugging.write(
        {name: value for name, value in settings.items() if value is not None},
        {name: array for name, array in tensors.items() if array is not None},
        **options,
    )


# --- ALBERT -----------------------------------------------------------------------------------


def test_layers_read_the_weights_of_their_group(hugging) -> None:
    """Five layers in two groups, each of two: transformers goes to int(layer / (5 / 2))."""
    plan = HuggingFaceModel.open(write(hugging, "AlbertModel:groups")).plan
    found = [step.weights["weight"][0] for step in plan.steps if step.op == "qkv_linear"]
    assert found == [
        f"encoder.albert_layer_groups.{group}.albert_layers.{inner}.attention.query.weight"
        for group in (0, 0, 0, 1, 1)
        for inner in (0, 1)
    ]
    assert plan.architecture["layers"] == 10


def test_many_layers_may_share(hugging) -> None:
    """More than there are tensors."""
    plan = HuggingFaceModel.open(write(hugging, "AlbertModel", {"num_hidden_layers": 48})).plan
    assert plan.architecture["layers"] == 48 > len(plan.weights)


def test_the_activation_that_is_left_out(hugging) -> None:
    """transformers' AlbertConfig takes gelu_new."""
    plan = HuggingFaceModel.open(write(hugging, "AlbertModel", {"hidden_act": None})).plan
    assert plan.architecture["activation"] == "gelu_tanh"


def test_a_projection_between_equal_widths(hugging) -> None:
    path = write(hugging, "AlbertModel:groups")
    steps = [step.name for step in HuggingFaceModel.open(path).plan.steps]
    assert steps[1] == "projection"


def test_lower_precision_is_stored_once(hugging) -> None:
    """Steps that share a matrix share what it becomes; one that stays in fp32 keeps its own."""
    plan = Model.open(write(hugging, "AlbertModel:groups")).plan()
    steps = [step.name for step in product_steps(plan)]
    for precision in ("bf16", "int8"):
        low = store_quantized(state_precisions(plan, dict.fromkeys(steps, precision)))
        names = [step.weights["weight"] for step in low.steps if step.op == "qkv_linear"]
        assert len(set(names)) == 4 and len(names) == 10
        assert all(name.endswith(f".{precision}") for own in names for name in own)
        more = {"bf16": 0, "int8": 1}[precision] * (1 + 4 * 6)  # scales; the projection's too
        assert len(low.weights) == len(plan.weights) + more
    mixed = dict.fromkeys(steps, "int8") | {"layer1.ffn": "fp32", "layer3.ffn": "bf16"}
    low = store_quantized(state_precisions(plan, mixed))
    found = {step.name: step.weights["weight"] for step in low.steps if step.name.endswith(".ffn")}
    (name,) = next(step for step in plan.steps if step.name == "layer1.ffn").weights["weight"]
    assert found["layer1.ffn"] == (name,)
    assert found["layer3.ffn"] == (f"{name}.bf16",)
    assert found["layer5.ffn"] == (f"{name}.int8",)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_plan_that_is_stored_so_gives_the_same_bits(hugging, precision) -> None:
    plan = Model.open(write(hugging, "AlbertModel:groups")).plan()
    stated = state_precisions(plan, dict.fromkeys([s.name for s in product_steps(plan)], precision))
    batch = reference.case_batch("AlbertModel:groups")
    ids = np.concatenate([batch["token_ids"][0], batch["token_ids"][2, :6]]).astype(np.int32)
    ends = np.array([0, 11, 17], np.int32)
    found = []
    for each in (stated, store_quantized(stated)):
        arrays = {name: np.ascontiguousarray(c.array) for name, c in each.weights.items()}
        model = _native.Model(each.to_engine(), arrays, "fp32", 1)
        engine = _native.Engine(model, 2, False)
        answer = engine.run(ids, np.zeros_like(ids), ends, None, ["sequence_output"], None)
        found.append(answer["sequence_output"])
    np.testing.assert_array_equal(*found)


def test_the_order_of_sentences(hugging) -> None:
    path = write(hugging, "AlbertForPreTraining")
    assert HuggingFaceModel.open(path).task == "fill-mask"
    found = HuggingFaceModel.open(path, "next-sentence")
    assert found.plan.rows["next_sentence_classifier_output"] == "seqs"
    three = {
        "sop_classifier.classifier.weight": np.zeros((3, 12), np.float32),
        "sop_classifier.classifier.bias": np.zeros(3, np.float32),
    }
    path = write(hugging, "AlbertForPreTraining", None, three, name="three")
    with pytest.raises(ModelFormatError, match=r"sop_classifier.* is \(3, 12\) and should be \(2"):
        HuggingFaceModel.open(path)


# --- MPNet ------------------------------------------------------------------------------------


def test_buckets_of_distances() -> None:
    """Where they begin, as transformers' relative_position_bucket has it."""
    begins = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    table = np.arange(64, dtype=np.float32).reshape(32, 2)
    found = distance_bias(table, 600)
    assert found.shape == (2, 1199) and found.dtype == np.float32 and found.flags.c_contiguous
    for distance in range(600):
        bucket = sum(begin <= distance for begin in begins) - 1
        assert found[:, 599 - distance].tolist() == [2 * bucket, 2 * bucket + 1]
        behind = 2 * (bucket + 16 * (distance > 0))
        assert found[:, 599 + distance].tolist() == [behind, behind + 1]


def test_layers_read_one_table(hugging) -> None:
    plan = HuggingFaceModel.open(write(hugging, "MPNetModel")).plan
    name = "encoder.relative_attention_bias.weight"
    steps = [step.weights for step in plan.steps if step.op == "attention"]
    assert steps == [{"bias": (name,)}] * 2
    assert plan.weights[name].array.shape == (3, 23)
    assert plan.inputs["token_types"] is None
    assert plan.architecture["max_length"] == 12


def test_positions_begin_behind_a_padding_token_that_is_always_1(hugging) -> None:
    """transformers' MPNetEmbeddings asks no setting."""
    path = write(hugging, "MPNetModel", {"pad_token_id": 0})
    table = HuggingFaceModel.open(path).plan.weights["embeddings.position_embeddings.weight"]
    drawn = reference.draw("embeddings.position_embeddings.weight", (14, 12))
    np.testing.assert_array_equal(table.array, drawn[2:])


def test_engines_share_weights_beside_a_table_that_is_in_no_file(hugging) -> None:
    path = write(hugging, "MPNetModel")
    first, second = (native._identity(Model.open(path).plan()) for _ in range(2))
    assert first == second is not None
    other = write(
        hugging,
        "MPNetModel",
        None,
        {"encoder.relative_attention_bias.weight": np.zeros((32, 3), np.float32)},
        name="other",
    )
    assert native._identity(Model.open(other).plan()) != first


def test_sentence_transformers_directory(hugging) -> None:
    """As all-mpnet-base-v2 has it: the encoder without prefix and head of a model that has one,
    a tokenizer of BERT's pieces with RoBERTa's special tokens, a mean, and a normalisation."""
    tensors = {
        name.removeprefix("mpnet."): None if name.startswith("lm_head.") else array
        for name, shape in CASES["MPNetForMaskedLM"]["tensors"].items()
        for array in [reference.draw(name, tuple(shape))]
    }
    renamed = dict.fromkeys(CASES["MPNetForMaskedLM"]["tensors"]) | tensors
    path = write(
        hugging,
        "MPNetForMaskedLM",
        None,
        renamed,
        vocab=False,
        modules=hugging.modules("Transformer", "Pooling", "Normalize"),
        pooling={"word_embedding_dimension": 12, "pooling_mode_mean_tokens": True},
        sentence_bert_config={"max_seq_length": 10, "do_lower_case": False},
    )
    words = ("<s>", "<pad>", "</s>", "[UNK]", "the", "boat", "##s", "sea", "<mask>")
    vocab = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.add_special_tokens(["<s>", "<pad>", "</s>", "[UNK]", "<mask>"])
    made.save(str(path / "tokenizer.json"))
    with Engine.load(path) as engine:
        assert (engine.task, engine.max_length) == ("embedding", 10)
        assert engine.tokenize("the boats").ids.tolist() == [0, 4, 5, 6, 2]
        assert engine.tokenize(("the", "sea")).ids.tolist() == [0, 4, 2, 2, 7, 2]
        found = engine.predict(["the boats", "sea"])
        rows = engine.run([[0, 4, 5, 6, 2]])["sequence_output"][0]
    assert all(isinstance(each, Embedding) for each in found)
    mean = rows.astype(np.float64).mean(0)
    np.testing.assert_allclose(found[0].vector, mean / np.linalg.norm(mean), atol=1e-6)


# --- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["Albert", "MPNet"])
def test_heads_answer(hugging, family) -> None:
    def load(head: str) -> Engine:
        return Engine.load(write(hugging, f"{family}{head}", name=head))

    # A vocabulary of BERT's, whose second token is the one for padding.
    with load("ForQuestionAnswering") as engine:
        found = engine.predict(("the", "the  the the"))
        assert isinstance(found, Answer)
    with load("ForTokenClassification") as engine:
        assert isinstance(engine.predict("the boats sea"), Tagging)
    with load("ForMaskedLM") as engine:
        assert isinstance(engine.predict("the [MASK]"), FillMask)
    with load("ForSequenceClassification") as engine:
        assert engine.predict("the sea").label in engine.labels


@pytest.mark.parametrize(
    ("architecture", "bias"),
    [("AlbertForMaskedLM", "predictions"), ("MPNetForMaskedLM", "lm_head")],
)
def test_what_checkpoints_have_besides(hugging, architecture, bias) -> None:
    """Both names of the decoder's bias, a copy of the table, and a pooler that nothing reads."""
    prefix = architecture.partition("For")[0].lower()
    words = f"{prefix}.embeddings.word_embeddings.weight"
    shapes = CASES[architecture]["tensors"]
    pooler = "pooler" if prefix == "albert" else "pooler.dense"
    changes = {
        f"{bias}.decoder.weight": reference.draw(words, tuple(shapes[words])),
        f"{bias}.decoder.bias": reference.draw(f"{bias}.bias", (23,)),
        f"{prefix}.{pooler}.weight": np.zeros((12, 12), np.float32),
        f"{prefix}.{pooler}.bias": np.zeros(12, np.float32),
    }
    found = HuggingFaceModel.open(write(hugging, architecture, None, changes))
    assert found.origin["left_out"] == [f"{pooler}.weight", f"{pooler}.bias"]
    with pytest.raises(ModelFormatError, match=rf"{bias}\.decoder\.weight differs from"):
        changes[f"{bias}.decoder.weight"] = changes[f"{bias}.decoder.weight"] + 1
        HuggingFaceModel.open(write(hugging, architecture, None, changes, name="differ"))


@pytest.mark.parametrize("architecture", ["AlbertForPreTraining", "AlbertForMaskedLM"])
def test_an_encoder_of_a_pretrained_model(hugging, architecture) -> None:
    found = HuggingFaceModel.open(write(hugging, architecture), "embedding")
    assert found.task == "embedding"
    assert "predictions.bias" in found.origin["left_out"]


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("AlbertModel", {"embedding_size": 8}, "by vocab_size and embedding_size"),
        ("AlbertModel", {"num_hidden_groups": 3}, r"missing: encoder\.albert_layer_groups\.1\."),
        ("AlbertModel", {"inner_group_num": 2}, r"missing: .*\.albert_layers\.1\."),
        ("AlbertModel", {"inner_group_num": 0}, "inner_group_num should be a whole number"),
        ("AlbertModel", {"num_hidden_groups": "x"}, "num_hidden_groups should be a whole number"),
        ("AlbertModel", {"num_hidden_layers": 1 << 30}, "num_hidden_layers is 1073741824 and"),
        ("MPNetModel", {"relative_attention_num_buckets": 31}, "is 31, and there are 32 buckets"),
        ("MPNetModel", {"relative_attention_num_buckets": 33}, "by relative_attention_num_buckets"),
        ("MPNetModel", {"relative_attention_num_buckets": "x"}, "should be a whole number"),
        ("MPNetModel", {"max_position_embeddings": 15}, "by max_position_embeddings and"),
    ],
)
def test_configurations_that_do_not_fit(hugging, case, change, message) -> None:
    path = write(hugging, case, change)
    with pytest.raises(ModelFormatError, match=message) as found:
        Engine.load(path)
    assert str(path) in str(found.value)


# --- beside other engines ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["onnxruntime", "ctranslate2"])
def test_peers_that_have_no_distances(hugging, tmp_path, name) -> None:
    if name == "onnxruntime":
        pytest.importorskip("onnx", exc_type=ImportError)
    model = Model.open(write(hugging, "MPNetModel"))
    with pytest.raises(UnsupportedModelError, match=r"bias by distance|no encoder of this kind"):
        engine_module(name).convert(model, "fp32", str(tmp_path), [])


@pytest.mark.parametrize("case", ["MPNetModel", "AlbertModel:groups"])
def test_a_peer_that_runs_both(hugging, case) -> None:
    pytest.importorskip("torch", exc_type=ImportError)
    path = write(hugging, case)
    batch = reference.case_batch(case)
    runner = engine_module("torch").load(str(path), "torch", "fp32", 1, "")
    found = runner.outputs(runner.run(runner.prepare(Inputs(**batch))))["sequence_output"]
    with np.load(DATA / "huggingface_reference.npz") as archive:
        expected = archive[f"{case}/sequence_output"]
    valid = np.arange(11) < batch["valid_length"][:, None]
    np.testing.assert_allclose(found[valid], expected[valid], atol=2e-5)


def test_shared_weights_are_read_once(hugging) -> None:
    plan = Model.open(write(hugging, "AlbertModel:groups")).plan()
    layer = 4 * 12 * 12 + 2 * 12 * 20
    assert weight_bytes(plan, "fp32") == 4 * (12 * 12 + 4 * layer + 12 * 12)
