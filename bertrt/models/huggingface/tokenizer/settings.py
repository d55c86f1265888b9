"""The settings of a Hugging Face tokenizer: where they lie, which of them decide ids, and what they
come to where several files speak.

The order in which files overrule each other is read from transformers 5,
``tokenization_utils_base.py`` (``_from_pretrained``) and ``models/auto/tokenization_auto.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import AddedToken

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import LARGEST_VOCABULARY, is_there, read_object

__all__ = ["CONFIG", "NAMED", "Settings", "Token", "read_config", "read_settings"]

CONFIG = "tokenizer_config.json"

Token = str | AddedToken

# The tokens that have a role, in the order in which they are added to a vocabulary.
NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_side(value: Any) -> bool:
    return value in ("left", "right") and isinstance(value, str)


def _is_length(value: Any) -> bool:
    return value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 3 <= value < math.inf
    )


def _is_text(value: Any) -> bool:
    """Whether it is text that UTF-8 has: half a surrogate pair, which JSON can spell, is none."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode("utf-8") == value


def _is_token(value: Any) -> bool:
    return isinstance(value, AddedToken) or (_is_text(value) and value != "")


def _are_tokens(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(_is_token, value)))


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


_FLAG = ("true or false", _is_flag)
_SIDE = ("'left' or 'right'", _is_side)
_LENGTH = ("a whole number from 3", _is_length)
_TOKENS = ("a list of tokens", _are_tokens)

# What is read, with what it has to be. A class reads those that its row in `classes`
# names; every class reads those behind the line.
READ: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "add_prefix_space": _FLAG,
    "do_lower_case": _FLAG,
    "keep_accents": _FLAG,
    "strip_accents": ("true, false or null", lambda value: value is None or _is_flag(value)),
    "tokenize_chinese_chars": _FLAG,
    "trim_offsets": _FLAG,
    # ---
    **dict.fromkeys(NAMED, ("a token or null", lambda value: value is None or _is_token(value))),
    "add_bos_token": _FLAG,
    "add_eos_token": _FLAG,
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _TOKENS,
    "model_input_names": ("a list of names", _are_names),
    "model_max_length": _LENGTH,
    "max_len": _LENGTH,
    "padding_side": _SIDE,
    "split_special_tokens": _FLAG,
    "truncation_side": _SIDE,
}
_OF_SOME_CLASSES = tuple(READ)[:6]
# Read too, each in a way of its own; and so is every other name that ends in _token, which is a
# special token of the model's own.
_BY_NAME = (
    *("added_tokens_decoder", "auto_map", "fast_tokenizer_files", "fix_mistral_regex"),
    *("init_inputs", "model_specific_special_tokens"),
)

# What transformers keeps and never asks for ids, or asks only when it pads, decodes or chats.
_FILES = (
    *("added_tokens_file", "chat_template_file", "full_tokenizer_file", "merges_file"),
    *("special_tokens_map_file", "tokenizer_config_file", "tokenizer_file", "vocab_file"),
)
HARMLESS = frozenset(
    (
        *_FILES,  # which are found by their usual names, whatever is said here
        *(name.replace("_token", "_token_id") for name in NAMED),
        *("backend", "device", "device_map", "from_slow", "is_local", "legacy", "use_fast"),
        *("cache_dir", "local_files_only", "revision", "subfolder", "trust_remote_code"),
        *("chat_control_tokens", "chat_template", "response_schema", "response_template"),
        *("clean_text", "do_basic_tokenize", "never_split", "tokenize_words", "wordpieces_prefix"),
        "clean_up_tokenization_spaces",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        *("errors", "remove_space", "sp_model_kwargs"),
        *("language", "max_model_input_sizes", "model_id", "model_type", "name", "name_or_path"),
        *("lowercase", "max_seq_length", "tokenizer_type", "unk_id"),
        *("_commit_hash", "processor_class", "tags", "tokenizer_version", "transformers_version"),
        *("max_length", "stride", "truncation", "truncation_strategy"),
        *("cls_token_type_id", "pad_token_type_id", "pad_to_multiple_of"),
        *("padding", "padding_strategy"),
        *("return_attention_mask", "return_length", "return_offsets_mapping"),
        *("return_overflowing_tokens", "return_special_tokens_mask", "return_tensors"),
        *("return_token_type_ids", "is_split_into_words"),
        *("files_loaded", "verbose", "vocab_size"),
    )
)
# Of the arguments that sentence-transformers hands over, those that say where files come from.
_HUB = (*("force_download", "proxies", "resume_download", "token", "use_auth_token"),)


