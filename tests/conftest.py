"""Tests that need MXNet, what stands for it where it is not installed, and Hugging Face directories
small enough for an oracle in plain numpy."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

# MXNet 1.9.1 imports with no numpy of a Python above 3.11, and GluonNLP needs it.
MXNET = all(importlib.util.find_spec(name) for name in ("mxnet", "gluonnlp"))
MISSING = pytest.StashKey[int]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not MXNET:
        for item in items:
            if item.get_closest_marker("mxnet"):
                item.add_marker(pytest.mark.skip(reason="needs MXNet, which is not installed here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Count the tests that need MXNet; for want of it no other may be skipped."""
    report = yield
    # A test that is expected to fail, and does, is reported as skipped too, with this attribute.
    if not MXNET and report.skipped and not hasattr(report, "wasxfail"):
        if item.get_closest_marker("mxnet"):
            item.config.stash[MISSING] = item.config.stash.get(MISSING, 0) + 1
        elif _for_want_of_mxnet(report):
            report.outcome = "failed"
            report.longrepr = f"{report.longrepr[2]}; the test lacks the mark mxnet"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    if not MXNET and report.skipped and _for_want_of_mxnet(report):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}; give its tests the mark mxnet"
    return report


def _for_want_of_mxnet(report: pytest.TestReport | pytest.CollectReport) -> bool:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    return any(f"could not import '{name}" in reason for name in ("mxnet", "gluonnlp"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not MXNET:
        count = config.stash.get(MISSING, 0)
        terminalreporter.write_line(f"{count} tests need MXNet and did not run")


@pytest.fixture(scope="session")
def with_mxnet() -> bool:
    """Whether MXNet and GluonNLP are installed."""
    return MXNET


class Recorded:
    """What MXNet answered, for environments without it.

    Where MXNet is, a test gets MXNet's own answer, and what is recorded is held against that;
    elsewhere it gets what is recorded. The file is made anew by

        rm tests/data/gluon_recorded.npz; BERTRT_RECORD=1 .venv/bin/pytest tests

    and what is missing in it without the first command.
    """

    path = Path(__file__).parent / "data" / "gluon_recorded.npz"

    def __init__(self) -> None:
        self.recording = MXNET and bool(os.environ.get("BERTRT_RECORD"))
        self.changed = False
        self.stored: dict[str, np.ndarray] = {}
        if self.path.exists():
            with np.load(self.path, allow_pickle=False) as file:
                self.stored = dict(file)

    def save(self) -> None:
        if self.changed:
            np.savez_compressed(self.path, **dict(sorted(self.stored.items())))

    def _get(self, name: str) -> np.ndarray:
        if name not in self.stored:
            pytest.fail(f"nothing is recorded as {name!r}; {self.__doc__}")
        return self.stored[name]

    def array(self, name: str, live: Callable[[], np.ndarray]) -> np.ndarray:
        """An array, which `live` makes with MXNet."""
        if not MXNET:
            return self._get(name)
        array = live()
        if self.recording:
            self.stored[name], self.changed = array, True
        recorded = self._get(name)
        assert recorded.shape == array.shape, name
        scale = max(1.0, float(np.abs(array).max(initial=0.0)))
        np.testing.assert_allclose(recorded / scale, array / scale, atol=5e-6, err_msg=name)
        return array

    def arrays(self, name: str, live: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        """Several arrays, which `live` makes with MXNet."""
        if MXNET:
            found = live()
            return [self.array(f"{name}/{i}", lambda i=i: found[i]) for i in range(len(found))]
        stored = [self._get(f"{name}/0")]
        while f"{name}/{len(stored)}" in self.stored:
            stored.append(self.stored[f"{name}/{len(stored)}"])
        return stored

    def text(self, name: str, live: Callable[[], str], same: Callable[[str], Any] = str) -> str:
        """A text, which `live` makes with MXNet; `same` gives what of it has to stay as it is."""
        if not MXNET:
            return self._get(name).tobytes().decode()
        text = live()
        if self.recording:
            self.stored[name], self.changed = np.frombuffer(text.encode(), np.uint8), True
        assert same(self._get(name).tobytes().decode()) == same(text), name
        return text

    def symbol(self, name: str, live: Callable[[], str]) -> str:
        """A symbol's JSON: the names in it have numbers that depend on what was made before."""

        def graph(text: str) -> Any:
            content = json.loads(text)
            return content["heads"], [
                (node["op"], node["inputs"], self._attributes(node)) for node in content["nodes"]
            ]

        return self.text(name, lambda: json.dumps(json.loads(live())), graph)

    @staticmethod
    def _attributes(node: dict[str, Any]) -> dict[str, str]:
        return {k: v for k, v in node.get("attrs", {}).items() if not k.startswith("__")}


@pytest.fixture(scope="session")
def recorded() -> Iterator[Recorded]:
    """What MXNet answered."""
    made = Recorded()
    yield made
    made.save()


@pytest.fixture(scope="session")
def write_params():
    """A function: path, (name, float32 array) pairs -> the path of a .params file, as MXNet writes
    it for ``arg:`` names."""

    def write(path: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> Path:
        pairs = list(arrays)
        data = struct.pack("<QQQ", 0x112, 0, len(pairs))
        for _, array in pairs:
            # A dense array of the CPU, of float32
            data += struct.pack("<Iii", 0xF993FAC9, 0, array.ndim)
            data += struct.pack(f"<{array.ndim}q", *array.shape) + struct.pack("<iii", 1, 0, 0)
            data += np.ascontiguousarray(array, "<f4").tobytes()
        data += struct.pack("<Q", len(pairs))
        for name, _ in pairs:
            data += struct.pack("<Q", len(name) + 4) + b"arg:" + name.encode()
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(scope="session")
def assemble(write_params):
    """A function that makes of a symbol and its weights what export_model makes of a net."""

    def assemble(
        out: Path,
        symbol: str,
        arrays: list[tuple[str, np.ndarray]],
        vocab: str,
        *,
        task: str,
        labels: list[str] | None = None,
        settings: dict[str, Any] | None = None,
        max_length: int,
    ) -> None:
        """A bundle as export_model makes it, of a graph and its weights."""
        from bertrt.export.golden import record_golden
        from bertrt.export.model import TokenizerFile, seal
        from bertrt.export.symbol_to_onnx import symbol_to_onnx
        from bertrt.export.task import apply_preset, check_labels, check_pooling

        from bertrt.compiler.pipeline import compile_graph
        from bertrt.models.bundle import write_plan, writing
        from bertrt.models.huggingface.graph import width_of
        from bertrt.models.manifest import ONNX, PARAMS, SYMBOL
        from bertrt.models.symbol.reader import read_mxnet
        from bertrt.plan.interpret import interpret
        from bertrt.tasks.settings import complete_settings

        task, labels, settings = apply_preset(task, labels, settings)
        size = len(json.loads(vocab)["idx_to_token"])
        with writing(out) as draft:
            (draft.directory / SYMBOL).write_text(symbol)
            paths = draft.directory / SYMBOL, write_params(draft.directory / PARAMS, arrays)
            symbol_to_onnx(*paths, draft.directory / ONNX)
            plan, _ = compile_graph(read_mxnet(*paths))
            write_plan(plan, draft.directory)
            golden = record_golden(
                functools.partial(interpret, plan),
                plan.architecture,
                masked=plan.inputs["masked_positions"] is not None,
            )
            seal(
                draft,
                plan,
                tokenizer=TokenizerFile("gluonnlp", vocab, True, max_length, size),
                task=task,
                labels=check_labels(labels, task, width_of(plan)),
                pooling=check_pooling(None, task, list(plan.outputs)),
                settings=complete_settings(settings, task, max_length),
                origin={"framework": "gluonnlp"},
                golden=golden,
            )

    return assemble


DTYPES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "int64": "I64",
    "bool": "BOOL",
}
TORCH = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def torch_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle of a dictionary of tensors, instruction by instruction, each tensor alone in its
    storage; torch is not needed for it."""

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    def numbers(values: Iterable[int]) -> bytes:
        return b"(" + b"".join(b"J" + int(v).to_bytes(4, "little") for v in values) + b"t"

    out = b"\x80\x02}("
    for key, (name, array) in enumerate(arrays.items()):
        storage = b"".join(
            (
                b"(" + text("storage"),
                b"ctorch\n" + TORCH[str(array.dtype)].encode() + b"\n",
                text(str(key)) + text("cpu"),
                b"J" + array.size.to_bytes(4, "little") + b"tQ",
            )
        )
        strides = [step // array.itemsize for step in array.strides]
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0"
        out += numbers(array.shape) + numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u."


class HuggingFace:
    """Writes model directories below `root`, and knows what they should answer."""

    config: ClassVar[dict[str, Any]] = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "vocab_size": 30,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    words = (
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *("the", "boat", "##s", "sea", "caf", "##e"),
    )
    pooling: ClassVar[dict[str, Any]] = {
        "word_embedding_dimension": 24,
        "pooling_mode_mean_tokens": True,
    }

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(
        self,
        config: dict[str, Any] | None = None,
        weights: dict[str, np.ndarray] | None = None,
        *,
        vocab: bool = True,
        name: str = "model",
        pooling: dict[str, Any] | None = None,
        **files: Any,
    ) -> Path:
        """A model's directory; `files` are further JSON files, by their names without .json."""
        config = self.config if config is None else config
        path = self.root / name
        path.mkdir()
        (path / "config.json").write_text(json.dumps(config))
        self.write_safetensors(
            path / "model.safetensors", self.weights(config) if weights is None else weights
        )
        if vocab:
            (path / "vocab.txt").write_text("\n".join(self.words) + "\n")
            # Whatever the model: RoBERTa's own tokenizer, say, is made of other files.
            named = {"tokenizer_class": "BertTokenizer"}
            files["tokenizer_config"] = named | files.get("tokenizer_config", {})
        for file, content in files.items():
            (path / f"{file}.json").write_text(json.dumps(content))
        if pooling is not None:
            (path / "1_Pooling").mkdir()
            (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        return path

    @staticmethod
    def write_safetensors(path: Path, arrays: dict[str, np.ndarray], pad: int = 8) -> None:
        """Write arrays in their order; uint16 stands for BF16. The data begin at a multiple of
        `pad`."""
        header, offset = {}, 0
        for name, array in arrays.items():
            header[name] = {
                "dtype": "BF16" if array.dtype == np.uint16 else DTYPES[str(array.dtype)],
                "shape": list(array.shape),
                "data_offsets": [offset, offset + array.nbytes],
            }
            offset += array.nbytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % pad)
        path.write_bytes(
            len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values())
        )

    @staticmethod
    def write_torch(path: Path, arrays: dict[str, np.ndarray]) -> None:
        """Write arrays as torch.save does: float32, or others of `TORCH`."""
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", torch_pickle(arrays))
            archive.writestr("archive/byteorder", "little")
            archive.writestr("archive/version", "3\n")
            for key, array in enumerate(arrays.values()):
                entry = zipfile.ZipInfo(f"archive/data/{key}")
                # The elements begin at a multiple of 64.
                pad = -(archive.fp.tell() + 30 + len(entry.filename) + 4) % 64
                entry.extra = b"FB" + pad.to_bytes(2, "little") + b"Z" * pad
                archive.writestr(entry, array.tobytes())

    @staticmethod
    def modules(*kinds: str) -> list[dict[str, Any]]:
        """The content of a ``modules.json``."""
        paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
        return [
            {
                "idx": i,
                "name": str(i),
                "path": paths.get(kind, kind),
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]

    @staticmethod
    def weights(
        config: dict[str, Any], *, pooler: bool = True, classes: int | None = None, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """Weights drawn wide; with `classes` a sequence classifier's."""
        random = np.random.default_rng(seed)
        hidden, ffn = config["hidden_size"], config["intermediate_size"]

        def draw(*shape: int) -> np.ndarray:
            return random.normal(0, 0.4, shape).astype(np.float32)

        weights: dict[str, np.ndarray] = {}

        def dense(name: str, rows: int, columns: int) -> None:
            weights[f"{name}.weight"], weights[f"{name}.bias"] = draw(rows, columns), draw(rows)

        def norm(name: str) -> None:
            weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + draw(hidden), draw(hidden)

        for name, rows in (
            ("word", config["vocab_size"]),
            ("position", config["max_position_embeddings"]),
            ("token_type", config["type_vocab_size"]),
        ):
            weights[f"embeddings.{name}_embeddings.weight"] = draw(rows, hidden)
        norm("embeddings.LayerNorm")
        for index in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            for part in ("query", "key", "value"):
                dense(f"{layer}.attention.self.{part}", hidden, hidden)
            dense(f"{layer}.attention.output.dense", hidden, hidden)
            norm(f"{layer}.attention.output.LayerNorm")
            dense(f"{layer}.intermediate.dense", ffn, hidden)
            dense(f"{layer}.output.dense", hidden, ffn)
            norm(f"{layer}.output.LayerNorm")
        if pooler:
            dense("pooler.dense", hidden, hidden)
        if classes is not None:
            weights = {f"bert.{name}": array for name, array in weights.items()}
            dense("classifier", classes, hidden)
        return weights

    @staticmethod
    def forward(
        weights: dict[str, np.ndarray], config: dict[str, Any], ids: np.ndarray, types: np.ndarray
    ) -> dict[str, np.ndarray]:
        """BERT as its paper has it, for one sequence, in double precision: the oracle."""
        w = {
            name.removeprefix("bert."): array.astype(np.float64) for name, array in weights.items()
        }
        heads = config["num_attention_heads"]

        def dense(x: np.ndarray, name: str) -> np.ndarray:
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            x = x - x.mean(-1, keepdims=True)
            x = x / np.sqrt((x * x).mean(-1, keepdims=True) + config["layer_norm_eps"])
            return x * w[f"{name}.weight"] + w[f"{name}.bias"]

        def activation(x: np.ndarray) -> np.ndarray:
            if config["hidden_act"] == "relu":
                return np.maximum(x, 0)
            if config["hidden_act"] == "gelu_new":
                return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
            return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.token_type_embeddings.weight"][types]
        x = norm(x + w["embeddings.position_embeddings.weight"][: len(ids)], "embeddings.LayerNorm")
        for index in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            q, k, v = (
                dense(x, f"{layer}.attention.self.{part}").reshape(len(ids), heads, -1)
                for part in ("query", "key", "value")
            )
            scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            context = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
            x = norm(
                x + dense(context.reshape(len(ids), -1), f"{layer}.attention.output.dense"),
                f"{layer}.attention.output.LayerNorm",
            )
            inner = activation(dense(x, f"{layer}.intermediate.dense"))
            x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        out = {"sequence_output": x}
        if "pooler.dense.weight" in w:
            out["pooled_output"] = np.tanh(dense(x[0], "pooler.dense"))
            if "classifier.weight" in w:
                out = {"logits": dense(out["pooled_output"], "classifier")}
        return out

    @staticmethod
    def batch(config: dict[str, Any]) -> dict[str, np.ndarray]:
        """A ragged batch with both token types."""
        random = np.random.default_rng(1)
        return {
            "token_ids": random.integers(0, config["vocab_size"], (4, 16)),
            "token_types": random.integers(0, 2, (4, 16)),
            "valid_length": np.array([11, 1, 7, 16]),
        }

    def check(
        self,
        found: dict[str, np.ndarray],
        weights: dict[str, np.ndarray],
        config: dict[str, Any],
    ) -> None:
        """Hold the outputs for `batch` against the oracle."""
        batch = self.batch(config)
        for row, length in enumerate(batch["valid_length"]):
            expected = self.forward(
                weights,
                config,
                batch["token_ids"][row, :length],
                batch["token_types"][row, :length],
            )
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                rows = found[name][row]
                if name == "sequence_output":
                    assert not rows[length:].any()
                    rows = rows[:length]
                scale = max(1.0, np.abs(array).max())
                np.testing.assert_allclose(rows / scale, array / scale, atol=1e-5, err_msg=name)


@pytest.fixture(scope="session")
def draw_wide():
    """A function: shapes by the names of parameters, score_std -> names and arrays, see `wide`."""

    def draw(
        shapes: dict[str, tuple[int, ...]], score_std: float
    ) -> Iterator[tuple[str, np.ndarray]]:
        (units,) = {shape[1] for name, shape in shapes.items() if "query_weight" in name}
        sigma = (score_std**0.5) / units**0.5
        random = np.random.default_rng(units)
        for name, shape in shapes.items():
            if name.endswith("gamma"):
                mean, spread = 1, 0.2
            elif name.endswith(("beta", "bias")):
                mean, spread = 0, 0.1
            elif "embed" in name or "position" in name:
                mean, spread = 0, 1
            else:
                mean, spread = 0, sigma
            yield name, mean + np.float32(spread) * random.standard_normal(shape, np.float32)

    return draw


@pytest.fixture(scope="session")
def wide(draw_wide):
    """A function: net, score_std -> None. Draws every weight of a Gluon net so that attention
    scores spread by `score_std`.

    GluonNLP's own initialisation leaves attention all but uniform, and then a wrong mask, scale
    or head order hardly shows. LayerNorm's gamma and every bias are drawn as well: at 1 and 0
    they could be mixed up, or left out, and nobody would see.
    """
    import mxnet
    from bertrt.export.gluon_to_symbol import input_names

    def draw(net: Any, score_std: float) -> None:
        parameters = net.collect_params()
        net.initialize(mxnet.init.Zero())
        # The first call settles the shapes that MXNet leaves open.
        one = mxnet.nd.zeros((1, 1))
        net(*(one[0] + 1 if name == "valid_length" else one for name in input_names(net)))
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        for name, array in draw_wide(shapes, score_std):
            parameters[name].set_data(mxnet.nd.array(array))

    return draw


@pytest.fixture(scope="session")
def train_sentencepiece():
    """A function: path, texts, size, kind -> the path of a SentencePiece model of so many pieces,
    with KoBERT's special pieces at its first ids. What the texts are too few for is filled up with
    pieces that no text has."""
    sentencepiece = pytest.importorskip("sentencepiece")

    def train(path: Path, texts: list[str], *, size: int, kind: str = "unigram") -> Path:
        def attempt(size: int, unused: int, hard: bool) -> int:
            with open(path, "wb") as file:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(texts),
                    model_writer=file,
                    vocab_size=size,
                    model_type=kind,
                    hard_vocab_limit=hard,
                    num_threads=1,
                    unk_id=0,
                    unk_piece="[UNK]",
                    pad_id=1,
                    pad_piece="[PAD]",
                    bos_id=-1,
                    eos_id=-1,
                    control_symbols=["[CLS]", "[SEP]", "[MASK]"]
                    + [f"[unused{index}]" for index in range(unused)],
                    minloglevel=2,
                )
            return len(sentencepiece.SentencePieceProcessor(model_file=str(path)))

        if kind == "unigram":
            found = attempt(min(size, 500), 0, False)
            assert attempt(size, size - found, True) == size
        else:
            assert attempt(size, 0, True) == size
        return path

    return train


@pytest.fixture
def hugging(tmp_path: Path) -> HuggingFace:
    """Writes Hugging Face directories, and knows their answers."""
    return HuggingFace(tmp_path)


@pytest.fixture(scope="session")
def hugging_once(tmp_path_factory: pytest.TempPathFactory) -> HuggingFace:
    """The same, for directories that several tests use."""
    return HuggingFace(tmp_path_factory.mktemp("hugging"))
