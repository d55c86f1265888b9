"""Makes sentence_reference.json and .npz: what sentence-transformers answers for the directories
that it writes, and for those that its older versions have written.

    pip install torch sentence-transformers
    python tests/data/make_sentence_reference.py

Weights are drawn from their names, here and in the tests alike, so that only the JSON files of each
directory, the names and shapes of the tensors, and the answers are recorded.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "boat", "##s", "sea", "caf", "##e", "query", "passage", ":", "a", "b", "c", "."),
]
TEXTS = ["the boats", "a", "the sea . the boats : a cafe", "sea b c a b c"]
PAIRS = [("the boats", "sea"), ("a b", "the cafe . c"), ("query", "the sea : the boats")]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
ACTIVATIONS = (
    *("Identity", "Sigmoid", "Softmax", "Tanh", "ReLU", "GELU", "SiLU", "CELU", "ELU", "ReLU6"),
    *("Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "RReLU"),
    *("LogSoftmax", "Mish", "SELU", "Softmin", "Softplus", "Softshrink", "Softsign", "Tanhshrink"),
)
PROMPTS = {"query": "query : ", "passage": "passage : the", "document": ""}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a name: float32, wide enough that attention is far from uniform."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    values = 1.6 * random.random(shape) - 0.8
    norm = name.endswith("weight") and len(shape) == 1
    return (values + norm).astype(np.float32)


def flags(*modes: str) -> dict[str, Any]:
    """A pooling's file as versions 2 to 5 write it."""
    return {"word_embedding_dimension": 12} | {flag: mode in modes for mode, flag in FLAGS.items()}


def cases() -> dict[str, dict[str, Any]]:
    """Each directory: the modules behind its pooling, the model's options, files that are written
    over those of version 6 (None: taken away), and what is asked."""
    found: dict[str, dict[str, Any]] = {}
    for mode in POOLINGS:
        found[f"pooling {mode}"] = {"pooling": mode}
        found[f"flag {mode}"] = {"files": {"1_Pooling/config.json": flags(mode)}}
    found["pooling list"] = {"pooling": ["lasttoken", "mean", "cls"]}
    found["pooling list of one"] = {
        "files": {"1_Pooling/config.json": {"embedding_dimension": 12, "pooling_mode": ["max"]}}
    }
    found["flags all"] = {"files": {"1_Pooling/config.json": flags(*POOLINGS[::-1])}}
    found["flags none"] = {"files": {"1_Pooling/config.json": flags()}}
    found["flags and a mode"] = {
        "files": {"1_Pooling/config.json": flags("cls") | {"pooling_mode": "max"}}
    }
    found["pooling default"] = {
        "files": {"1_Pooling/config.json": {"word_embedding_dimension": 12}}
    }
    for cut in (5, 99):
        found[f"truncate {cut}"] = {"options": {"truncate_dim": cut}, "behind": ["Normalize"]}
    for name in ACTIVATIONS:
        found[f"dense {name}"] = {"behind": [("Dense", 12, 7, name, {})]}
    found["dense residual"] = {"behind": [("Dense", 12, 12, "Tanh", {"use_residual": True})]}
    found["dense residual projected"] = {
        "behind": [("Dense", 12, 5, "ReLU", {"use_residual": True})]
    }
    found["dense no bias, twice"] = {
        "pooling": ["mean", "max"],
        "behind": [
            ("Dense", 24, 9, "Identity", {"bias": False}),
            ("LayerNorm", 9),
            "Normalize",
            ("Dense", 9, 4, "GELU", {}),
            "Dropout",
        ],
    }
    found["layer norm, normalize"] = {"behind": [("LayerNorm", 12), "Normalize"]}
    found["dense of version 3"] = {
        "behind": [("Dense", 12, 7, "Tanh", {})],
        "files": {
            "2_Dense/config.json": {
                "in_features": 12,
                "out_features": 7,
                "bias": True,
                "activation_function": "torch.nn.modules.activation.Tanh",
            },
            "modules.json": [
                {
                    "idx": 0,
                    "name": "0",
                    "path": "",
                    "type": "sentence_transformers.models.Transformer",
                },
                {
                    "idx": 1,
                    "name": "1",
                    "path": "1_Pooling",
                    "type": "sentence_transformers.models.Pooling",
                },
                {
                    "idx": 2,
                    "name": "2",
                    "path": "2_Dense",
                    "type": "sentence_transformers.models.Dense",
                },
            ],
            "sentence_bert_config.json": {"max_seq_length": 9, "do_lower_case": False},
            "config_sentence_transformers.json": {
                "__version__": {"sentence_transformers": "3.4.1"},
                "prompts": {},
                "default_prompt_name": None,
                "similarity_fn_name": None,
            },
        },
    }
    asked = [{}, {"prompt": "query"}, {"prompt": "passage"}, {"prompt": "a : "}, {"prompt": ""}]
    found["prompts"] = {"options": {"prompts": PROMPTS}, "asked": asked}
    found["prompts, one of them always"] = {
        "options": {"prompts": PROMPTS, "default_prompt_name": "query"},
        "asked": asked,
    }
    for mode in POOLINGS:
        found[f"prompts left out of {mode}"] = {
            "options": {"prompts": PROMPTS},
            "files": {"1_Pooling/config.json": flags(mode) | {"include_prompt": False}},
            "asked": asked,
        }
    for name in ("dot", "euclidean", "manhattan"):
        found[f"similarity {name}"] = {"options": {"similarity_fn_name": name}}
    # CrossEncoders: as version 6 saves them, and as versions 4 and 5, and 3 and before have.
    older = dict.fromkeys(("modules", "sentence_bert_config")) | {
        "config_sentence_transformers": None
    }
    older = {f"{name}.json": None for name in older}
    sigmoid, identity = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
    for labels in (1, 3):
        found[f"cross {labels}"] = {"labels": labels}
        for name in ("Identity", "Sigmoid", "Tanh"):
            found[f"cross {labels} {name}"] = {"labels": labels, "activation": name}
        for path in (sigmoid, identity, "torch.nn.Tanh"):
            found[f"cross {labels}, version 5, {path}"] = {
                "labels": labels,
                "files": older,
                "config": {"sentence_transformers": {"version": "5.1.2", "activation_fn": path}},
            }
            found[f"cross {labels}, version 3, {path}"] = {
                "labels": labels,
                "files": older,
                "config": {"sbert_ce_default_activation_function": path},
            }
        found[f"cross {labels}, version 5, nothing said"] = {
            "labels": labels,
            "files": older,
            "config": {"sentence_transformers": {"version": "5.1.2"}},
        }
    found["cross 1, nothing said"] = {"labels": 1, "files": older}
    found["cross 1, prompts"] = {
        "labels": 1,
        "options": {"prompts": {"query": "query : "}, "default_prompt_name": "query"},
        "asked": [{}, {"prompt": "query"}, {"prompt": ""}, {"prompt": "a . "}],
    }
    found["cross 1, both spellings"] = {
        "labels": 1,
        "files": older,
        "config": {
            "sentence_transformers": {"activation_fn": identity},
            "sbert_ce_default_activation_function": sigmoid,
        },
    }
    return found