@dataclass
class Settings:
    """What the files come to.

    Attributes:
        directory: where they lie.
        path: the file to name in messages.
        values: the settings that are read, tokens as a class is given them.
        own_tokens: special tokens of the model's own, by their names.
        added: the added tokens that the files list, in the order of their ids.
        arguments: the names that sentence-transformers hands over.
        content: of ``tokenizer.json``; None where there is no such file.
    """

    directory: Path
    path: Path
    values: dict[str, Any]
    own_tokens: dict[str, Token] = field(default_factory=dict)
    added: list[AddedToken] = field(default_factory=list)
    arguments: frozenset[str] = frozenset()
    content: dict[str, Any] | None = None

    def check(self, names: Iterable[str]) -> None:
        """Check the settings of the class that reads `names`."""
        for name, (expected, fits) in READ.items():
            if name in _OF_SOME_CLASSES and name not in names:
                continue
            if name in self.values and not fits(self.values[name]):
                raise ModelFormatError(
                    f"{self.path}: {name} should be {expected}, found {self.values[name]!r}"
                )
        for name, token in self.own_tokens.items():
            if not _is_token(token):
                raise ModelFormatError(f"{self.path}: {name} should be a token, found {token!r}")


def read_config(directory: Path) -> dict[str, Any]:
    """The content of ``tokenizer_config.json``, empty where there is none."""
    path = directory / CONFIG
    return read_object(path) if is_there(path) else {}


