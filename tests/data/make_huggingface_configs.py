"""Makes huggingface_configs.json: what transformers makes of configurations as people have them.

    pip install torch transformers
    python tests/data/make_huggingface_configs.py

A case is a model of make_huggingface_reference.py, with its weights, and a config.json that was
changed. Recorded are the outputs of transformers' AutoModel classes, the names of its labels and
the scores of its pipeline; or that it refuses.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
LEFT_OUT = "left out"
MODEL, CLASSIFIER, TAGGER = "Model", "ModelForSequenceClassification", "ModelForTokenClassification"
MASKED, CAUSAL = "ModelForMaskedLM", "ModelForCausalLM"


class Case(NamedTuple):
    """A changed model: the class that wrote it, the changes to its config.json (`LEFT_OUT`: the
    setting is), the class to read it by behind "Auto", shapes of further tensors or of others."""

    architecture: str
    config: dict[str, Any]
    auto: str = MODEL
    tensors: Mapping[str, tuple[int, ...]] = MappingProxyType({})


def classifier(tensors: Any = None, **config: Any) -> Case:
    return Case("BertForSequenceClassification", config, CLASSIFIER, tensors or {})


ONE = {"classifier.weight": (1, 12), "classifier.bias": (1,)}
NO_NAMES = {"id2label": LEFT_OUT, "label2id": LEFT_OUT}
CASES = {
    "tensorflow": Case("BertModel", {"architectures": ["TFBertModel"]}),
    "jax": Case("BertModel", {"architectures": ["FlaxBertModel"]}),
    "own class": Case("BertModel", {"architectures": ["BertBiEncoder"]}),
    "sentence-transformers": Case("BertModel", {"architectures": ["SentenceTransformer"]}),
    "no class": Case("BertModel", {"architectures": []}),
    "class without its head": Case(
        "BertModel", {"architectures": ["BertForSequenceClassification"]}
    ),
    "other family": Case("XLMRobertaModel", {"architectures": ["RobertaModel"]}),
    "other family's head": Case(
        "DistilBertForTokenClassification",
        {"architectures": ["BertForTokenClassification"]},
        TAGGER,
    ),
    "language model": Case("BertForMaskedLM", {"architectures": ["BertLMHeadModel"]}, CAUSAL),
    "causal class": Case("RobertaForMaskedLM", {"architectures": ["RobertaForCausalLM"]}, CAUSAL),
    "defaults": Case(
        "BertModel",
        dict.fromkeys(("type_vocab_size", "layer_norm_eps", "hidden_act"), LEFT_OUT),
    ),
    "vocabulary left out": Case("BertModel", {"vocab_size": LEFT_OUT}),
    "BERT's names": Case(
        "DistilBertModel",
        {
            "dim": LEFT_OUT,
            "n_layers": LEFT_OUT,
            "n_heads": LEFT_OUT,
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
        },
    ),
    "both names": Case("DistilBertModel", {"dim": 24, "hidden_size": 12}),
    "fewer layers": Case("BertModel", {"num_hidden_layers": 1}),
    "projection for nothing": Case(
        "ElectraModel",
        {"embedding_size": 12},
        tensors={
            "embeddings.word_embeddings.weight": (23, 12),
            "embeddings.position_embeddings.weight": (14, 12),
            "embeddings.token_type_embeddings.weight": (2, 12),
            "embeddings.LayerNorm.weight": (12,),
            "embeddings.LayerNorm.bias": (12,),
        },
    ),
    "tensors of a loss": classifier({"loss_fct.weight": (3,)}),
    "a head that nobody names": Case(
        "BertForSequenceClassification", {"architectures": ["BertModel"]}
    ),
    "a head and no class": Case("BertForSequenceClassification", {"architectures": None}),
    "harmless settings": Case(
        "BertModel", {"chunk_size_feed_forward": 11, "_name_or_path": 3, "torch_dtype": "float32"}
    ),
    "same names": Case(
        "BertForTokenClassification", {"id2label": dict(enumerate("OOXYO"))}, TAGGER
    ),
    "same names of classes": classifier(id2label={"0": "no", "1": "yes", "2": "no"}),
    "names of every kind": classifier(id2label={"0": "", "1": 1, "2": "two"}),
    "numbers as they are written": classifier(id2label={"02": "c", "0": "a", "1": "b"}),
    "numbers with a gap": classifier(id2label={"0": "a", "1": "b", "3": "c"}),
    "names without numbers": classifier(id2label={"a": 0, "b": 1, "c": 2}),
    "a list of names": classifier(id2label=["a", "b", "c"]),
    "only numbers of names": classifier(
        id2label=LEFT_OUT, label2id={"a": 0, "b": 1, "c": 2}, num_labels=3
    ),
    "only num_labels": classifier(**NO_NAMES, num_labels=3),
    "num_labels and no names": classifier(id2label=None, label2id=None, num_labels=3),
    "nothing about labels": classifier(**NO_NAMES),
    "num_labels overrules": classifier(id2label={"0": "a", "1": "b"}, num_labels=3),
    "num_labels of a wrong type": classifier(**NO_NAMES, num_labels="3"),
    "several labels": classifier(problem_type="multi_label_classification"),
    "one label of several": classifier(problem_type="single_label_classification"),
    "several numbers": classifier(problem_type="regression"),
    "one number": classifier(ONE, **NO_NAMES, num_labels=1, problem_type="regression"),
    "one label": classifier(
        ONE, **NO_NAMES, num_labels=1, problem_type="multi_label_classification"
    ),
    "one of one": classifier(
        ONE, **NO_NAMES, num_labels=1, problem_type="single_label_classification"
    ),
    "a size that is text": Case("BertModel", {"hidden_size": "12"}),
    "a size that is null": Case("BertModel", {"num_hidden_layers": None}),
    "a size that is true": Case("BertModel", {"type_vocab_size": True}),
    "an epsilon that is text": Case("BertModel", {"layer_norm_eps": "1e-12"}),
    "an activation that is a number": Case("BertModel", {"hidden_act": 3}),
    "a switch that is text": Case("BertForMaskedLM", {"tie_word_embeddings": "yes"}, MASKED),
}


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config.json with a case's changes."""
    config = config | changes
    return {name: value for name, value in config.items() if value is not LEFT_OUT}


