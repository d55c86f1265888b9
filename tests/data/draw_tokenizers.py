"""Draws tokenizers of Hugging Face's, and holds bertrt's ids against those of transformers.

    pip install transformers sentencepiece protobuf  # beside bertrt
    python tests/data/draw_tokenizers.py 2000 [FIRST SEED]
    python tests/data/draw_tokenizers.py record

A seed is a directory: which files there are, what they say, which of them contradict each other.
With each go 50 texts and pairs. ``tests/unit/test_huggingface_tokenizers.py`` runs a few hundred
seeds where transformers is installed, and everywhere those of ``tokenizers.json.xz``, which the
last line makes: directories with texts and the answers of transformers.
"""

from __future__ import annotations

import collections
import json
import logging
import lzma
import os
import random
import string
import struct
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bertrt.errors import BertrtError, InvalidInputError
from bertrt.models.huggingface.config import Config
from bertrt.models.huggingface.tokenizer.make import make_tokenizer
from bertrt.text.huggingface import HuggingFaceTokenizer
from bertrt.text.load import load_tokenizer

TEXTS = 50
RECORD = Path(__file__).with_name("tokenizers.json.xz")
WORDS = [
    *("the", "cat", "sat", "on", "a", "mat", "hello", "world", "Hello", "World", "paris", "Paris"),
    *("é", "è", "É", "ünï", "café", "naïve", "東京", "世界", "北", "ing", "ed", "s", "un", "able"),
    *("straße", "İstanbul", "ΣΟΦΟΣ", "σοφος", "й", "ё", "Ё", "नमस्ते", "한국", "ﬁ", "½", "Ⅷ"),
    *("\uff46\uff55\uff4c\uff4c", "!", "?", ".", ",", "-", "--", "'", '"', "`", "``", "''"),
    *("3,000", "12", "#tag", "@me", "a,b", "x(y)", "<b>", "[b]", "</b>", "1s", "2", "ed.", "don't"),
    *("U.S.", "e.g.", "😀", "👩\u200d👩\u200d👧", "☃", "▁", "▁▁", "##", "##s", "#", "ha", "-----"),
]
SPACES = [
    *(
        "",
        "",
        " ",
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\x00",
        "\x07",
    ),
    *("\u0301", "\ufffd", "\u2028"),
]
LETTERS = string.ascii_letters + string.digits + string.punctuation + "éÉ東京世界北σςΣ½"
SQUARES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANGLES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ODD = [
    *(
        "<MASK>",
        "{mask}",
        "[E1]",
        "[/E1]",
        "[unused1]",
        "<ent>",
        "cat",
        "Hello",
        "é",
        "a b",
        "mask",
    ),
    *("##s", "東", "İx", "<|x|>", " sp", "e"),
]
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
CLASSES = {
    "BertTokenizer": "words",
    "DistilBertTokenizer": "words",
    "ElectraTokenizer": "words",
    "MPNetTokenizer": "words",
    "RobertaTokenizer": "bytes",
    "XLMRobertaTokenizer": "unigram",
    "CamembertTokenizer": "unigram",
    "AlbertTokenizer": "unigram",
    "PreTrainedTokenizer": None,
    "TokenizersBackend": None,
}
MODELS = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mpnet": "MPNetTokenizer",
    "albert": "AlbertTokenizer",
}


