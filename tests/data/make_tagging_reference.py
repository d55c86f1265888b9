"""Makes tagging_reference.json: what transformers' token-classification pipeline finds in texts.

    pip install torch transformers
    python tests/data/make_tagging_reference.py

Weights are those that `make_huggingface_reference.draw` makes of their names.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from make_huggingface_reference import SIZES, save

HERE = Path(__file__).parent
AGGREGATIONS = ("first", "average", "max", "simple")
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(char for char in "abcdefghijklmnopqrstuvwxyzPF0123456789()\".,/-«»'!"),
    *(f"##{char}" for char in "abcdefghijklmnopqrstuvwxyz0123456789"),
    *("paris", "Paris", "France", "the", "cat", "is", "##is", "##ed", "東", "京", "é", "##é"),
]
TEXTS = [
    *("", " ", "Paris", "(Paris)", 'the cat is in "Paris".', "cat/Paris", "«Paris»"),
    *("Paris-France, the Parised cat!", "Paris\u00a0France\tis", "  cat   Paris  "),
    *("東京 Paris", "東京Paris東", "é\u0130n caf\u00e9 ca\u0301fe", "\u0130\u0130 Paris\u0130"),
    *("cat \U0001f642\U0001f642 Paris\U0001f642 is", "a\u200bb \u00ad cat", "don't l'Paris 3.14"),
    *("the U.S. cat ... is", "parisparisparis catis", "\u039f\u0394\u039f\u03a3 Paris"),
]
# By their names: whether text is lower-cased, and the labels
CASES: dict[str, tuple[bool, list[str]]] = {
    "uncased, BIO": (True, ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]),
    "cased, IO and bare": (False, ["LOC", "O", "I-LOC", "x-y", "PER"]),
    "uncased, no names": (True, [f"LABEL_{i}" for i in range(5)]),
}


def config(lower: bool, labels: list[str]) -> dict[str, Any]:
    """What a case's configuration says beside the defaults."""
    return SIZES | {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 64,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def write(path: Path, lower: bool, labels: list[str]) -> None:
    """Have transformers write the directory of a case."""
    import transformers

    save(path, "BertForTokenClassification", config(lower, labels))
    (path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    tokenizer = transformers.BertTokenizer.from_pretrained(
        path, do_lower_case=lower, model_max_length=64
    )
    tokenizer.save_pretrained(path)


def find(path: Path) -> dict[str, list[list[tuple[str, int, int, float]]]]:
    """By aggregation, of each text the entities: label, start, end, score."""
    import transformers

    return {
        aggregation: [
            [
                (
                    found["entity_group"],
                    found["start"],
                    found["end"],
                    round(float(found["score"]), 6),
                )
                for found in pipeline(text)
            ]
            for text in TEXTS
        ]
        for aggregation in AGGREGATIONS
        for pipeline in [
            transformers.pipeline(
                "token-classification",
                model=str(path),
                tokenizer=str(path),
                aggregation_strategy=aggregation,
            )
        ]
    }


def main() -> None:
    """Write the file."""
    cases = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory)
            write(path, *case)
            # Loaded here: a package of the outer ring.
            from safetensors import numpy as safetensors

            tensors = safetensors.load_file(path / "model.safetensors")
            cases[name] = {
                "config": json.loads((path / "config.json").read_text()),
                "tensors": {tensor: list(array.shape) for tensor, array in tensors.items()},
                "found": find(path),
            }
    text = json.dumps(cases, separators=(",", ":")).replace("]],[[", "]],\n[[")
    (HERE / "tagging_reference.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
