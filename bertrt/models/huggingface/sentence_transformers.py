"""What sentence-transformers adds to a directory: where the encoder lies, how it pools, what comes
behind the pooling, prompts, and what a CrossEncoder makes of its logits.

Read from the source of its version 6, which reads what versions 2 to 5 have written; the places are
``base/model.py``, ``base/modules/``, ``sentence_transformer/modules/`` and
``cross_encoder/model.py``. What would change a number and is not known here is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import MissingFileError, ModelFormatError, UnsupportedModelError
from bertrt.host.files import is_there, read_json, read_object
from bertrt.models.safetensors import read_safetensors
from bertrt.tasks.activations import ACTIVATIONS
from bertrt.tasks.modules import Module, make_modules

__all__ = ["SENTENCE_CONFIGS", "SentenceModel", "classifier_activation", "read_sentence_model"]

# Before modules had one name for it, each family of transformers had its own.
SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in (
        "bert",
        "roberta",
        "distilbert",
        "camembert",
        "albert",
        "xlm-roberta",
        "xlnet",
        "electra",
    )
)
_MODEL_CONFIG = "config_sentence_transformers.json"
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# The flags of a pooling before version 6, in the order in which their results are joined.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# What else a module's file may say. The width of a pooling is only told to others there.
_POOLING_FIELDS = {*_POOLING_FLAGS, "pooling_mode", "include_prompt"} | {
    "embedding_dimension",
    "word_embedding_dimension",
}
_DENSE_FIELDS = {"in_features", "out_features", "bias", "activation_function", "use_residual"} | {
    "module_input_name",
    "module_output_name",
}
_VECTOR = "sentence_embedding"

# What a transformer's file may say: what decides ids, which is read elsewhere; what changes no
# number; and what has to be as bertrt computes it.
_TRANSFORMER_FIELDS = {
    "max_seq_length": "tokenizer",
    "do_lower_case": "tokenizer",
    "tokenizer_args": "tokenizer",
    "processor_kwargs": "tokenizer",
    "tokenizer_name_or_path": "read",
    "unpad_inputs": "harmless",
    "transformer_task": "read",
    "modality_config": "read",
    "module_output_name": "read",
    "model_args": "read",
    "model_kwargs": "read",
    "config_args": "read",
    "config_kwargs": "read",
    "processing_kwargs": "read",
    "query_length": "read",
    "document_length": "read",
    "query_expansion": "read",
}
# How a model is loaded, and not what it computes in float32.
_HARMLESS_ARGUMENTS = {"trust_remote_code", "torch_dtype", "dtype", "attn_implementation"} | {
    "low_cpu_mem_usage",
    "device_map",
    "revision",
    "use_safetensors",
    "cache_dir",
    "token",
    "local_files_only",
    "add_pooling_layer",
}


@dataclass(frozen=True)
class SentenceModel:
    """What a directory says beside its transformer.

    Attributes:
        encoder: the transformer's directory; the directory itself where nothing else is said.
        cross_encoder: whether it says that it is a CrossEncoder.
        pooling: its pooling as `bertrt.tasks.settings` has it; None where it brings none.
        modules: what comes behind the pooling.
        prompts: "prompts" and "default_prompt_name", as far as they are not the default.
        activation: the path of a CrossEncoder's activation, where its own file names one.
    """

    encoder: Path
    cross_encoder: bool = False
    pooling: dict[str, Any] | None = None
    modules: tuple[Module, ...] = ()
    prompts: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None


def read_sentence_model(root: Path) -> SentenceModel:
    """Read a directory, which need not be one of sentence-transformers.

    Raises:
        ModelFormatError: a file is broken; UnsupportedModelError where it asks for something that
            bertrt does not have.
        MissingFileError: a module's file is not there.
    """
    modules_path = root / "modules.json"
    if not is_there(modules_path):
        alone = root / "1_Pooling" / "config.json"
        if not is_there(alone):
            return SentenceModel(root)
        return _sentence_transformer(root, root, alone, [])
    modules = _read_modules(modules_path)
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    kind = _model_config(root).get("model_type", "SentenceTransformer")
    first = root / modules[0]["path"]
    if kinds == ["Transformer"]:
        task = _transformer_config(first)[1].get("transformer_task")
        if kind == "CrossEncoder" or task == "sequence-classification":
            _check_transformer(first, "sequence-classification", "logits")
            return _cross_encoder(root, first)
    if kind != "SentenceTransformer":
        raise UnsupportedModelError(
            f"{root / _MODEL_CONFIG}: the model_type {kind!r} with the modules {', '.join(kinds)} "
            "is not supported; supported are SentenceTransformer, and CrossEncoder of a "
            "Transformer alone"
        )
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= _BEHIND.keys():
        raise UnsupportedModelError(
            f"{modules_path}: the modules {', '.join(kinds)} are not supported; supported is "
            f"Transformer, Pooling and, behind them if wanted, {', '.join(_BEHIND)}; or a "
            "CrossEncoder's Transformer alone"
        )
    _check_transformer(first, "feature-extraction", "last_hidden_state")
    behind = [
        (kind, root / module["path"]) for kind, module in zip(kinds[2:], modules[2:], strict=True)
    ]
    return _sentence_transformer(root, first, root / modules[1]["path"] / "config.json", behind)


def _read_modules(path: Path) -> list[dict[str, str]]:
    modules = read_json(path)
    if (
        not isinstance(modules, list)
        or not modules
        or not all(
            isinstance(m, dict)
            and isinstance(m.get("type"), str)
            and isinstance(m.get("path"), str)
            for m in modules
        )
    ):
        raise ModelFormatError(f"{path} should list modules with a type and a path each")
    root = path.parent.resolve()
    for module in modules:
        if not module["type"].startswith("sentence_transformers."):
            raise UnsupportedModelError(
                f"{path}: the module {module['type']} is code of the model's own, which may "
                "compute something else and is never run"
            )
        if "\0" in module["path"]:  # which no file system takes
            raise ModelFormatError(f"{path}: {module['path']!r} is no path")
        inside = (root / module["path"]).resolve()
        if inside != root and root not in inside.parents:
            raise ModelFormatError(f"{path}: {module['path']!r} leads out of the directory")
    return modules


def _model_config(root: Path) -> dict[str, Any]:
    path = root / _MODEL_CONFIG
    return read_object(path) if is_there(path) else {}


def _cross_encoder(root: Path, encoder: Path) -> SentenceModel:
    config, path = _model_config(root), root / _MODEL_CONFIG
    return SentenceModel(
        encoder,
        cross_encoder=True,
        prompts=_prompts(config, path, {}),
        activation=_optional_text(config, "activation_fn", path),
    )


def _sentence_transformer(
    root: Path, encoder: Path, pooling_path: Path, behind: Sequence[tuple[str, Path]]
) -> SentenceModel:
    config, path = _model_config(root), root / _MODEL_CONFIG
    pooling = _pooling(pooling_path)
    modules = _modules(behind)
    # The last of them is the setting `normalize`.
    pooling["normalize"] = bool(modules) and modules[-1].kind == "normalize"
    if pooling["normalize"]:
        modules = modules[:-1]
    if modules:
        pooling["modules"] = [module.describe() for module in modules]
    cut = config.get("truncate_dim")
    if cut is not None and (type(cut) is not int or cut < 1):
        raise ModelFormatError(
            f"{path}: truncate_dim should be a whole number from 1, found {cut!r}"
        )
    similarity = _optional_text(config, "similarity_fn_name", path) or _SIMILARITIES[0]
    if similarity not in _SIMILARITIES:
        raise UnsupportedModelError(
            f"{path}: similarity_fn_name {similarity!r} is not supported; supported are "
            f"{', '.join(_SIMILARITIES)}"
        )
    pooling |= {} if cut is None else {"truncate_dim": cut}
    pooling |= {"similarity": similarity} if is_there(path) else {}
    # Every SentenceTransformer has these names, for no text unless one is given.
    prompts = _prompts(config, path, {"query": "", "document": ""} if is_there(path) else {})
    return SentenceModel(encoder, pooling=pooling, modules=modules, prompts=prompts)


def _prompts(config: Mapping[str, Any], path: Path, usual: Mapping[str, str]) -> dict[str, Any]:
    found = config.get("prompts", {})
    if not isinstance(found, dict) or not all(
        text is None or isinstance(text, str) for text in found.values()
    ):
        raise ModelFormatError(f"{path}: prompts should be texts by their names, found {found!r}")
    prompts = {**usual, **{name: text or "" for name, text in found.items()}}
    default = _optional_text(config, "default_prompt_name", path)
    if default is not None and default not in prompts:
        raise ModelFormatError(
            f"{path}: default_prompt_name is {default!r}, and the prompts are "
            f"{', '.join(prompts) or 'none'}"
        )
    settings: dict[str, Any] = {"prompts": prompts} if prompts else {}
    return settings | ({} if default is None else {"default_prompt_name": default})


def _optional_text(config: Mapping[str, Any], name: str, path: Path) -> str | None:
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise ModelFormatError(f"{path}: {name} should be a text or null, found {value!r}")
    return value


# --- the transformer ------------------------------------------------------------------------------


def _transformer_config(directory: Path) -> tuple[Path, dict[str, Any]]:
    for name in SENTENCE_CONFIGS:
        if is_there(directory / name) and (content := read_object(directory / name)):
            return directory / name, content
    return directory / SENTENCE_CONFIGS[0], {}


def _check_transformer(directory: Path, task: str, output: str) -> None:
    """Refuse a transformer that computes something else than `output` of `task`."""
    path, config = _transformer_config(directory)
    for name, value in config.items():
        if name not in _TRANSFORMER_FIELDS:
            raise UnsupportedModelError(
                f"{path}: {name} is not known, and may change what the model computes; known are "
                f"{', '.join(_TRANSFORMER_FIELDS)}"
            )
        if _TRANSFORMER_FIELDS[name] != "read" or not value:
            continue
        if name == "transformer_task":
            fits = value == task
        elif name == "modality_config":
            fits = isinstance(value, dict) and value.get("text") in (
                {"method": "forward", "method_output_name": output},
                {"method": "forward", "method_output_name": [output]},
            )
        elif name == "module_output_name":
            fits = value == ("scores" if output == "logits" else "token_embeddings")
        else:
            fits = isinstance(value, dict) and value.keys() <= _HARMLESS_ARGUMENTS
        if not fits:
            raise UnsupportedModelError(f"{path}: {name} is {value!r}, which is not supported")


# --- the pooling and what comes behind it ---------------------------------------------------------


def _pooling(path: Path) -> dict[str, Any]:
    config = read_object(path)
    if unknown := sorted(config.keys() - _POOLING_FIELDS):
        raise UnsupportedModelError(
            f"{path}: {', '.join(unknown)} is not supported; supported are "
            f"{', '.join(sorted(_POOLING_FIELDS))}"
        )
    flags = [name for name in _POOLING_FLAGS if name in config]
    for name in (*flags, "include_prompt"):
        if not isinstance(config.get(name, True), bool):
            raise ModelFormatError(
                f"{path}: {name} should be true or false, found {config[name]!r}"
            )
    if "pooling_mode" in config:
        mode = config["pooling_mode"]
    else:
        mode = [_POOLING_FLAGS[name] for name in _POOLING_FLAGS if config.get(name)] or "mean"
    modes = [mode] if isinstance(mode, str) else mode
    known = _POOLING_FLAGS.values()
    if not isinstance(modes, list) or not modes or not all(one in known for one in modes):
        raise UnsupportedModelError(
            f"{path}: the pooling {mode!r} is not supported; supported are "
            f"{', '.join(known)}, or a list of these"
        )
    pooling: dict[str, Any] = {"mode": modes[0] if len(modes) == 1 else modes}
    if not config.get("include_prompt", True):
        pooling["include_prompt"] = False
    return pooling


def _modules(behind: Sequence[tuple[str, Path]]) -> tuple[Module, ...]:
    described: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for kind, directory in behind:
        path = directory / "config.json"
        wanted = _WANTED.get(kind, ())
        config = read_object(path) if wanted or is_there(path) else {}
        if missing := [name for name in wanted if name not in config]:
            raise ModelFormatError(f"{path} does not say {', '.join(missing)}")
        for name in ("module_input_name", "module_output_name"):
            if config.get(name) not in (None, _VECTOR):
                raise UnsupportedModelError(
                    f"{path}: {name} is {config[name]!r}, and only {_VECTOR!r} is supported"
                )
        found = _BEHIND[kind](config, path)
        if found is None:
            continue
        roles = _ROLES[found["kind"]]
        for name, array in _tensors(directory).items() if roles else ():
            if name not in roles:
                raise UnsupportedModelError(
                    f"{directory}: the tensor {name} is not supported; supported are "
                    f"{', '.join(roles)}"
                )
            arrays[f"{len(described)}.{roles[name]}"] = array
        described.append(found)
        _check_sizes(config, path, arrays, len(described) - 1)
    return make_modules(described, arrays, str(behind[0][1].parent) if behind else "")


def _check_sizes(
    config: Mapping[str, Any], path: Path, arrays: Mapping[str, np.ndarray], index: int
) -> None:
    """Hold a module's file against its weights, as loading them into it would."""
    weight, bias = arrays.get(f"{index}.weight"), f"{index}.bias" in arrays
    if weight is None or weight.ndim == 0:
        return
    sizes = {"in_features": weight.shape[-1], "out_features": weight.shape[0]}
    for name, found in {**sizes, "dimension": weight.shape[0], "bias": bias}.items():
        if config.get(name, found) != found:
            raise ModelFormatError(
                f"{path}: {name} is {config[name]!r}, and the weights beside it have {found!r}"
            )


