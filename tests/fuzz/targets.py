"""What is fuzzed: formats, each through the face that a user reads it by, and arguments.

An input is made by a random generator that its target and its number seed, so that a number is
enough to make it again. `Target.make` makes it, `Target.run` hands it in: what comes out is an
answer, twice the same bits of it, or a `BertrtError`; anything else is a finding.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from arguments import draw_batch, draw_call, draw_load, draw_packed, take
from mutate import (
    mutate_json,
    mutate_lines,
    mutate_params,
    mutate_safetensors,
    mutate_tree,
    mutate_wire,
    mutate_zip,
)

import bertrt
from bertrt import _native
from bertrt.errors import BertrtError, InvalidTypeError
from bertrt.evaluation.datasets import read_examples, read_texts
from bertrt.models.manifest import MANIFEST, manifest_digest
from bertrt.models.model import Model
from bertrt.models.torch.file import read_torch
from bertrt.plan.plan import Plan

__all__ = ["CORPUS", "SEEDS", "TARGETS", "Case", "Target"]

SEEDS = Path(__file__).parent / "seeds"
CORPUS = Path(__file__).parent / "corpus"


class Case(NamedTuple):
    """An input: a file of a seed and its content, or the arguments of a call and nothing else."""

    seed: str
    file: str
    content: Any


class Target(ABC):
    """One row of the table in docs/security.md. `share`: of the inputs of a run, so many parts:
    as many as take a like time."""

    def __init__(self, name: str, share: float) -> None:
        self.name = name
        self.share = share

    def case(self, number: int) -> Case:
        """The input of a number."""
        return self.make(Random(f"{self.name} {number}"))

    @abstractmethod
    def make(self, random: Random) -> Case:
        """An input."""

    @abstractmethod
    def run(self, case: Case, directory: Path) -> None:
        """Hand it in; `directory` is kept from call to call, and nobody else's."""


# --- files -----------------------------------------------------------------------------------


def load(path: Path) -> None:
    """Load what lies there, and let it answer twice."""
    with bertrt.Engine.load(path, threads=1) as engine:
        same(lambda: engine.run([[2, 5, 3], [4]]))
        text = {
            "question-answering": ("the boat", "the sea"),
            "next-sentence": ("the boat", "the sea"),
            "fill-mask": "the [MASK] sea",
            None: None,
        }.get(engine.task, "The boats at sea, café \u2028 \U0001f600 [MASK] x")
        if text is not None:
            same(lambda: engine.predict_with_outputs(text))


def golden(path: Path) -> None:
    """Read a bundle's recorded answers."""
    Model.open(path).golden()


def same(answer: Callable[[], Any]) -> None:
    """Ask twice, for the same answer, or for the same error, which goes on."""
    found, error = [], None
    for _ in range(2):
        try:
            found.append(digest(answer()))
        except BertrtError as raised:
            error = raised
            found.append(f"{type(error).__name__}: {error}")
    assert found[0] == found[1], "another answer the second time"
    if error is not None:
        raise error


def digest(value: Any) -> str:
    """Of an answer, to the last bit of its arrays."""
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest() + f"{value.dtype} {value.shape}"
    if isinstance(value, Mapping):
        return str({name: digest(own) for name, own in value.items()})
    if isinstance(value, list | tuple):
        return str([digest(own) for own in value])
    if hasattr(value, "__dict__"):
        return digest(vars(value))
    return repr(value)


class Source(NamedTuple):
    """A file of a seed, how it is changed, and who reads it."""

    seed: str
    file: str
    mutate: Callable[[Random, bytes], bytes]
    read: Callable[[Path], None] = load


class FileTarget(Target):
    """Files of models, each changed among its whole fellows."""

    def __init__(self, name: str, share: float, *sources: Source) -> None:
        super().__init__(name, share)
        self.sources = {(own.seed, own.file): own for own in sources}
        self._choices = list(self.sources)

    def make(self, random: Random) -> Case:
        source = self.sources[random.choice(self._choices)]
        content = source.mutate(random, (SEEDS / source.seed / source.file).read_bytes())
        return Case(source.seed, source.file, content)

    def run(self, case: Case, directory: Path) -> None:
        home = directory / case.seed
        if not home.exists():
            shutil.copytree(SEEDS / case.seed, home)
        path = home / case.file
        manifest = home / MANIFEST
        try:
            # As every writer should: what is mapped already stays whole.
            replace(path, case.content)
            if manifest.exists():
                replace(manifest, resealed(manifest.read_bytes(), case.file, case.content))
            self.sources[case.seed, case.file].read(
                home / "model-symbol.json"
                if case.seed == "symbol"
                else path
                if case.seed == "onnx"
                else home
            )
        finally:
            for file in {path, manifest} if manifest.exists() else {path}:
                replace(file, (SEEDS / file.relative_to(directory)).read_bytes())


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of another."""
    draft = path.with_name(f".{path.name}")
    draft.write_bytes(content)
    draft.replace(path)


def resealed(manifest: bytes, file: str, content: bytes) -> bytes:
    """A bundle's manifest, with the digests of what was changed: what an attacker would write."""
    try:
        said = json.loads(manifest)
        if file != MANIFEST:
            sha256 = hashlib.sha256(content).hexdigest()
            said["files"][file] = {"sha256": sha256, "size": len(content)}
        said["manifest_sha256"] = manifest_digest(said)
        return json.dumps(said).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return manifest