def read_settings(
    directory: Path, said: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Settings:
    """Read all that decides the ids of a directory's tokenizer, but for its class and vocabulary.

    Args:
        directory: where the files lie.
        said: the content of ``tokenizer_config.json``.
        arguments: what ``sentence_bert_config.json`` hands over (``tokenizer_args``).

    Raises:
        ModelFormatError: a file is broken, or a setting is not what it should be.
        UnsupportedModelError: a setting is not known, and may change ids.
    """
    path = directory / CONFIG
    values = {name: value for name, value in said.items() if name != "tokenizer_class"}
    settings = Settings(directory, path, values, arguments=frozenset(arguments))
    if is_there(directory / "tokenizer.json"):
        settings.content = _read_tokenizer_file(directory / "tokenizer.json")
        for name in ("add_bos_token", "add_eos_token"):
            values.pop(name, None)
    _check_known(path, values)
    _check_known(directory / "tokenizer_args", arguments, _HUB)
    _check_arguments(directory, arguments)
    values |= arguments
    _move_additional(values)
    if not isinstance(own := values.get("model_specific_special_tokens", {}), dict):
        raise ModelFormatError(
            f"{path}: model_specific_special_tokens should be an object of names and tokens, "
            f"found {_short(own)}"
        )
    own = {
        name: values.pop(name)
        for name in list(values)
        if _names_a_token(name) and isinstance(values[name], str)
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        own |= values.pop("extra_special_tokens")
    if own:
        values["model_specific_special_tokens"] = own
    listed = _read_added(settings)
    values = settings.values = _with_objects(values, path)
    by_content = {str(token): token for token in listed.values()}
    for name in NAMED:
        if isinstance(token := values.get(name), (str, AddedToken)):
            values[name] = by_content.get(str(token), token)
    settings.added = [listed[index] for index in sorted(listed)]
    settings.own_tokens = {
        name: values.pop(name)
        for name in list(values)
        if _names_a_token(name) and isinstance(values[name], (str, AddedToken))
    }
    if isinstance(values.get("extra_special_tokens"), dict):
        settings.own_tokens |= values.pop("extra_special_tokens")
    settings.own_tokens |= values.pop("model_specific_special_tokens", {})
    return settings


def _read_tokenizer_file(path: Path) -> dict[str, Any]:
    """The content of a ``tokenizer.json``, as far as it is read here: ModelFormatError where a part
    is not of its kind."""
    content = read_object(path, limit=LARGEST_VOCABULARY)
    model = content.get("model")
    if not isinstance(model, dict):
        raise ModelFormatError(f"{path}: model should be an object, found {_short(model)}")
    added = content.get("added_tokens")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ModelFormatError(
            f"{path}: added_tokens should be a list of objects, found {_short(added)}"
        )
    return content


def _names_a_token(name: str) -> bool:
    return name.endswith("_token") and name not in NAMED


def _check_arguments(path: Path, arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if value and name in (*_FILES, "subfolder", "tokenizer_type"):
            raise UnsupportedModelError(f"{path}: tokenizer_args names a {name}, which is not read")


def _check_known(path: Path, values: Mapping[str, Any], more: tuple[str, ...] = ()) -> None:
    """Refuse what is not known, and what is known to change ids and not supported."""
    for name, value in values.items():
        known = name in READ or name in HARMLESS or name in _BY_NAME or name in more
        if not known and not (
            name.endswith("_token") and isinstance(value, (str, dict, type(None)))
        ):
            raise UnsupportedModelError(
                f"{path}: the setting {name!r} is not known, and may change token ids"
            )
    code = values.get("auto_map")
    if isinstance(code, (list, tuple)) or (isinstance(code, dict) and code.get("AutoTokenizer")):
        raise UnsupportedModelError(
            f"{path}: auto_map names code of its own for the tokenizer, which may give other ids "
            "and is never run"
        )
    for name in ("init_inputs", "fix_mistral_regex"):
        if values.get(name):
            raise UnsupportedModelError(f"{path}: {name} is set, which is not supported")
    files = values.get("fast_tokenizer_files")
    if files and files != ["tokenizer.json"]:
        raise UnsupportedModelError(
            f"{path}: fast_tokenizer_files is {_short(files)}; only tokenizer.json is read"
        )


def _move_additional(values: dict[str, Any]) -> None:
    """The old name of the extra special tokens becomes the new one, where that says nothing."""
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")


def _read_added(settings: Settings) -> dict[int, AddedToken]:
    """The added tokens by their ids. Where tokenizer_config.json lists them, older files are not
    read at all; otherwise special_tokens_map.json overrules what was read so far."""
    values, directory = settings.values, settings.directory
    if "added_tokens_decoder" in values:
        return _decoder(settings.path, values.pop("added_tokens_decoder"))
    map_path = directory / "special_tokens_map.json"
    if is_there(map_path):
        _overrule(settings, map_path, read_object(map_path))
    listed: dict[int, AddedToken] = {}
    added_path = directory / "added_tokens.json"
    if is_there(added_path):
        extra = values.get("extra_special_tokens")
        said = [values.get(name) for name in NAMED] + (extra if isinstance(extra, list) else [])
        special = {str(token) for token in said if _is_token(token)}
        for token, index in read_object(added_path).items():
            if type(index) is not int:
                raise ModelFormatError(
                    f"{added_path}: {token!r} should have an id, found {index!r}"
                )
            flags = {"normalized": token not in special, "special": token in special}
            listed[index] = _added_token(added_path, {"content": token, **flags})
    if settings.content is not None:
        path = directory / "tokenizer.json"
        for entry in settings.content["added_tokens"]:
            index = entry.get("id")
            if type(index) is not int:
                raise ModelFormatError(f"{path}: the added token {_short(entry)} should have an id")
            rest = {name: value for name, value in entry.items() if name != "id"}
            listed[index] = _added_token(path, rest)
    return listed


def _decoder(path: Path, found: Any) -> dict[int, AddedToken]:
    if not isinstance(found, dict):
        raise ModelFormatError(
            f"{path}: added_tokens_decoder should be an object of ids and tokens, "
            f"found {_short(found)}"
        )
    listed = {}
    for index, token in found.items():
        if not index.isdecimal() or len(index) > 10 or not isinstance(token, dict):
            raise ModelFormatError(
                f"{path}: added_tokens_decoder should have an object for each id, "
                f"found {index!r}: {_short(token)}"
            )
        listed[int(index)] = _added_token(path, token)
    return listed


def _overrule(settings: Settings, path: Path, found: Mapping[str, Any]) -> None:
    """Let special_tokens_map.json, whose tokens are all special, overrule what was read so far."""
    values = settings.values
    _check_known(path, found)
    for name, value in found.items():
        if name in settings.arguments and values.get(name):
            continue
        if isinstance(value, dict) and name != "extra_special_tokens":
            value = _added_token(path, {**value, "special": True})
        elif isinstance(value, list) and name == "extra_special_tokens":
            before = values.get(name) or []
            if not isinstance(before, list):
                _not_tokens(path, name, before)
            tokens = list(before)
            for entry in value:
                token = entry
                if isinstance(entry, dict):
                    if "special" in entry:
                        _not_tokens(path, name, entry)
                    token = _added_token(path, {**entry, "special": True})
                if token not in tokens:
                    tokens.append(token)
            value = tokens
        values[name] = value
    if isinstance(values.get("extra_special_tokens"), dict):
        own = values.setdefault("model_specific_special_tokens", {})
        own |= values.pop("extra_special_tokens")


def _not_tokens(path: Path, name: str, found: Any) -> NoReturn:
    raise ModelFormatError(f"{path}: {name} should list tokens, found {_short(found)}")


_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _added_token(path: Path, fields: Mapping[str, Any]) -> AddedToken:
    content = fields.get("content")
    flags = {name: v for name, v in fields.items() if name not in ("content", "__type")}
    if (
        not _is_text(content)
        or not flags.keys() <= set(_TOKEN_FLAGS)
        or not all(isinstance(value, bool) for value in flags.values())
    ):
        raise ModelFormatError(
            f"{path}: an added token should have a content and, as true or false, any of "
            f"{', '.join(_TOKEN_FLAGS)}; found {_short(dict(fields))}"
        )
    return AddedToken(content, **flags)


def _with_objects(value: Any, path: Path) -> Any:
    """The value with every object that says it is an added token made one."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return _added_token(path, value)
        return {name: _with_objects(part, path) for name, part in value.items()}
    if isinstance(value, list):
        return [_with_objects(part, path) for part in value]
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