class Draw:
    """One directory, and the texts that go with it."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.directory = directory
        self.arguments: dict[str, Any] = {}
        self.tokens: set[str] = set()  # that texts should hold
        self.model_type = self.pick(list(MODELS))
        self.name = self.pick([None, *CLASSES, *CLASSES])
        self.kind = CLASSES[self.name or MODELS[self.model_type]]
        self.squares = (self.name or MODELS[self.model_type]).startswith(
            ("Bert", "Dist", "Elec", "Albert")
        ) or (self.kind is None and self.chance(0.5))
        self.write()

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, values: Any) -> Any:
        return self.random.choice(values)

    def some(self, values: Any, most: int) -> list[Any]:
        values = list(values)
        return self.random.sample(values, self.random.randint(0, min(most, len(values))))

    # --- tokens -----------------------------------------------------------------------------

    def flags(self) -> dict[str, bool]:
        names = ("lstrip", "rstrip", "single_word", "normalized")
        return {name: self.chance(0.3) for name in names if self.chance(0.8)}

    def any_token(self) -> str:
        token = self.pick(self.usual * 2 + ODD)
        self.tokens.add(token)
        return token

    def described(self, token: str, *, typed: bool) -> Any:
        self.tokens.add(token)
        if self.chance(0.5):
            return token
        found = {"content": token, **self.flags()}
        if typed:
            found["__type"] = "AddedToken"
            if self.chance(0.6):
                found["special"] = self.chance(0.7)
        return found

    def listed(self, token: str) -> dict[str, Any]:
        self.tokens.add(token)
        found = {"content": token, "special": self.chance(0.7)}
        for name in ("lstrip", "rstrip", "single_word", "normalized"):
            found[name] = self.chance(0.3)
        return found

    @property
    def usual(self) -> list[str]:
        return SQUARES if self.squares else ANGLES

    # --- vocabularies -----------------------------------------------------------------------

    def special_pieces(self) -> list[str]:
        found = list(self.usual)
        if self.chance(0.3):
            found += ANGLES if self.squares else SQUARES
        if self.chance(0.1):
            found.remove(self.pick(found[:5]))
        if self.name == "MPNetTokenizer" and self.chance(0.9):
            found.append("[UNK]")
        if self.chance(0.1):
            self.random.shuffle(found)
        return found + self.some(ODD, 6)

    def word_pieces(self) -> list[str]:
        lines = self.special_pieces() + list(LETTERS)
        lines += [f"##{letter}" for letter in LETTERS if self.chance(0.9)]
        lines += [word for word in WORDS if self.chance(0.5)]
        lines += [f"##{word}" for word in ("ing", "ed", "s", "at", "llo") if self.chance(0.7)]
        if self.chance(0.9):
            lines = list(dict.fromkeys(lines))
        if self.chance(0.1):
            lines.insert(self.random.randrange(len(lines)), self.pick(["", " ", "x ", "\u3000"]))
        return lines

    def byte_pairs(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        from tokenizers import pre_tokenizers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pieces = self.special_pieces() + alphabet
        merges: list[tuple[str, str]] = []
        for word in self.some(WORDS, 30):
            ((spelled, _),) = pre_tokenizers.ByteLevel(use_regex=False).pre_tokenize_str(word)[:1]
            while len(parts := list(spelled)) > 1 and self.chance(0.9):
                left = parts[0]
                for right in parts[1:]:
                    if (left, right) not in merges:
                        merges.append((left, right))
                    left += right
                    pieces.append(left)
                break
        pieces = list(dict.fromkeys(pieces))
        return {piece: index for index, piece in enumerate(pieces)}, merges

    def unigram(self) -> list[tuple[str, float]]:
        camembert = self.name == "CamembertTokenizer" or (
            self.name is None and self.model_type == "camembert"
        )
        first = [(piece, 0.0) for piece in self.special_pieces()]
        if camembert and self.chance(0.7):
            first[:0] = [("<s>NOTUSED", 0.0), ("</s>NOTUSED", 0.0)]
        pieces = [
            "▁",
            *LETTERS,
            *(f"▁{word}" for word in WORDS),
            *WORDS,
            "▁the▁cat",
            "--",
            "---",
            "!!",
            "aha",
        ]
        pieces = [piece for piece in dict.fromkeys(pieces) if self.chance(0.8)]
        ties = self.chance(0.3)
        scored = [
            (piece, float(-self.random.randint(1, 6)) if ties else -self.random.random() * 12)
            for piece in pieces
            if piece not in dict(first)
        ]
        return first + scored

    # --- files ------------------------------------------------------------------------------

    def put(self, name: str, content: Any) -> None:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (self.directory / name).write_bytes(text.encode())

    def write(self) -> None:
        config = {
            "model_type": self.model_type,
            "vocab_size": 30000,
            "hidden_size": 8,
            "dim": 8,
            "n_heads": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": self.pick([9, 12, 20, 40]),
            "layer_norm_eps": 1e-12,
        }
        named = None
        if self.name is not None:
            named = self.name + ("Fast" if self.chance(0.4) and "Backend" not in self.name else "")
        said = self.settings()
        if named is not None:
            if self.chance(0.85):
                said["tokenizer_class"] = named
            else:
                config["tokenizer_class"] = named
        self.put("config.json", config)
        self.vocabulary()
        if said or self.chance(0.5):
            self.put("tokenizer_config.json", said)
        if self.chance(0.35):
            self.put("special_tokens_map.json", self.tokens_map())
        if self.chance(0.2):
            found = {self.any_token(): self.random.randint(0, 400) for _ in range(3)}
            self.put("added_tokens.json", found)
        if self.chance(0.1):
            self.arguments = self.some_settings(("model_max_length",))
            self.put("sentence_bert_config.json", {"tokenizer_args": self.arguments})

    def vocabulary(self) -> None:
        if self.kind is None or self.chance(0.5):
            self.put("tokenizer.json", self.tokenizer_file())
            if self.chance(0.9):
                return
        kind = self.kind or self.pick(["words", "bytes", "unigram"])
        if kind == "words":
            end = "\r\n" if self.chance(0.1) else "\n"
            self.put("vocab.txt", end.join(self.word_pieces()) + (end if self.chance(0.8) else ""))
        elif kind == "bytes":
            pieces, merges = self.byte_pairs()
            self.put("vocab.json", pieces)
            head = "#version: 0.2\n" if self.chance(0.7) else ""
            self.put("merges.txt", head + "".join(f"{a} {b}\n" for a, b in merges))
        else:
            albert = "Albert" in (self.name or MODELS[self.model_type])
            name = "spiece.model" if albert else "sentencepiece.bpe.model"
            if self.chance(0.1):
                name = "tokenizer.model"
            self.sentencepiece(self.directory / name)

    def sentencepiece(self, path: Path) -> None:
        def message(number: int, data: bytes) -> bytes:
            return bytes([number << 3 | 2]) + varint(len(data)) + data

        def varint(value: int) -> bytes:
            found = b""
            while value > 127:
                found += bytes([value & 127 | 128])
                value >>= 7
            return found + bytes([value])

        data = b""
        albert = path.name == "spiece.model"
        begin = (
            ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"] if albert else ["<unk>", "<s>", "</s>"]
        )
        pieces = [(piece, 0.0, 2 if piece == "<unk>" else 3) for piece in begin]
        for piece, score in self.unigram():
            if piece not in begin:
                kind = 4 if self.chance(0.02) else 3 if self.chance(0.01) else 1
                pieces.append((piece, score, kind))
        for piece, score, kind in pieces:
            body = message(1, piece.encode()) + b"\x15" + struct.pack("<f", score)
            data += message(1, body + (b"" if kind == 1 else b"\x18" + varint(kind)))
        data += message(2, b"\x18\x01" + b"\xc0\x02" + varint(begin.index("<unk>")))
        if self.chance(0.5) and (charsmap := compiled_charsmap()):
            data += message(3, message(2, charsmap))
        path.write_bytes(data)

    def tokenizer_file(self) -> Any:
        from tokenizers import (
            AddedToken,
            Tokenizer,
            decoders,
            models,
            normalizers,
            pre_tokenizers,
            processors,
        )

        kind = self.kind or self.pick(["words", "words", "bytes", "unigram", "whole"])
        unk = self.pick([token for token in self.usual if "unk" in token.lower()])
        if kind == "words":
            lines = self.word_pieces()
            pieces = {line: i for i, line in enumerate(dict.fromkeys([*lines, unk]))}
            prefix = self.pick(["##", "##", "##", "@@"])
            made = Tokenizer(
                models.WordPiece(pieces, unk_token=unk, continuing_subword_prefix=prefix,
                                 max_input_chars_per_word=self.pick([100, 100, 5]))
            )  # fmt: skip
            first = normalizers.BertNormalizer(
                clean_text=self.chance(0.8), handle_chinese_chars=self.chance(0.7),
                strip_accents=self.pick([None, True, False]), lowercase=self.chance(0.5),
            )  # fmt: skip
            made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        elif kind == "whole":
            pieces = {line: i for i, line in enumerate(dict.fromkeys([*self.word_pieces(), unk]))}
            made, first = Tokenizer(models.WordLevel(pieces, unk_token=unk)), None
            made.pre_tokenizer = pre_tokenizers.Whitespace()
        elif kind == "bytes":
            made = Tokenizer(models.BPE(*self.byte_pairs(), fuse_unk=self.chance(0.3)))
            first = None
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.chance(0.5))
        else:
            scored = self.unigram()
            if unk not in dict(scored):
                scored.append((unk, 0.0))
            at = [piece for piece, _ in scored].index(unk)
            made = Tokenizer(models.Unigram(scored, unk_id=at))
            charsmap = compiled_charsmap()
            first = normalizers.Precompiled(charsmap) if charsmap and self.chance(0.6) else None
            scheme = self.pick(["always", "never", "first"])
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
            if self.chance(0.5):
                made.pre_tokenizer = pre_tokenizers.Sequence(
                    [pre_tokenizers.WhitespaceSplit(), made.pre_tokenizer]
                )
        more = [normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase(),
                normalizers.StripAccents(), normalizers.Replace("``", '"')]  # fmt: skip
        steps = [step for step in (*self.some(more, 1), first) if step is not None]
        if self.chance(0.3):
            made.normalizer = normalizers.Sequence(steps)
        elif first is not None and self.chance(0.9):
            made.normalizer = first
        if self.chance(0.2):
            made.pre_tokenizer = self.pick(
                [
                    pre_tokenizers.WhitespaceSplit(),
                    pre_tokenizers.Whitespace(),
                    pre_tokenizers.Sequence(
                        [pre_tokenizers.Punctuation(), pre_tokenizers.Digits()]
                    ),
                    pre_tokenizers.Split(" ", "merged_with_next"),
                ]
            )
        made.decoder = decoders.WordPiece()
        listed = [self.listed(token) for token in self.usual if self.chance(0.8)]
        listed += [self.listed(token) for token in self.some(ODD, 3)]
        if self.chance(0.8):
            made.add_tokens([AddedToken(**token) for token in listed])
        known = [token for token in self.usual if made.token_to_id(token) is not None]
        if len(known) > 1 and self.chance(0.8):
            cls, sep = self.random.sample(known, 2)
            ids = [(token, made.token_to_id(token)) for token in (cls, sep)]
            made.post_processor = self.pick([
                processors.TemplateProcessing(
                    single=f"{cls}:0 $A:0 {sep}:0",
                    pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", special_tokens=ids),
                processors.TemplateProcessing(
                    single=f"{cls} $A", pair=f"$A {sep} $B", special_tokens=ids),
                processors.BertProcessing(ids[1], ids[0]),
                processors.RobertaProcessing(ids[1], ids[0]),
                    processors.ByteLevel(),
                    processors.Sequence(
                        [processors.ByteLevel(), processors.BertProcessing(ids[1], ids[0])]
                    ),
            ])  # fmt: skip
        if self.chance(0.15):
            made.enable_truncation(self.pick([3, 7]), direction=self.pick(["left", "right"]))
        if self.chance(0.15):
            made.enable_padding(direction=self.pick(["left", "right"]), pad_token=self.any_token())
        content = json.loads(made.to_str())
        model = content["model"]
        if "merges" in model and self.chance(0.4):  # as older versions wrote them
            model["merges"] = [" ".join(merge) for merge in model["merges"]]
        if kind in ("words", "unigram") and self.chance(0.1):
            del model["type"]
        return content

    # --- settings ---------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        if self.chance(0.1):
            return {}
        found = self.some_settings()
        for role in ROLES:
            if self.chance(0.2):
                token = self.any_token()
                found[f"{role}_token"] = (
                    None if role in ("bos", "eos", "pad", "mask") and self.chance(0.1)
                    and self.kind == "words" else self.typed(token)
                )  # fmt: skip
        if self.chance(0.25):
            found["additional_special_tokens"] = self.token_list()
        if self.chance(0.2):
            found["extra_special_tokens"] = (
                self.token_list()
                if self.chance(0.6)
                else {f"{name}_token": self.any_token() for name in ("image", "boi")}
            )
        if self.chance(0.1):
            found["entity_token"] = self.typed(self.any_token())
        if self.chance(0.25):
            tokens = {self.any_token() for _ in range(self.random.randint(0, 6))}
            tokens |= set(self.some(self.usual, 5))
            found["added_tokens_decoder"] = {
                str(self.random.randint(0, 500)): self.listed(token) for token in sorted(tokens)
            }
        return found

    def typed(self, token: str) -> Any:
        found = self.described(token, typed=True)
        return found

    def token_list(self) -> list[Any]:
        return [self.typed(self.any_token()) for _ in range(self.random.randint(0, 3))]

    def some_settings(self, only: tuple[str, ...] = ()) -> dict[str, Any]:
        flag = self.chance(0.5)
        drawn = {
            "do_lower_case": flag,
            "strip_accents": self.pick([None, True, False]),
            "tokenize_chinese_chars": self.chance(0.5),
            "keep_accents": self.chance(0.5),
            "add_prefix_space": self.chance(0.5),
            "trim_offsets": self.chance(0.5),
            "split_special_tokens": self.chance(0.5),
            "truncation_side": self.pick(["left", "right"]),
            "padding_side": self.pick(["left", "right"]),
            "model_max_length": self.pick([5, 8, 512, 10**30]),
            "model_input_names": self.pick(
                [
                    ["input_ids", "attention_mask"],
                    ["input_ids", "token_type_ids", "attention_mask"],
                    ["input_ids", "token_type_ids"],
                ]
            ),
            "add_bos_token": self.chance(0.5),
            "add_eos_token": self.chance(0.5),
            "do_basic_tokenize": self.chance(0.5),
            "never_split": None,
            "errors": "replace",
            "clean_up_tokenization_spaces": True,
            "stride": 0,
            "max_length": 7,
            "name_or_path": "x",
            "vocab_file": None,
        }
        share = 0.25
        return {n: v for n, v in drawn.items() if self.chance(share) or n in only}

    def tokens_map(self) -> dict[str, Any]:
        found = {}
        for role in ROLES:
            if self.chance(0.5):
                # Mostly what goes with the class
                usual = [token for token in self.usual if role in token.lower()]
                token = usual[0] if usual and self.chance(0.7) else self.any_token()
                found[f"{role}_token"] = self.described(token, typed=False)
        if self.chance(0.3):
            found["additional_special_tokens"] = [self.any_token() for _ in range(2)]
        if self.chance(0.2):
            found["extra_special_tokens"] = [
                self.described(self.any_token(), typed=False) for _ in range(2)
            ]
        if self.chance(0.05):
            found["own_token"] = self.described(self.any_token(), typed=False)
        return found

    # --- texts ------------------------------------------------------------------------------

    def text(self) -> str:
        parts = []
        words = WORDS + (sorted(self.tokens) + self.usual) * 2
        for _ in range(self.pick([0, 1, 2, 3, 5, 8, 30])):
            word = self.pick(words) if self.chance(0.85) else self.pick(ODD)
            if self.chance(0.1):
                word = self.pick([str.upper, str.lower, str.title])(word)
            if self.chance(0.05):
                word = unicodedata.normalize(self.pick(["NFD", "NFC", "NFKD"]), word)
            if self.chance(0.02):
                word = word * self.pick([3, 40])
            if self.chance(0.03):
                planes = [range(0xD800), range(0xE000, 0x30000)]
                word = chr(self.pick(self.pick(planes)))
            parts += [word, self.pick(SPACES)]
        return "".join(parts)


_CHARSMAP: list[bytes] = []


def compiled_charsmap() -> bytes | None:
    """The table of nmt_nfkc, which sentencepiece writes into whatever it trains."""
    if not _CHARSMAP:
        try:
            import io

            import sentencepiece
            from sentencepiece import sentencepiece_model_pb2 as protos

            out = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(["the cat sat on the mat"] * 20), model_writer=out,
                vocab_size=16, minloglevel=2, hard_vocab_limit=False,
            )  # fmt: skip
            proto = protos.ModelProto()
            proto.ParseFromString(out.getvalue())
            _CHARSMAP.append(proto.normalizer_spec.precompiled_charsmap)
        except ImportError:
            _CHARSMAP.append(b"")
    return _CHARSMAP[0] or None


# What bertrt refuses and transformers takes: it fails at the first unknown word, or answers by
# chance.
STRICTER = ("which stands for unknown words", "is left to chance")
# What transformers refuses and bertrt takes: a frame that is put away again cannot be made.
LOOSER = ("Missing SpecialToken",)


# --- comparison ---------------------------------------------------------------------------------


def ours(draw: Draw) -> HuggingFaceTokenizer:
    """bertrt's tokenizer of a seed."""
    return open_tokenizer(draw.directory)