def tensors(file: str) -> Callable[[Path], None]:
    """Read a file of torch.save."""
    return lambda home: read_torch(home / file) and None


def read_plain(home: Path) -> None:
    """Read texts without labels."""
    read_texts(home / "texts.txt", "embedding")


def data_file(file: str, task: str, columns: list[str] | None = None) -> Source:
    """A file of labelled data."""

    def read(home: Path) -> None:
        read_examples(home / file, task, columns=columns)

    mutate = mutate_json if task == "question-answering" else mutate_lines
    return Source("data", file, mutate, read)


# --- plans and arguments ---------------------------------------------------------------------


def batch_of(plan: Plan) -> tuple[np.ndarray, ...]:
    ids = np.array([1, 5, 3, 2, 0], np.int32)
    ends = np.array([0, 3, 5], np.int32)
    masked = np.array([[1], [0]], np.int32)
    needs = plan.inputs["masked_positions"] is not None
    return ids, ids * 0, ends, masked if needs else None


class PlanTarget(Target):
    """Plans and weights as the extension takes them: what stands between a file and the kernels."""

    def make(self, random: Random) -> Case:
        plan = open_plan(random.choice(PLANS))
        changed, weights = plan.to_engine(), arrays_of(plan)
        if random.random() < 0.85:
            changed = mutate_tree(random, changed)
        else:
            name = random.choice(list(weights))
            weights[name] = _other(random, weights[name])
        precision = random.choice(("fp32", "fp32", "bf16", "int8", "fp8"))
        return Case("plan", precision, (changed, weights, batch_of(plan)))

    def run(self, case: Case, directory: Path) -> None:
        plan, weights, batch = case.content
        if not isinstance(plan, dict):
            return
        engine = _native.Engine(_native.Model(plan, weights, case.file, 1), 1)
        outputs = [name for name in plan["outputs"] if isinstance(name, str)]
        same(lambda: engine.run(*batch, outputs))


PLANS = ("bundle", "gluon_bundle", "quantized_bundle")


@functools.cache
def open_plan(seed: str) -> Plan:
    return Plan.from_dict(json.loads((SEEDS / seed / "plan.json").read_text()), SEEDS / seed)


def arrays_of(plan: Plan) -> dict[str, np.ndarray]:
    """A plan's weights, as the extension takes them."""
    arrays = {name: constant.array for name, constant in plan.weights.items()}
    return {name: np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for name, a in arrays.items()}


def _other(random: Random, array: np.ndarray) -> np.ndarray:
    kind = random.randrange(6)
    if kind == 0:
        return array[: random.randrange(len(array) + 1)]
    if kind == 1:
        return array.T
    if kind == 2:
        return array.reshape(-1)
    if kind == 3:
        return array.astype(random.choice(("f8", "f2", "i1", "u2", "i4", "?")))
    if kind == 4:
        return np.repeat(array, 2, axis=random.randrange(array.ndim))
    strange = np.array(random.choice((np.nan, np.inf, 1e38, 1e-45, -0.0)))
    return np.where(np.arange(array.size).reshape(array.shape) % 3, array, strange.astype("f4"))


class PackedTarget(Target):
    """Packed batches as the extension takes them, of engines that are made once. No face of the
    package hands in such numbers; the extension stands by itself."""

    def make(self, random: Random) -> Case:
        return Case(random.choice(PLANS), "", draw_packed(random))

    def run(self, case: Case, directory: Path) -> None:
        engine = native_engine(case.seed)
        try:
            same(lambda: engine.run(*case.content))
        except TypeError as error:  # pybind11's, of an argument that is no array of int32
            raise InvalidTypeError(str(error)) from None


@functools.cache
def native_engine(seed: str) -> Any:
    plan = open_plan(seed)
    return _native.Engine(_native.Model(plan.to_engine(), arrays_of(plan)), 1)


