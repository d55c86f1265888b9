"""Texts of lengths like those of a data set, or long-tailed ones."""

from __future__ import annotations

import math
import random
from pathlib import Path

__all__ = ["like_sst2", "long_tailed", "read"]

# Below, a cache would answer most requests.
FEWEST = 64

# Words of the sentences of SST-2's validation set: deciles, which a length is drawn between.
_DECILES = (2, 8, 11, 14, 16, 19, 22, 24, 28, 32, 47)
_WORDS = [
    "a",
    "the",
    "of",
    "and",
    "to",
    "is",
    "in",
    "that",
    "it",
    "as",
    "with",
    "for",
    "its",
    "an",
    "film",
    "movie",
    "this",
    "by",
    "be",
    "on",
    "you",
    "but",
    "not",
    "have",
    "are",
    "one",
    "more",
    "than",
    "at",
    "about",
    "so",
    "or",
    "from",
    "has",
    "all",
    "his",
    "like",
    "good",
    "story",
    "who",
    "out",
    "up",
    "too",
    "most",
    "into",
    "comedy",
    "just",
    "even",
    "characters",
    "funny",
    "there",
    "does",
    "life",
    "way",
    "time",
    "make",
    "what",
    "much",
    "little",
    "work",
    "no",
    "will",
    "love",
    "makes",
    "well",
    "some",
    "bad",
    "performances",
    "best",
    "if",
    "only",
    "never",
    "director",
    "new",
    "us",
    "enough",
    "drama",
    "your",
    "something",
    "heart",
    "really",
    "any",
    "comes",
    "against",
    "however",
    "often",
    "charming",
    "journey",
    "thriller",
    "moments",
    "humour",
    "audience",
    "picture",
    "script",
    "cast",
    "human",
    "feel",
    "every",
    "other",
    "family",
    "old",
    "kind",
    "sense",
    "own",
    "tale",
    "would",
    "without",
    "plot",
    "while",
    "visual",
    "beautifully",
    "predictable",
    "unexpectedly",
    "affecting",
    "compelling",
]


def _text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=max(1, words)))


def like_sst2(count: int, seed: int = 0) -> list[str]:
    """Texts with as many words as SST-2's sentences have."""
    chance = random.Random(seed)

    def words() -> int:
        at = chance.random() * 10
        low, high = _DECILES[int(at)], _DECILES[int(at) + 1]
        return round(low + (at - int(at)) * (high - low))

    return [_text(chance, words()) for _ in range(count)]


def long_tailed(count: int, longest: int = 254, seed: int = 1) -> list[str]:
    """Texts of so many words as a log-normal distribution has it, of median 30 and with a tenth
    above 108; `longest` at most."""
    chance = random.Random(seed)
    return [
        _text(chance, min(longest, round(chance.lognormvariate(math.log(30), 1.0))))
        for _ in range(count)
    ]


def read(path: Path) -> list[str]:
    """A file's texts, one a line: its first column, where tabs part some and a head names them.

    Raises SystemExit where that is no text but a label, say, of which there are few.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    if "\t" in lines[0]:
        lines = lines[1:]
    found = list(dict.fromkeys(line.split("\t")[0].strip() for line in lines if line.strip()))
    if len(found) < FEWEST:
        raise SystemExit(
            f"{path} has {len(found)} different texts ({', '.join(map(repr, found[:3]))}, ...); at "
            f"least {FEWEST} are needed, one a line, or in the first column"
        )
    return found
