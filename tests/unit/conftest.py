"""What the unit tests share: texts, vocabularies, and a backend small enough to check by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from bertrt.backends.base import BACKENDS, Backend
from bertrt.batch import PackedBatch
from bertrt.engine import Batching, Engine
from bertrt.models.model import Model
from bertrt.tasks.settings import SETTINGS
from bertrt.text.load import load_tokenizer

SPECIAL = {
    "unknown_token": "[UNK]",
    "padding_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def vocabulary_json(tokens: list[str], **changes: object) -> dict[str, object]:
    """A vocabulary file's content, as GluonNLP's BERTVocab.to_json writes it."""
    identifiers = {key: value for key, value in SPECIAL.items() if key != "unknown_token"}
    content: dict[str, object] = {
        "idx_to_token": tokens,
        "token_to_idx": {token: i for i, token in enumerate(tokens)},
        "reserved_tokens": list(identifiers.values()),
        "unknown_token": "[UNK]",
        "identifiers_to_tokens": {**identifiers, "bos_token": None, "eos_token": None},
    }
    return content | changes


@pytest.fixture
def write_vocabulary(tmp_path: Path):
    """A function that writes a vocabulary file, and gives its path."""

    def write(tokens: list[str], **changes: object) -> Path:
        path = tmp_path / "vocab.json"
        path.write_text(json.dumps(vocabulary_json(tokens, **changes)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The directory of public corpora and vocabularies that BERTRT_TEST_DATA names."""
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory with corpora")
    return Path(directory)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# --- a model small enough to check by hand ----------------------------------------------------

ARCHITECTURE = {
    "hidden": 4,
    "layers": 1,
    "heads": 1,
    "head_dim": 4,
    "ffn": 4,
    "vocab_size": 11,
    "type_vocab_size": 2,
    "max_length": 12,
    "activation": "gelu_erf",
    "layer_norm_eps": 1e-12,
}
ROWS = {"sequence_output": "tokens", "masked_lm_outputs": "positions"}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "!", "a", "b"]


class TinyBackend(Backend):
    """A token's row is (id, type, position, length of its sequence); a sequence's is
    (first id, length, sum of ids, sum of types)."""

    name = "tiny"
    device = "cpu"
    precision = "fp32"
    provider = "numpy"

    def __init__(self, threads: int, pads: bool, settings: dict[str, object]) -> None:
        self.task = settings["task"]
        self.threads = threads
        self.pads = pads
        self.batches: list[PackedBatch] = []
        self.closed = 0
        self.before_run = lambda: None

    def run(self, batch, outputs):
        assert not self.closed
        self.batches.append(batch)
        self.before_run()
        lengths = batch.lengths
        positions = np.concatenate([np.arange(length) for length in lengths])
        rows = np.stack(
            [batch.token_ids, batch.token_types, positions, np.repeat(lengths, lengths)], axis=1
        ).astype(np.float32)
        ends = batch.cu_seqlens
        pooled = np.zeros((batch.seqs, 4), np.float32)
        for i, length in enumerate(lengths):
            own = rows[ends[i] : ends[i + 1]]
            if length:
                pooled[i] = own[0, 0], length, own[:, 0].sum(), own[:, 1].sum()
        values = {
            "sequence_output": rows,
            "pooled_output": pooled,
            "logits": pooled[:, 1:3],
            "next_sentence_classifier_output": pooled[:, 1:3],
            "masked_lm_outputs": batch.masked_positions,
        }
        if self.task == "tagging":
            values["logits"] = rows
        elif self.task == "question-answering":
            values["logits"] = rows[:, :2]
        elif self.task == "fill-mask":
            # Most of all the token whose id is the masked position
            values["masked_lm_outputs"] = np.eye(len(TOKENS))[batch.masked_positions]
        return {name: values[name] for name in outputs}

    def explain(self):
        return "embed  numpy"

    def close(self):
        self.closed += 1


class Tiny:
    """Loads engines of the tiny model, and keeps the backends that were made."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.backends: list[TinyBackend] = []
        self.pads = False
        self.batching: Batching | None = None
        self.settings = {
            "task": "embedding",
            "labels": None,
            "pooling": {"mode": "pooled", "normalize": False},
            "outputs": ["sequence_output", "pooled_output"],
            "rows": {},
            "settings": {},
            "tokenizer": True,
            "architecture": ARCHITECTURE,
            "max_length": 8,
        }

    def load_backend(self, model, *, device, precision, threads):
        self.backends.append(TinyBackend(threads, self.pads, self.settings))
        return self.backends[-1]

    def model(self, path) -> Model:
        chosen = self.settings
        tokenizer = None
        if chosen["tokenizer"]:
            (self.directory / "vocab.json").write_text(json.dumps(vocabulary_json(TOKENS)))
            tokenizer = load_tokenizer(
                {
                    "kind": "gluonnlp",
                    "file": "vocab.json",
                    "lower": True,
                    "max_length": chosen["max_length"],
                },
                self.directory,
            )
        plan = SimpleNamespace(
            precision=None,
            architecture=chosen["architecture"],
            outputs={name: name for name in chosen["outputs"]},
            rows={name: ROWS.get(name, "seqs") for name in chosen["outputs"]} | chosen["rows"],
            padding_of=lambda output: None,
            let_go=lambda: None,
        )
        return Model(
            path=Path(path),
            manifest=None,
            task=chosen["task"],
            labels=chosen["labels"],
            pooling=chosen["pooling"],
            settings={
                name: setting.default for name, setting in SETTINGS.get(chosen["task"], {}).items()
            }
            | chosen["settings"],
            tokenizer=tokenizer,
            symbol_path=None,
            params_path=None,
            onnx_path=None,
            golden=list,
            _read_plan=lambda: plan,
        )

    def load(self, threads: int | None = 1, **changes) -> Engine:
        self.settings |= changes
        return Engine.load("/models/tiny", backend="tiny", threads=threads, batching=self.batching)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny model behind the real engine: `tiny.load(...)` gives an engine."""
    made = Tiny(tmp_path)
    module = ModuleType("bertrt_tiny_backend")
    module.load = made.load_backend
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "tiny", module.__name__)
    monkeypatch.setattr(Model, "open", made.model)
    return made
