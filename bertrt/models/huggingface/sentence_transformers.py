"""What sentence-transformers adds to a directory: where the encoder lies, and how it pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertrt.errors import ModelFormatError, UnsupportedModelError
from bertrt.host.files import read_json, read_object

__all__ = ["SENTENCE_CONFIGS", "find_encoder"]


def find_encoder(root: Path) -> tuple[Path, dict[str, Any] | None]:
    """Where the transformer lies, and the pooling if the directory brings one."""
    modules_path = root / "modules.json"
    if not modules_path.exists():
        alone = root / "1_Pooling" / "config.json"
        return root, _pooling(alone, normalize=False) if alone.exists() else None
    modules = read_json(modules_path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str)
        for m in modules
    ):
        raise ModelFormatError(f"{modules_path} should list modules with a type and a path each")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModelError(
            f"{modules_path}: the modules {', '.join(kinds)} are not supported; "
            "supported is Transformer, Pooling and, if wanted, Normalize"
        )
    for module in modules:
        if "\0" in module["path"]:  # which no file system takes
            raise ModelFormatError(f"{modules_path}: {module['path']!r} is no path")
        inside = (root / module["path"]).resolve()
        if inside != root.resolve() and root.resolve() not in inside.parents:
            raise ModelFormatError(f"{modules_path}: {module['path']!r} leads out of the directory")
    prompts = root / "config_sentence_transformers.json"
    if prompts.exists() and (prompt := read_object(prompts).get("default_prompt_name")):
        raise UnsupportedModelError(
            f"{prompts}: default_prompt_name {prompt!r} puts text before every input, "
            "which is not supported"
        )
    pooling = _pooling(
        root / modules[1]["path"] / "config.json", normalize=kinds[-1] == "Normalize"
    )
    return root / modules[0]["path"], pooling


_POOLING_NAMES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}


def _pooling(path: Path, *, normalize: bool) -> dict[str, Any]:
    config = read_object(path)
    if isinstance(config.get("pooling_mode"), str):  # the short form of newer versions
        chosen = [config["pooling_mode"]]
    else:
        chosen = [
            _POOLING_NAMES.get(name, name)
            for name, value in config.items()
            if name.startswith("pooling_mode_") and value
        ]
    if len(chosen) != 1 or chosen[0] not in _POOLING_NAMES.values():
        raise UnsupportedModelError(
            f"{path}: the pooling {' + '.join(chosen) or 'none'} is not supported; "
            "supported are mean and cls"
        )
    return {"mode": chosen[0], "normalize": normalize}


# Before modules had one name for it, each family of transformers had its own.
SENTENCE_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "xlm-roberta", "electra")
)