def record(path: Path, auto: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """What transformers makes of a directory."""
    import torch
    import transformers

    try:
        net = getattr(transformers, f"Auto{auto}").from_pretrained(path, dtype=torch.float32)
    except Exception as error:
        return {"refused": type(error).__name__}
    config = net.eval().config
    valid = np.arange(inputs["token_ids"].shape[1]) < inputs["valid_length"][:, None]
    arguments = {"attention_mask": torch.tensor(valid.astype(np.int64))}
    ids = np.where(valid, inputs["token_ids"], config.pad_token_id)
    arguments["input_ids"] = torch.tensor(ids)
    if getattr(config, "type_vocab_size", 1) > 1:
        arguments["token_type_ids"] = torch.tensor(inputs["token_types"])
    with torch.no_grad():
        found = net(**arguments)[0].numpy()
    if found.ndim == 3:
        found = np.where(valid[..., None], found, 0)
    result = {"output": np.round(found.astype(np.float64), 7).tolist()}
    if auto in (CLASSIFIER, TAGGER):
        result["labels"] = [config.id2label.get(i) for i in range(config.num_labels)]
    if auto == CLASSIFIER and None not in result["labels"]:
        pipeline = transformers.TextClassificationPipeline.__new__(
            transformers.TextClassificationPipeline
        )
        pipeline.model = net
        result["scores"] = [
            pipeline.postprocess({"logits": torch.tensor(row[None])}, top_k=None, _legacy=False)
            for row in found
        ]
    return result


def main() -> None:
    """Write the file."""
    from safetensors import numpy as safetensors

    spec = importlib.util.spec_from_file_location(
        "reference", HERE / "make_huggingface_reference.py"
    )
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    written = json.loads((HERE / "huggingface_reference.json").read_text())
    recorded = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            base = written[case.architecture]
            config = changed(base["config"], case.config)
            (path / "config.json").write_text(json.dumps(config))
            shapes = base["tensors"] | dict(case.tensors)
            tensors = {name: reference.draw(name, tuple(shape)) for name, shape in shapes.items()}
            safetensors.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
            recorded[name] = record(path, case.auto, reference.batch(23))
            print(name, {k: v for k, v in recorded[name].items() if k != "output"})
    text = json.dumps(recorded, separators=(",", ":")).replace('},"', '},\n"')
    (HERE / "huggingface_configs.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