# What a module's file has to say; the others may have none.
_WANTED = {"Dense": ("in_features", "out_features"), "LayerNorm": ("dimension",)}
_ROLES = {
    "dense": {
        "linear.weight": "weight",
        "linear.bias": "bias",
        "residual.weight": "residual",
    },
    "layer_norm": {"norm.weight": "weight", "norm.bias": "bias"},
    "normalize": {},
}


def _dense(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if unknown := sorted(config.keys() - _DENSE_FIELDS):
        raise UnsupportedModelError(
            f"{path}: {', '.join(unknown)} is not supported; supported are "
            f"{', '.join(sorted(_DENSE_FIELDS))}"
        )
    residual = config.get("use_residual", False)
    if not isinstance(residual, bool):
        raise ModelFormatError(f"{path}: use_residual should be true or false, found {residual!r}")
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    return {
        "kind": "dense",
        "activation": _activation(activation, f"{path}: activation_function"),
        "residual": residual,
    }


# What may come behind a pooling; a dropout does nothing where nothing is trained.
_BEHIND = {
    "Dense": _dense,
    "LayerNorm": lambda config, path: {"kind": "layer_norm"},
    "Normalize": lambda config, path: {"kind": "normalize"},
    "Dropout": lambda config, path: None,
}


def _tensors(directory: Path) -> dict[str, np.ndarray]:
    """A module's weights, as float32."""
    path, other = directory / "model.safetensors", directory / "pytorch_model.bin"
    if is_there(path):
        found = read_safetensors(path)
    elif is_there(other):
        from bertrt.models.torch.file import read_torch

        found = read_torch(other)
    else:
        raise MissingFileError(f"{path} does not exist, and no {other.name}")
    return {name: constant.array for name, constant in found.items()}


# --- activations ----------------------------------------------------------------------------------


def _activation(value: Any, where: str) -> str:
    """The name that `bertrt.tasks.activations` has for a class of torch, in lower case."""
    package, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
    places = ("torch.nn", "torch.nn.modules", "torch.nn.modules.activation")
    if name not in ACTIVATIONS or package not in (*places, "torch.nn.modules.linear"):
        raise UnsupportedModelError(
            f"{where} is {value!r}, which is not supported; supported are, of torch.nn, "
            f"{', '.join(ACTIVATIONS)}"
        )
    return name.lower()


def classifier_activation(
    sentence: SentenceModel, config: Mapping[str, Any], path: Path, classes: int
) -> tuple[str, bool]:
    """What is made of a sequence classifier's logits, and whether a CrossEncoder says so.

    The file of version 6 goes before config.json's ``sentence_transformers`` (versions 4 and 5),
    and that before ``sbert_ce_default_activation_function`` (before 4). A CrossEncoder that says
    nothing has a sigmoid over one logit, and leaves several as they are. Where nothing tells of
    a CrossEncoder, it is what the pipeline of transformers does: a softmax; over one logit a
    sigmoid, as a CrossEncoder would, unless the model was trained as a regression.

    Args:
        sentence: what the directory says beside its transformer.
        config: the content of ``config.json``.
        path: its path.
        classes: the number of logits.

    Returns:
        The name of the activation, as in `bertrt.tasks.settings`.

    Raises:
        ModelFormatError: an entry is not what it should be; UnsupportedModelError where it names an
            activation that bertrt does not have.
    """
    entry, older = config.get("sentence_transformers"), "sbert_ce_default_activation_function"
    if entry is not None and not isinstance(entry, dict):
        raise ModelFormatError(f"{path}: sentence_transformers should be an object")
    told = sentence.cross_encoder or entry is not None or config.get(older) is not None
    named: Any
    if sentence.activation is not None:
        named, where = sentence.activation, f"{_MODEL_CONFIG}: activation_fn"
    elif entry is not None and "activation_fn" in entry:
        named, where = entry["activation_fn"], f"{path}: sentence_transformers, activation_fn"
    else:
        named, where = config.get(older), f"{path}: {older}"
    if named is not None:
        return _activation(named, where), told
    if told:
        return ("sigmoid" if classes == 1 else "identity"), told
    kind = config.get("problem_type")
    if kind == "regression":
        return "identity", told
    return ("sigmoid" if classes == 1 or kind == "multi_label_classification" else "softmax"), told
