"""The classes of tokenizers, as transformers 5 builds them: ``models/*/tokenization_*.py``, and
``tokenization_utils_tokenizers.py`` for what they share.

Every class but the generic one is built anew from a vocabulary: of a ``tokenizer.json`` it takes
the pieces, the merges and the table of characters, ALBERT's the post-processor too; what else that
file says (lower-casing, a prefix of words, an unknown token) is not read by those classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.models.huggingface.tokenizer.settings import NAMED, Settings, Token
from bertrt.models.huggingface.tokenizer.vocabulary import Values, Vocabulary, read_vocabulary
from bertrt.text.tokenizer_json import refusing

__all__ = ["Built", "TokenizerClass", "build", "find_class"]


@dataclass(frozen=True)
class TokenizerClass:
    """What tells one class from another.

    Attributes:
        name: the class's.
        files: what it is built from where there is no ``tokenizer.json``.
        model: "words", "bytes" or "unigram"; None for whatever a ``tokenizer.json`` holds.
        tokens: its special tokens, where nothing else is said.
        needs: those of them that have to be there.
        reads: the settings that it reads beside those of every class.
        pipeline: sets what stands before the model, its decoder, and for some what stands behind.
        close: gives what stands behind the model; None to leave it.
        types: whether it gives token types, unless `model_input_names` says otherwise.
        token: how it takes a special token that has no flags.
    """

    name: str
    files: tuple[str, ...]
    model: str | None
    tokens: Mapping[str, str]
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    pipeline: Callable[[Tokenizer, Values, Vocabulary], None] = lambda *_: None
    close: Callable[[Tokenizer, Values], Any] | None = None
    types: bool = False
    token: Callable[[str, str], Token] = lambda _, token: token


@dataclass(frozen=True)
class Built:
    """A tokenizer as its class makes it.

    Attributes:
        path: the file with its vocabulary.
        tokenizer: with all tokens added.
        mask: the mask token; None where there is none.
        types: whether it gives token types.
        truncation_side: the side that loses tokens.
    """

    path: Path
    tokenizer: Tokenizer
    mask: str | None
    types: bool
    truncation_side: str


# --- before the model, and behind it ----------------------------------------------------------


def _words(tokenizer: Tokenizer, values: Values, vocabulary: Vocabulary) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=values.get("tokenize_chinese_chars", True),
        strip_accents=values.get("strip_accents"),
        lowercase=values.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")


def _bytes(tokenizer: Tokenizer, values: Values, vocabulary: Vocabulary) -> None:
    prefix = values.get("add_prefix_space", False)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()


def _unigram(tokenizer: Tokenizer, values: Values, vocabulary: Vocabulary) -> None:
    if vocabulary.charsmap is not None:
        tokenizer.normalizer = normalizers.Precompiled(vocabulary.charsmap)
    scheme = "always" if values.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=scheme)


def _albert(tokenizer: Tokenizer, values: Values, vocabulary: Vocabulary) -> None:
    _unigram(tokenizer, values, vocabulary)
    steps: list[Any] = [normalizers.Replace(quotes, '"') for quotes in ("``", "''")]
    if not values.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if values.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    if vocabulary.charsmap is not None:
        steps.append(normalizers.Precompiled(vocabulary.charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    # Whatever the tokens are called, and before any is added.
    tokens = [str(values[name]) for name in ("cls_token", "sep_token")]
    ids = [tokenizer.token_to_id(token) for token in tokens]
    if None in ids:
        raise ModelFormatError(
            f"{vocabulary.path} does not hold the token {tokens[ids.index(None)]}"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=list(zip(("[CLS]", "[SEP]"), ids, strict=True)),
    )
    if vocabulary.file is not None and vocabulary.file.post_processor is not None:
        tokenizer.post_processor = vocabulary.file.post_processor


def _bert_frame(tokenizer: Tokenizer, values: Values) -> Any:
    cls, sep = str(values["cls_token"]), str(values["sep_token"])
    return processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(token, _id(tokenizer, token, values)) for token in (cls, sep)],
    )


def _roberta_frame(tokenizer: Tokenizer, values: Values) -> Any:
    cls, sep = str(values["cls_token"]), str(values["sep_token"])
    return processors.RobertaProcessing(
        (sep, _id(tokenizer, sep, values)),
        (cls, _id(tokenizer, cls, values)),
        values.get("trim_offsets", True),
        values.get("add_prefix_space", False),
    )


def _mpnet_frame(tokenizer: Tokenizer, values: Values) -> Any:
    named = {name: values[name] for name in ("cls_token", "sep_token")}
    return _roberta_frame(tokenizer, named | {"unk_token": values.get("unk_token")})


def _ends_frame(tokenizer: Tokenizer, values: Values) -> Any:
    begin, end = str(values["bos_token"]), str(values["eos_token"])
    return processors.TemplateProcessing(
        single=[begin, "$A", end],
        pair=[begin, "$A", end, end, "$B", end],
        special_tokens=[(token, _id(tokenizer, token, values)) for token in (begin, end)],
    )


def _camembert_frame(tokenizer: Tokenizer, values: Values) -> Any:
    # One text, so that a token with white space in it is an error.
    begin, end = str(values["bos_token"]), str(values["eos_token"])
    return processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(token, _id(tokenizer, token, values)) for token in (begin, end)],
    )


def _plain_frame(tokenizer: Tokenizer, values: Values) -> Any:
    """The frame of a tokenizer that has none, and of settings that ask for one by its ends."""
    single, pair, named = "$A:0", "$B:1", {}
    for name, side in (("bos_token", "left"), ("eos_token", "right")):
        token = values.get(name)
        if token is None or not values.get(f"add_{name}"):
            continue
        token = str(token)
        named[token] = _id(tokenizer, token, values)
        if side == "left":
            single, pair = f"{token}:0 {single}", f"{token}:1 {pair}"
        else:
            single, pair = f"{single} {token}:0", f"{pair} {token}:1"
    return processors.TemplateProcessing(
        single=single, pair=f"{single} {pair}", special_tokens=list(named.items())
    )


def _id(tokenizer: Tokenizer, token: str, values: Values) -> Any:
    found = tokenizer.token_to_id(token)
    if found is None and values.get("unk_token") is not None:
        found = tokenizer.token_to_id(str(values["unk_token"]))
    return found


# --- the table --------------------------------------------------------------------------------

_ANGLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_SQUARES = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
_OF_WORDS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")


def _mpnet_token(name: str, token: str) -> Token:
    # Not marked special here, and so looked for in normalised text.
    return AddedToken(token, lstrip=name == "mask_token")


def _camembert_token(name: str, token: str) -> Token:
    return AddedToken(token, lstrip=True, special=True) if name == "mask_token" else token


_BERT = TokenizerClass(
    "BertTokenizer",
    ("vocab.txt",),
    "words",
    _SQUARES,
    needs=("unk_token", "cls_token", "sep_token"),
    reads=_OF_WORDS,
    pipeline=_words,
    close=_bert_frame,
    types=True,
)
_CLASSES = (
    _BERT,
    TokenizerClass(
        "DistilBertTokenizer",
        _BERT.files,
        _BERT.model,
        _SQUARES,
        needs=_BERT.needs,
        reads=_OF_WORDS,
        pipeline=_words,
        close=_bert_frame,
    ),
    TokenizerClass(
        "MPNetTokenizer",
        ("vocab.txt",),
        "words",
        _ANGLES | {"unk_token": "[UNK]"},
        needs=_BERT.needs,
        reads=_OF_WORDS,
        pipeline=_words,
        close=_mpnet_frame,
        token=_mpnet_token,
    ),
    TokenizerClass(
        "RobertaTokenizer",
        ("vocab.json", "merges.txt"),
        "bytes",
        _ANGLES,
        needs=("cls_token", "sep_token"),
        reads=("add_prefix_space", "trim_offsets"),
        pipeline=_bytes,
        close=_roberta_frame,
    ),
    TokenizerClass(
        "XLMRobertaTokenizer",
        ("sentencepiece.bpe.model",),
        "unigram",
        _ANGLES,
        needs=("bos_token", "eos_token"),
        reads=("add_prefix_space",),
        pipeline=_unigram,
        close=_ends_frame,
    ),
    TokenizerClass(
        "CamembertTokenizer",
        ("sentencepiece.bpe.model",),
        "unigram",
        _ANGLES,
        needs=("bos_token", "eos_token"),
        reads=("add_prefix_space",),
        pipeline=_unigram,
        close=_camembert_frame,
        token=_camembert_token,
    ),
    TokenizerClass(
        "AlbertTokenizer",
        ("spiece.model",),
        "unigram",
        _SQUARES
        | {
            "bos_token": "[CLS]",
            "eos_token": "[SEP]",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
        },
        needs=("cls_token", "sep_token"),
        reads=("add_prefix_space", "do_lower_case", "keep_accents"),
        pipeline=_albert,
    ),
    TokenizerClass("TokenizersBackend", (), None, {}),
)
_OTHER_NAMES = {
    **dict.fromkeys(
        (
            "ElectraTokenizer",
            "LayoutLMTokenizer",
            "LxmertTokenizer",
            "MobileBertTokenizer",
            "SqueezeBertTokenizer",
        ),
        "BertTokenizer",
    ),
    **dict.fromkeys(("BartTokenizer", "LongformerTokenizer"), "RobertaTokenizer"),
    **dict.fromkeys(("PreTrainedTokenizer", "PythonBackend"), "TokenizersBackend"),
}
# What a model's kind has where no file names a class.
_OF_MODELS = {
    "bert": "BertTokenizer",
    "distilbert": "BertTokenizer",
    "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "albert": "AlbertTokenizer",
}


def find_class(path: Path, name: Any, model_type: str) -> TokenizerClass:
    """The class of a name, or else the one of the model's kind; UnsupportedModelError, which names
    the file, where it is not one of these."""
    known = {found.name: found for found in _CLASSES}
    if not isinstance(name, (str, type(None))):
        raise ModelFormatError(f"{path}: tokenizer_class should be a name, found {name!r}")
    name = name or _OF_MODELS.get(model_type, "")
    plain = name.removesuffix("Fast")
    plain = _OTHER_NAMES.get(plain, plain)
    if plain not in known:
        raise UnsupportedModelError(
            f"{path}: the tokenizer_class {name!r} is not supported; supported are "
            f"{', '.join(known)} (and as PreTrainedTokenizerFast whatever a tokenizer.json holds)"
        )
    return known[plain]


# --- all together -----------------------------------------------------------------------------


def _model(kind: TokenizerClass, values: Values, vocabulary: Vocabulary) -> Any:
    if kind.model == "words":
        return models.WordPiece(vocabulary.pieces, unk_token=str(values["unk_token"]))
    if kind.model == "bytes":
        return models.BPE(
            vocabulary.pieces,
            vocabulary.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    unknown = {"XLMRobertaTokenizer": 3, "AlbertTokenizer": 1}.get(kind.name)
    if unknown is None:
        named = (piece for piece, _ in vocabulary.pieces)
        unk = str(values["unk_token"])
        unknown = next((index for index, piece in enumerate(named) if piece == unk), 0)
    return models.Unigram(vocabulary.pieces, unk_id=unknown, byte_fallback=False)


def build(kind: TokenizerClass, settings: Settings) -> Built:
    """Build the tokenizer of a class.

    Raises:
        MissingFileError: there is no vocabulary.
        ModelFormatError: a file or a setting is broken, or does not fit the others.
        UnsupportedModelError: a file of another kind would be read.
    """
    settings.check(kind.reads)
    values = {**kind.tokens, **settings.values}
    for name in kind.needs:
        if values.get(name) is None:
            raise UnsupportedModelError(
                f"{settings.path}: a {kind.name} without a {name} is not supported"
            )
    vocabulary = read_vocabulary(kind.name, kind.model, kind.files, settings, values)
    values = {**kind.tokens, **settings.values}
    for name in kind.tokens:
        if isinstance(values[name], str):
            values[name] = kind.token(name, values[name])
    extra = _extra(kind, values)
    with refusing(f"{vocabulary.path} does not make a {kind.name}"):
        if kind.model is None:
            assert vocabulary.file is not None
            tokenizer = vocabulary.file
        else:
            tokenizer = Tokenizer(_model(kind, values, vocabulary))
            kind.pipeline(tokenizer, values, vocabulary)
    cut = vocabulary.file.truncation if vocabulary.file is not None else None
    if kind.model is None and tokenizer.padding is not None:
        values.setdefault("pad_token", tokenizer.padding["pad_token"])
    model = tokenizer.model
    if isinstance(model, models.WordPiece) and model.token_to_id(model.unk_token) is None:
        raise ModelFormatError(
            f"{vocabulary.path} does not hold the token {model.unk_token}, which stands for "
            "unknown words"
        )
    asked = "add_bos_token" in values or "add_eos_token" in values
    named = {name: values.get(name) for name in NAMED} | settings.own_tokens
    with refusing(f"{settings.path}: the special tokens do not fit {vocabulary.path}"):
        _add(tokenizer, settings.added, named, extra)
        _check_distinct(settings.path, tokenizer)
        if kind.close is not None:
            tokenizer.post_processor = kind.close(tokenizer, values)
        elif asked or tokenizer.post_processor is None:
            tokenizer.post_processor = _plain_frame(tokenizer, values)
    types = kind.types
    if "model_input_names" in values:
        types = "token_type_ids" in values["model_input_names"]
    mask = named["mask_token"]
    return Built(
        vocabulary.path,
        tokenizer,
        None if mask is None else str(mask),
        types,
        values.get("truncation_side", cut["direction"] if cut else "right"),
    )


def _extra(kind: TokenizerClass, values: dict[str, Any]) -> list[Token]:
    """The special tokens without a role, under the newer or the older name."""
    older = values.get("additional_special_tokens")
    if older is None and kind.name == "CamembertTokenizer":
        older = [f"{token}NOTUSED" for token in ("<s>", "</s>", "<unk>")]
    return list(values.get("extra_special_tokens", older) or [])


def _add(
    tokenizer: Tokenizer,
    listed: list[AddedToken],
    named: Mapping[str, Token | None],
    extra: list[Token],
) -> None:
    """Add the tokens that files list, then those with a role and the others, unless they are there
    already."""
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    present |= {token.content for token in listed}
    wanted: list[Token] = list(listed)
    for token in (*named.values(), *extra):
        if token is not None and str(token) not in present and token not in wanted:
            wanted.append(token)
    # What was special once stays so to the library; said here, a tokenizer.json says it too.
    special = {str(token) for token in named.values() if token}
    special |= {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    added = []
    for token in wanted:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif token.special:
            special.add(token.content)
        elif token.content in special:
            token.special = True
        added.append(token)
    tokenizer.add_tokens(added)


def _check_distinct(path: Path, tokenizer: Tokenizer) -> None:
    """Refuse added tokens that read the same once they are normalised: the library takes one or
    the other, as it happens."""
    normalizer = tokenizer.normalizer
    seen: dict[str, str] = {}
    for token in tokenizer.get_added_tokens_decoder().values():
        if not token.normalized:
            continue
        text = normalizer.normalize_str(token.content) if normalizer else token.content
        if text in seen:
            raise UnsupportedModelError(
                f"{path}: the added tokens {seen[text]!r} and {token.content!r} are both {text!r} "
                "after normalisation, and which of them a text means is left to chance; remove "
                "one, or set normalized to false"
            )
        seen[text] = token.content
