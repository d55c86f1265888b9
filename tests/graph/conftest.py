"""Small Gluon nets, their exported files and their answers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_serial = itertools.count()


@pytest.fixture
def data_directory() -> Path:
    """The directory of test corpora."""
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory of test data")
    return Path(directory)


@dataclass
class Exported:
    """An exported net. ``run`` takes padded arrays by role and returns Gluon's outputs in order:
    recorded ones, without MXNet."""

    net: Any
    roles: tuple[str, ...]
    symbol: Path
    params: Path
    answers: Callable[[str, Callable[[], list[np.ndarray]]], list[np.ndarray]]

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        digest = hashlib.sha256()
        for role in self.roles:
            digest.update(np.asarray(inputs[role], "<i8").tobytes())
        return self.answers(digest.hexdigest()[:16], lambda: self.live(inputs))

    def live(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        import mxnet as mx

        arguments = [mx.nd.array(inputs[role], dtype="float32") for role in self.roles]
        if "token_types" not in self.roles:
            arguments.insert(1, [])  # as RoBERTaModel does it
        if self.roles[-1] == "masked_positions" and "valid_length" not in self.roles:
            arguments.insert(-1, None)
        return [output.asnumpy() for output in _flat(self.net(*arguments))]


def _flat(outputs: Any) -> list[Any]:
    if not isinstance(outputs, (list, tuple)):
        return [outputs]
    return [array for part in outputs for array in _flat(part)]


@pytest.fixture
def gluon(tmp_path, recorded, with_mxnet, write_params):
    """``make(head=..., ...)``: build a net with weights drawn wide, export it, return Exported.

    Without MXNet the symbol is the recorded one, and the weights are the same, drawn by numpy."""

    def make(**options: Any) -> Exported:
        """The options are those of `build`."""
        name = f"net {json.dumps(options, sort_keys=True)}"
        directory = tmp_path / f"net{next(_serial)}"
        directory.mkdir()

        exported = Exported(
            None,
            _roles(**options),
            directory / "model-symbol.json",
            directory / "model-0000.params",
            lambda digest, live: recorded.arrays(f"{name}/{digest}", live),
        )
        shapes: dict[str, Any] = {}
        if with_mxnet:
            shapes = build(exported, **options)
        symbol = recorded.symbol(name, exported.symbol.read_text)
        # Names hold numbers that depend on what was built before.
        shapes = json.loads(
            recorded.text(
                f"{name}/shapes",
                lambda: json.dumps(shapes),
                lambda text: list(json.loads(text).values()),
            )
        )
        if not with_mxnet:
            exported.symbol.write_text(symbol)
            write_params(exported.params, draw(shapes, options.get("seed", 0)))
        return exported

    return make


def _roles(
    *, types: bool = True, valid_length: bool = True, decoder: bool = False, **_: Any
) -> tuple[str, ...]:
    roles = ["token_ids"] + ["token_types"] * types
    return (*roles, *["valid_length"] * valid_length, *["masked_positions"] * decoder)


def draw(shapes: dict[str, list[int]], seed: int) -> list[tuple[str, np.ndarray]]:
    """Weights by name, drawn wide."""
    rng = np.random.default_rng(seed)
    return [
        (name, (rng.normal(0.0, 0.4, shape) + name.endswith("gamma")).astype(np.float32))
        for name, shape in shapes.items()
    ]


def build(
    exported: Exported,
    *,
    head: str = "model",  # "model", "classifier" or "regression"
    layers: int = 1,
    units: int = 24,
    heads: int = 3,
    ffn: int = 40,
    activation: str = "gelu",
    eps: float = 1e-12,
    dropout: float = 0.1,
    valid_length: bool = True,
    types: bool = True,
    pooler: bool = True,
    nsp: bool = False,
    decoder: bool = False,
    seed: int = 0,
    **encoder: Any,
) -> dict[str, list[int]]:
    """Build a net and export it; gives the shapes of its parameters by their names."""
    import mxnet as mx
    from gluonnlp.model.bert import BERTClassifier, BERTEncoder, BERTModel

    net = BERTModel(
        BERTEncoder(
            num_layers=layers,
            units=units,
            hidden_size=ffn,
            max_length=32,
            num_heads=heads,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=eps,
            **encoder,
        ),
        vocab_size=50,
        token_type_vocab_size=2,
        units=units,
        embed_size=units,
        use_pooler=pooler,
        use_classifier=nsp,
        use_decoder=decoder,
        use_token_type_embed=types,
    )
    if head != "model":
        classes = 1 if head == "regression" else 3
        net = BERTClassifier(net, num_classes=classes, dropout=dropout)
    net.initialize(mx.init.Normal(0.1))
    net.hybridize()
    exported.net = net
    exported.live(batch([3, 2], 3))  # settles the shapes
    parameters = net.collect_params()
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    for name, array in draw(shapes, seed):
        parameters[name].set_data(mx.nd.array(array))
    exported.live(batch([3, 2], 3))
    net.export(str(exported.symbol.parent / "model"))
    return shapes


def batch(lengths: list[int], width: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (len(lengths), width)
    return {
        "token_ids": rng.integers(0, 50, shape),
        "token_types": rng.integers(0, 2, shape),
        "valid_length": np.array(lengths),
        "masked_positions": rng.integers(0, max(1, min(lengths)), (len(lengths), 4)),
    }


@pytest.fixture(name="batch")
def _batch():
    """``batch(lengths, width)``: padded inputs by role."""
    return batch
