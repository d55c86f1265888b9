"""What a backend is, and the list of backends."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertrt.errors import DeviceError, InvalidInputError, ModelFormatError

if TYPE_CHECKING:
    from bertrt.batch import PackedBatch
    from bertrt.models.model import Model

__all__ = [
    "BACKENDS",
    "Backend",
    "check_outputs",
    "check_precision",
    "cpu_only",
    "has_graph",
    "load_backend",
]

# Name -> module with a function load(model, *, device, precision, threads) -> Backend. A backend's
# module, and what it needs, is imported when the backend is asked for.
BACKENDS = {
    "native": "bertrt.backends.native",
    "onnxruntime": "bertrt.backends.onnxruntime",
    "mxnet": "bertrt.backends.mxnet",
}


class Backend(ABC):
    """A model, loaded and ready to run.

    Attributes:
        name: the backend's name in `BACKENDS`.
        device: where it really runs: "cpu", "cuda:0".
        precision: "fp32", "bf16", "fp16", "int8" or "fp8".
        threads: the threads that it really uses.
        provider: what executes the kernels: an instruction set, an execution provider, a library.
        pads: whether it pads inside. The engine then bounds the padded size of what it passes in,
            not the number of tokens.
        batch_tokens: the tokens of a batch, at most, that suit it.
        at_once: how many batches it runs at once with profit: more than one where a device computes
            while the CPU packs the next batch and reads the one before.
        survives_fork: whether a forked child can go on with it; else the child loads it again.
    """

    name: str
    device: str
    precision: str
    threads: int
    provider: str
    pads: bool = False
    batch_tokens: int = 4096
    at_once: int = 1
    survives_fork: bool = False

    @abstractmethod
    def run(self, batch: PackedBatch, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """Run a batch; may be called from several threads at once.

        Args:
            batch: the packed sequences; a sequence may be empty.
            outputs: the names wanted, out of the model's outputs.

        Returns:
            The outputs asked for, float32, with the rows that the plan says: a row for each token
            of the batch, packed, (tokens, ...); for each sequence, (seqs, ...); for each masked
            position, (seqs, num_masked, ...); for each pair of a sequence's tokens, query after
            query, (pairs, heads).
        """

    @abstractmethod
    def explain(self) -> str:
        """How the model runs, step by step, as text for people."""

    def close(self) -> None:
        """Let go of threads and memory. The engine calls it once, when no run is under way."""
        return None


def has_graph(model: Model, name: str) -> bool:
    """Whether a model brings the file that the backend `name` runs; the plan, all of them have."""
    graphs = {"onnxruntime": model.onnx_path, "mxnet": model.symbol_path}
    return graphs.get(name, model.path) is not None


def load_backend(model: Model, name: str, *, device: str, precision: str, threads: int) -> Backend:
    """Load a model into the backend `name`.

    Raises:
        InvalidInputError: no backend has this name.
        MissingDependencyError: the backend needs a package that is not installed.
        DeviceError: the backend cannot run on this device, or in this precision, here.
        ModelFormatError: the model lacks the file that this backend runs.
    """
    module = BACKENDS.get(name)
    if module is None:
        raise InvalidInputError(
            f"backend {name!r} does not exist; expected one of {', '.join(BACKENDS)}"
        )
    return importlib.import_module(module).load(
        model, device=device, precision=precision, threads=threads
    )


def cpu_only(name: str, device: str) -> None:
    """Refuse another device than the CPU.

    Raises:
        DeviceError: another device was asked for.
    """
    if device != "cpu":
        raise DeviceError(
            f"backend {name} cannot run on {device!r}: it has no CUDA kernels; use device='cpu'"
        )


def check_precision(
    name: str, precision: str, precisions: Sequence[str], device: str = "cpu"
) -> None:
    """Refuse a precision that a backend does not have on a device.

    Raises:
        DeviceError: another precision was asked for.
    """
    if precision not in precisions:
        raise DeviceError(
            f"backend {name} cannot run in {precision!r} on {device!r}: it has no {precision} "
            f"kernels there; it has {', '.join(precisions)}"
        )


def check_outputs(name: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Check that a graph has the outputs that the model promises.

    Raises:
        ModelFormatError: the numbers of outputs differ.
    """
    if len(found) != len(expected):
        raise ModelFormatError(
            f"{name} has {len(found)} outputs ({', '.join(found)}); the model's outputs are "
            f"{', '.join(expected)}"
        )