def open_tokenizer(directory: Path) -> HuggingFaceTokenizer:
    """bertrt's tokenizer of a directory without weights."""
    path = directory / "config.json"
    content = json.loads(path.read_text())
    try:
        config = Config.read(path)
    except BertrtError:  # a net that is not supported, or wants more settings
        # of the same lengths
        kind = {"mpnet": "roberta"}.get(content["model_type"], "bert")
        config = Config(path, {**content, "model_type": kind})
        name = content.get("tokenizer_class") or MODELS[content["model_type"]]
        config.content["tokenizer_class"] = name
    return make_tokenizer(directory, config)


def theirs(draw: Draw) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers

    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(draw.directory, **draw.arguments)


def compare(seed: int, directory: Path) -> tuple[str, str]:
    """What came of a seed: "same", "refused", "theirs refused", "both refused" or "different", and
    what to say of it."""
    draw = Draw(seed, directory)
    theirs_error = error = None
    try:
        expected = theirs(draw)
    except BaseException as found:
        theirs_error = found
    try:
        tokenizer = ours(draw)
    except BertrtError as found:
        error = found
    if error is not None:
        message = f"{type(error).__name__}: {str(error).replace(str(directory), '')}"
        return ("refused" if theirs_error is None else "both refused"), message
    if theirs_error is not None:
        return "theirs refused", f"{type(theirs_error).__name__}: {theirs_error}"
    right = list(answers(draw, expected, tokenizer.max_length, TEXTS))
    problem = difference(tokenizer, facts(expected), right)
    if problem is None:
        again = in_a_bundle(tokenizer, directory / "bundle")
        problem = difference(again, facts(expected), right)
        problem = problem and f"in a bundle: {problem}"
    return ("same", "") if problem is None else ("different", problem)