class CallTarget(Target):
    """Arguments of the methods of an engine, of engines that are loaded once."""

    def __init__(
        self, name: str, share: float, seeds: tuple[str, ...], draw: Callable[[Random], Any]
    ) -> None:
        super().__init__(name, share)
        self._seeds, self._draw = seeds, draw
        self._engines: dict[str, bertrt.Engine] = {}

    def make(self, random: Random) -> Case:
        return Case(random.choice(self._seeds), "", self._draw(random))

    def run(self, case: Case, directory: Path) -> None:
        path = SEEDS / case.seed
        path = path / "model-symbol.json" if case.seed == "symbol" else path
        if self._draw is draw_load:
            with bertrt.Engine.load(path, **{"threads": 1} | case.content) as engine:
                engine.predict("the sea")
            return
        if case.seed not in self._engines:
            self._engines[case.seed] = bertrt.Engine.load(path, threads=1)
        engine = self._engines[case.seed]
        method, positional, named = case.content
        same(lambda: getattr(engine, method)(*take(positional), **take(named)))


BERT = ("bundle", "gluon_bundle", "quantized_bundle", "huggingface", "torch", "symbol")
TEXTS = ("bundle", "gluon_bundle", "sentence", "torch", "roberta", "tagger")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    TARGETS: dict[str, Target] = {
        target.name: target
        for target in (
            FileTarget(
                "bundle",
                100,
                *(
                    Source(seed, file, mutate)
                    for seed, weights in (
                        ("bundle", "model.safetensors"),
                        ("gluon_bundle", "model-0000.params"),
                        ("quantized_bundle", "model.safetensors"),
                    )
                    for file, mutate in (
                        (MANIFEST, mutate_json),
                        ("plan.json", mutate_json),
                        (weights, mutate_params if "params" in weights else mutate_safetensors),
                    )
                ),
                Source("sentence_bundle", "modules.safetensors", mutate_safetensors),
                Source("sentence_bundle", MANIFEST, mutate_json),
                Source("bundle", "golden.npz", mutate_zip, golden),
            ),
            FileTarget(
                "safetensors",
                300,
                Source("huggingface", "model.safetensors", mutate_safetensors),
                Source("sentence", "Dense/model.safetensors", mutate_safetensors),
            ),
            FileTarget("params", 40, Source("symbol", "model-0000.params", mutate_params)),
            FileTarget("symbol", 30, Source("symbol", "model-symbol.json", mutate_json)),
            FileTarget(
                "onnx",
                8,
                *(
                    Source("onnx", path.name, mutate_wire)
                    for path in sorted((SEEDS / "onnx").glob("*.onnx"))
                ),
            ),
            FileTarget(
                "torch",
                300,
                Source("torch", "pytorch_model.bin", mutate_zip),
                *(
                    Source("torch_files", path.name, mutate_zip, tensors(path.name))
                    for path in sorted((SEEDS / "torch_files").glob("*.bin"))
                ),
            ),
            FileTarget(
                "tokenizer.json",
                100,
                Source("tagger", "tokenizer.json", mutate_json),
                Source("bundle", "tokenizer.json", mutate_json),
            ),
            FileTarget(
                "vocabularies",
                100,
                Source("huggingface", "vocab.txt", mutate_lines),
                Source("roberta", "vocab.json", mutate_json),
                Source("roberta", "merges.txt", mutate_lines),
                Source("xlmr", "sentencepiece.bpe.model", mutate_wire),
                Source("gluon_bundle", "vocab.json", mutate_json),
            ),
            FileTarget(
                "config.json",
                250,
                *(Source(seed, "config.json", mutate_json) for seed in ("huggingface", "torch")),
                *(Source(seed, "config.json", mutate_json) for seed in ("tagger", "roberta")),
                Source("tagger", "tokenizer_config.json", mutate_json),
                *(
                    Source("sentence", f"{name}.json", mutate_json)
                    for name in (
                        "modules",
                        "1_Pooling/config",
                        "Dense/config",
                        "config_sentence_transformers",
                        "sentence_bert_config",
                        "special_tokens_map",
                        "tokenizer_config",
                    )
                ),
            ),
            FileTarget(
                "data",
                1000,
                data_file("pairs.tsv", "MRPC"),
                data_file("scores.csv", "STS-B"),
                data_file("rows.jsonl", "classification", ["text", "label"]),
                data_file("squad.json", "question-answering"),
                data_file("words.conll", "tagging"),
                Source(
                    "data",
                    "texts.txt",
                    mutate_lines,
                    lambda home: read_texts(home / "texts.txt", ""),
                ),
            ),
            PlanTarget("plan", 1000),
            CallTarget("Engine.run", 2000, BERT, draw_batch),
            PackedTarget("packed batches", 2200),
            CallTarget("texts", 2400, TEXTS, draw_call),
            CallTarget("settings", 170, TEXTS, draw_load),
        )
    }
