"""GluonNLP's files of a vocabulary and of byte-level BPE's merges, read and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from bertrt.errors import ModelFormatError
from bertrt.host.files import LARGEST_VOCABULARY, read_object, read_text

__all__ = ["BYTES", "Vocabulary", "read_merges"]

_LARGEST_MERGES = 16 << 20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A GluonNLP ``BERTVocab``, or RoBERTa's ``Vocab``, as its JSON file holds it.

    Attributes:
        token_to_idx: every token with its id; the ids are 0 to the number of tokens - 1.
        unknown: the token for a word outside the vocabulary.
        cls, sep: the tokens that open a sequence and close a text; RoBERTa's begin and end of a
            sentence.
        mask: the token for a word to be guessed; None where there is none.
    """

    token_to_idx: dict[str, int]
    unknown: str
    cls: str
    sep: str
    mask: str | None = None

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read and check a vocabulary file.

        Files of GluonNLP before 0.7, with the special tokens at the top level, are read too.

        Raises:
            ModelFormatError: not JSON (truncated, for example), not a vocabulary, ids twice or
                left out, or a special token that is missing.
        """
        try:
            data = read_object(path, limit=LARGEST_VOCABULARY)
        except ModelFormatError as error:
            raise ModelFormatError(f"not a vocabulary: {error}") from None
        tokens = _read_tokens(path, data)
        special = {key: value for key, value in data.items() if key.endswith("_token")}
        identifiers = data.get("identifiers_to_tokens") or {}
        if not isinstance(identifiers, dict):
            raise ModelFormatError(f"{path}: identifiers_to_tokens is not an object")
        special.update(identifiers)

        def token(*names: str) -> str:
            # The last name with a token counts as absent too if that token has no id.
            found = next((special[name] for name in names if special.get(name) is not None), None)
            if not isinstance(found, str) or found not in tokens:
                raise ModelFormatError(
                    f"{path}: the vocabulary's {names[0]} is {found!r}; expected a token with an id"
                )
            return found

        mask = special.get("mask_token")
        return cls(
            token_to_idx=tokens,
            unknown=token("unknown_token"),
            cls=token("cls_token", "bos_token"),
            sep=token("sep_token", "eos_token"),
            mask=mask if isinstance(mask, str) and mask in tokens else None,
        )


def _read_tokens(path: Path, data: dict[str, Any]) -> dict[str, int]:
    tokens = data.get("token_to_idx")
    if not isinstance(tokens, dict) or not tokens:
        raise ModelFormatError(f"{path}: not a vocabulary: token_to_idx is missing or empty")
    by_id: list[str | None] = [None] * len(tokens)
    for token, idx in tokens.items():
        if not isinstance(idx, int) or isinstance(idx, bool) or not 0 <= idx < len(tokens):
            raise ModelFormatError(
                f"{path}: token {token!r} has the id {idx!r}; "
                f"expected the ids 0 to {len(tokens) - 1}, each once"
            )
        if by_id[idx] is not None:
            raise ModelFormatError(
                f"{path}: tokens {by_id[idx]!r} and {token!r} both have the id {idx}"
            )
        by_id[idx] = token
    listed = data.get("idx_to_token")
    if listed is not None and listed != by_id:
        raise ModelFormatError(f"{path}: idx_to_token and token_to_idx do not say the same")
    return tokens


# The characters that stand for the 256 bytes, and the one for a blank.
BYTES = frozenset(pre_tokenizers.ByteLevel.alphabet())


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of byte-level BPE, from the first to the last.

    The file is that of GPT-2, which GluonNLP keeps as ``openai_webtext_bpe_ranks``: a line with its
    version, then a merge a line.

    Raises:
        ModelFormatError: not such a file, a merge twice, or one of something that is neither a byte
            nor made by a merge before it.
    """
    # Not splitlines: the characters of some bytes end lines for it.
    try:
        lines = read_text(path, _LARGEST_MERGES).replace("\r\n", "\n").split("\n")
    except ModelFormatError as error:
        raise ModelFormatError(f"not a file of BPE merges: {error}") from None
    if len(lines) < 3 or lines[-1]:
        raise ModelFormatError(
            f"{path}: not a file of BPE merges, or truncated: expected a version and lines that end"
        )
    known = set(BYTES)
    merges: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines[1:-1], start=2):
        match line.split():
            case [first, second] if {first, second} <= known and (first, second) not in merges:
                merges[first, second] = None
                known.add(first + second)
            case _:
                raise ModelFormatError(
                    f"{path}, line {number}: expected a new merge of two pieces that the lines "
                    f"before it make, found {line[:80]!r}"
                )
    return list(merges)