def record(count: int, first: int, texts: int) -> None:
    """Write the answers of transformers to so many seeds, for where it is not installed."""
    cases: list[dict[str, Any]] = []
    tables = 0  # of characters; they are large
    for seed in range(first, first + 10 * count):
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            draw = Draw(seed, directory)
            try:
                expected, tokenizer = theirs(draw), ours(draw)
            except BaseException:
                continue
            files = {path.name: path.read_bytes().decode("latin-1") for path in directory.iterdir()}
            tables += any(len(content) > 100_000 for content in files.values())
            if tables > 2 and any(len(content) > 100_000 for content in files.values()):
                continue
            found = list(answers(draw, expected, tokenizer.max_length, texts))
            cases.append({"seed": seed, "files": files, "facts": facts(expected), "answers": found})
        if len(cases) == count:
            break
    data = json.dumps(cases, separators=(",", ":")).encode()
    RECORD.write_bytes(lzma.compress(data, preset=9))


def recorded() -> list[dict[str, Any]]:
    """What `record` wrote."""
    return json.loads(lzma.decompress(RECORD.read_bytes()))


def answers(draw: Draw, expected: Any, limit: int, count: int) -> Iterator[dict[str, Any]]:
    """Texts and pairs with what transformers makes of them, cut at `limit` tokens: ids, types,
    which ids are special, whether there is any other, and for texts the ids without special ones;
    or an error."""
    draw.random.seed(draw.seed)
    for number in range(count):
        pair = number % 3 == 2
        text: Any = (draw.text(), draw.text() or "b") if pair else draw.text()
        given = ([text[0]], [text[1]]) if pair else ([text],)
        found: dict[str, Any] = {"text": text}
        try:
            right = expected(
                *given, truncation=True, max_length=limit, return_special_tokens_mask=True
            )
            if not pair:
                found["whole"] = expected([text], add_special_tokens=False)["input_ids"][0]
        except BaseException as error:
            yield found | {"error": f"{type(error).__name__}: {error}"}
            continue
        ids = right["input_ids"][0]
        types = right["token_type_ids"][0] if "token_type_ids" in right else [0] * len(ids)
        marks = right["special_tokens_mask"][0]
        special = sorted({i for i, mark in zip(ids, marks, strict=True) if mark})
        empty = 0 not in right.sequence_ids(0)
        yield found | {"ids": ids, "types": types, "special": special, "empty": empty}


