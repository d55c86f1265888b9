"""Makes huggingface_reference.json and .npz: what transformers answers for every class of model
that bertrt takes.

    pip install torch transformers
    python tests/data/make_huggingface_reference.py

Weights are drawn from their names, here and in the tests alike, so that only configurations, the
names and shapes of the tensors as transformers saves them, inputs and outputs are recorded.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
HEADS = {
    "Model": {},
    "ForSequenceClassification": {"num_labels": 3},
    "ForQuestionAnswering": {"num_labels": 2},
    "ForTokenClassification": {"num_labels": 5},
    "ForMaskedLM": {},
}
PRETRAINING = {"ForPreTraining": {}}
NEXT = {"ForNextSentencePrediction": {}}
SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 14,
    "type_vocab_size": 2,
}
DISTILBERT = {
    "vocab_size": 23,
    "dim": 12,
    "n_layers": 2,
    "n_heads": 3,
    "hidden_dim": 20,
    "max_position_embeddings": 14,
}
ROBERTA = SIZES | {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
ALBERT = SIZES | {"embedding_size": 7}
MPNET = {key: value for key, value in SIZES.items() if key != "type_vocab_size"}
# Class prefix -> the settings, and the heads with theirs.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "Bert": (SIZES | {"hidden_act": "gelu_new"}, HEADS | PRETRAINING | NEXT),
    "Roberta": (ROBERTA, HEADS),
    "XLMRoberta": (ROBERTA, HEADS),
    "Camembert": (ROBERTA | {"hidden_act": "relu"}, HEADS),
    "DistilBert": (DISTILBERT, HEADS),
    "Electra": (SIZES | {"embedding_size": 7}, HEADS | PRETRAINING),
    "Albert": (ALBERT, HEADS | PRETRAINING),
    "MPNet": (MPNET, HEADS),
}
CASES = {
    prefix + head: sizes | options
    for prefix, (sizes, heads) in FAMILIES.items()
    for head, options in heads.items()
}
# What is behind a colon tells cases of one class apart; "long" ones have longer sequences.
CASES |= {
    "AlbertModel:groups": ALBERT
    | {"num_hidden_layers": 5, "num_hidden_groups": 2, "inner_group_num": 2, "embedding_size": 12},
    "MPNetModel:long": MPNET
    | {"max_position_embeddings": 302, "relative_attention_num_buckets": 35},
}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a name: float32, wide enough that attention is far from uniform."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = 1.6 * random.random(shape) - 0.8
    norm = name.endswith("weight") and len(shape) == 1
    return (values + norm).astype(np.float32)


def batch(vocab_size: int, length: int = 11) -> dict[str, np.ndarray]:
    """Ragged token ids; none is a padding token, which RoBERTa gives a position of its own."""
    random = np.random.default_rng(5)
    ids = random.integers(3, vocab_size, (3, length))
    types = np.where(np.arange(length) < 4, 0, 1) * np.ones((3, 1), np.int64)
    return {"token_ids": ids, "token_types": types, "valid_length": np.array([length, 1, 6])}


def case_batch(case: str, vocab_size: int = 23) -> dict[str, np.ndarray]:
    """The batch of a case."""
    return batch(vocab_size, 300 if case.endswith(":long") else 11)


def answers(path: Path, architecture: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What transformers' class gives for a directory, by the names of bertrt's outputs: float32,
    zeros at padded positions. Logits of the vocabulary are those at every position."""
    import torch
    import transformers

    net = getattr(transformers, architecture).from_pretrained(path, dtype=torch.float32).eval()
    valid = np.arange(inputs["token_ids"].shape[1]) < inputs["valid_length"][:, None]
    arguments = {"attention_mask": torch.tensor(valid.astype(np.int64))}
    # RoBERTa tells padding by its id.
    padding = net.config.pad_token_id
    arguments["input_ids"] = torch.tensor(np.where(valid, inputs["token_ids"], padding))
    if getattr(net.config, "type_vocab_size", 1) > 1:
        arguments["token_type_ids"] = torch.tensor(inputs["token_types"])
    with torch.no_grad():
        found = {name: value.numpy() for name, value in net(**arguments).items()}
    if architecture.endswith("ForQuestionAnswering"):
        found = {"logits": np.stack([found["start_logits"], found["end_logits"]], axis=-1)}
    if architecture == "ElectraForPreTraining":
        found = {"logits": found["logits"][..., None]}
    logits = {
        "ForMaskedLM": "masked_lm_outputs",
        "ForNextSentencePrediction": "next_sentence_classifier_output",
    }
    names = {
        "last_hidden_state": "sequence_output",
        "pooler_output": "pooled_output",
        "prediction_logits": "masked_lm_outputs",
        "seq_relationship_logits": "next_sentence_classifier_output",
        "sop_logits": "next_sentence_classifier_output",
        "logits": next((n for end, n in logits.items() if architecture.endswith(end)), "logits"),
    }
    outputs = {names[name]: value for name, value in found.items()}
    return {
        name: np.where(valid[..., None], value, 0) if value.ndim == 3 else value
        for name, value in outputs.items()
    }


def save(path: Path, architecture: str, settings: dict[str, Any], shard: str | None = None) -> None:
    """Have transformers write the directory of a model, with the weights of `draw`; in files of at
    most the size `shard`."""
    import torch
    import transformers
    from safetensors import numpy as safetensors

    kind = getattr(transformers, architecture)
    padded = ("oberta", "Camembert", "MPNet")
    options = {"pad_token_id": 1} if any(part in architecture for part in padded) else {}
    torch.manual_seed(0)
    size = {} if shard is None else {"max_shard_size": shard}
    kind(kind.config_class(**settings | options)).save_pretrained(path, **size)
    for file in path.glob("*.safetensors"):
        tensors = safetensors.load_file(file)
        drawn = {name: draw(name, array.shape) for name, array in tensors.items()}
        safetensors.save_file(drawn, file, metadata={"format": "pt"})


def main() -> None:
    """Write both files."""
    from safetensors import numpy as safetensors

    cases, arrays = {}, {}
    for case, settings in CASES.items():
        architecture = case.partition(":")[0]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            save(path, architecture, settings)
            config = json.loads((path / "config.json").read_text())
            tensors = safetensors.load_file(path / "model.safetensors")
            found = answers(path, architecture, case_batch(case, settings["vocab_size"]))
        cases[case] = {
            "config": config,
            "tensors": {name: list(array.shape) for name, array in tensors.items()},
        }
        for name, value in found.items():
            arrays[f"{case}/{name}"] = value.astype(np.float32)
    text = json.dumps(cases, separators=(",", ":")).replace('},"', '},\n"')
    (HERE / "huggingface_reference.json").write_text(text + "\n")
    np.savez_compressed(HERE / "huggingface_reference.npz", **arrays)


if __name__ == "__main__":
    main()