def save(path: Path, case: dict[str, Any]) -> None:
    """Have sentence-transformers write the directory of a case, with the weights of `draw`."""
    import torch
    import transformers
    from safetensors import numpy as safetensors
    from sentence_transformers import CrossEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import (
        Dropout,
        LayerNorm,
        Pooling,
        Transformer,
    )

    base = path.with_name("base")
    base.mkdir()
    labels = case.get("labels")
    kind = transformers.BertModel if labels is None else transformers.BertForSequenceClassification
    config = transformers.BertConfig(**SIZES, **({} if labels is None else {"num_labels": labels}))
    kind(config).save_pretrained(base)
    (base / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    options = case.get("options", {})
    if labels is not None:
        name = case.get("activation")
        given = {} if name is None else {"activation_fn": getattr(torch.nn, name)()}
        CrossEncoder(str(base), device="cpu", **given, **options).save_pretrained(str(path))
    else:
        modules = [Transformer(str(base)), Pooling(12, case.get("pooling", "mean"))]
        for item in case.get("behind", []):
            if item == "Normalize":
                modules.append(Normalize())
            elif item == "Dropout":
                modules.append(Dropout())
            elif item[0] == "LayerNorm":
                modules.append(LayerNorm(item[1]))
            else:
                _, takes, gives, name, more = item
                activation = getattr(torch.nn, name)()
                modules.append(Dense(takes, gives, activation_function=activation, **more))
        SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(path))
    for file in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(base / file, path / file)
    for file in ("tokenizer.json", "special_tokens_map.json", "README.md"):
        (path / file).unlink(missing_ok=True)
    shutil.rmtree(base)
    for name, content in case.get("files", {}).items():
        if content is None:
            (path / name).unlink(missing_ok=True)
        else:
            (path / name).write_text(json.dumps(content))
    if "config" in case:
        content = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(content | case["config"]))
    for file in path.rglob("*.safetensors"):
        tensors = safetensors.load_file(file)
        drawn = {name: draw(name, array.shape) for name, array in tensors.items()}
        safetensors.save_file(drawn, file, metadata={"format": "pt"})


def answer(path: Path, case: dict[str, Any], asked: dict[str, Any]) -> np.ndarray:
    """What sentence-transformers answers."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    prompt = asked.get("prompt")
    named = prompt in case.get("options", {}).get("prompts", {})
    given = {} if prompt is None else {"prompt_name" if named else "prompt": prompt}
    if "labels" in case:
        return CrossEncoder(str(path), device="cpu").predict(PAIRS, **given)
    return SentenceTransformer(str(path), device="cpu").encode(TEXTS, **given)


def main() -> None:
    """Write both files."""
    from safetensors import numpy as safetensors

    recorded, arrays = {}, {}
    for name, case in cases().items():
        asked = case.get("asked", [{}])
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model"
            save(path, case)
            for index, one in enumerate(asked):
                arrays[f"{name}/{index}"] = answer(path, case, one).astype(np.float32)
            recorded[name] = {
                "cross": "labels" in case,
                "asked": asked,
                "files": {
                    str(file.relative_to(path)): json.loads(file.read_text())
                    for file in sorted(path.rglob("*.json"))
                },
                "tensors": {
                    str(file.relative_to(path)): {
                        key: list(array.shape) for key, array in safetensors.load_file(file).items()
                    }
                    for file in sorted(path.rglob("*.safetensors"))
                },
            }
        print(name, flush=True)
    # Most of every directory is the same: each content is written once, and has a number.
    contents: list[Any] = []
    for case in recorded.values():
        for part in ("files", "tensors"):
            for name, content in case[part].items():
                if content not in contents:
                    contents.append(content)
                case[part][name] = contents.index(content)
    text = json.dumps({"contents": contents, "cases": recorded}, separators=(",", ":"))
    text = text.replace('},"', '},\n"').replace("},{", "},\n{")
    (HERE / "sentence_reference.json").write_text(text + "\n")
    np.savez_compressed(HERE / "sentence_reference.npz", **arrays)


if __name__ == "__main__":
    main()