def facts(expected: Any) -> dict[str, Any]:
    """What transformers says of the tokenizer itself."""
    return {
        "mask": expected.mask_token,
        "mask_id": expected.mask_token_id,
        "added": [expected.num_special_tokens_to_add(pair) for pair in (False, True)],
    }


def difference(
    tokenizer: HuggingFaceTokenizer, facts: dict[str, Any], answers: Iterable[dict[str, Any]]
) -> str | None:
    """The first answer that is not bertrt's; None where all are."""
    own = {
        "mask": tokenizer.mask,
        "mask_id": tokenizer.mask_id,
        "added": [tokenizer.max_length - tokenizer.room(pair=pair) for pair in (False, True)],
    }
    if own != facts:
        return f"{own}\nright {facts}"
    for answer in answers:
        text = answer["text"] if isinstance(answer["text"], str) else tuple(answer["text"])
        try:
            (encoding,) = tokenizer.encode([text])
        except BertrtError as error:
            if "error" in answer or (isinstance(error, InvalidInputError) and answer["empty"]):
                continue
            return f"{text!r}: {type(error).__name__}: {error}"
        if "error" in answer:
            return f"{text!r}: transformers raises {answer['error']}"
        found = encoding.ids.tolist(), encoding.types.tolist()
        right = answer["ids"], answer["types"]
        if found != right:
            return (
                f"{text!r}:\nids   {found[0]}\nright {right[0]}\ntypes {found[1]}\nright {right[1]}"
            )
        if not tokenizer.special_ids.issuperset(answer["special"]):
            return f"{text!r}: special ids {tokenizer.special_ids} without {answer['special']}"
        if "whole" not in answer:
            continue
        pieces = tokenizer.tokenize([text])[0]
        if pieces != answer["whole"]:
            return f"{text!r} alone:\nids   {pieces}\nright {answer['whole']}"
        if pieces and len(pieces) <= tokenizer.room(pair=False):
            joined = tokenizer.join(pieces)
            if (joined.ids.tolist(), joined.types.tolist()) != right:
                return f"{text!r}: joined {joined.ids.tolist()}, right {right[0]}"
    return None


def in_a_bundle(tokenizer: HuggingFaceTokenizer, directory: Path) -> HuggingFaceTokenizer:
    """The tokenizer as a bundle made of it has it."""
    directory.mkdir()
    (directory / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    settings = {
        "kind": "huggingface",
        "file": "tokenizer.json",
        "max_length": tokenizer.max_length,
        "rules": tokenizer.unusual(),
    }
    return load_tokenizer(settings, directory)


def show(directory: Path) -> str:
    """The files of a seed, shortened."""
    lines = []
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        text = path.read_bytes().decode("utf-8", "replace")
        text = text.replace("\n", "\\n")
        lines.append(f"--- {path.name}\n{text if len(text) < 1500 else text[:1500] + ' ...'}")
    return "\n".join(lines)


def run(count: int, first: int = 0, verbose: bool = False) -> tuple[collections.Counter, list[str]]:
    """Compare so many seeds; how often each outcome came, and what was found."""
    outcomes: collections.Counter = collections.Counter()
    reasons: collections.Counter = collections.Counter()
    problems = []
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(prefix=f"seed{seed}-") as name:
            outcome, message = compare(seed, Path(name))
            outcomes[outcome] += 1
            if outcome in ("refused", "theirs refused") and not any(
                reason in message for reason in STRICTER + LOOSER
            ):
                outcome = f"{outcome} without a reason"
            if outcome not in ("same", "refused", "theirs refused", "both refused"):
                problems.append(f"seed {seed}: {message}\n{show(Path(name))}")
            elif message:
                reasons[f"{outcome}: {message[:150]}"] += 1
    if verbose:
        for reason, times in reasons.most_common(40):
            print(times, reason)
    return outcomes, problems


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1:] == ["record"]:
        record(120, 5000, 12)
        sys.exit()
    asked = [int(argument) for argument in sys.argv[1:]]
    outcomes, problems = run(*(asked or [200]), verbose=True)
    for problem in problems[:5]:
        print(problem)
    print(dict(outcomes), "seeds that differ:", [p.split(":")[0] for p in problems[:30]])
    sys.exit(bool(problems))
