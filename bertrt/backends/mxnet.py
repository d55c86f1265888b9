"""MXNet: runs a model's symbol and parameters the way Gluon does, padded. The reference."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bertrt.backends.base import Backend, check_outputs, check_precision, cpu_only
from bertrt.batch import PackedBatch, pack_rows
from bertrt.errors import MissingDependencyError, ModelFormatError
from bertrt.plan.steps import INPUTS

if TYPE_CHECKING:
    from bertrt.models.model import Model

__all__ = ["MXNetBackend", "load"]

# MXNet's imperative front end is not made for several threads at once. A signal handler may want an
# answer in the middle of its own thread's.
_lock = threading.RLock()


def _after_fork() -> None:
    # The thread that held the lock may be none of the child's.
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def load(model: Model, *, device: str, precision: str, threads: int) -> MXNetBackend:
    """Load a model's symbol. Arguments and errors as for `bertrt.backends.base.load_backend`.

    MXNet has one number of threads for the whole process, fixed when it is first imported: the
    first engine's, or what OMP_NUM_THREADS says. `Backend.threads` is that number.
    """
    cpu_only("mxnet", device)
    check_precision("mxnet", precision, ("fp32",))
    mxnet = _import_mxnet(threads)
    if model.symbol_path is None or model.params_path is None:
        raise ModelFormatError(
            f"{model.path} has no MXNet symbol for backend mxnet; a bundle has one that is made of "
            "a Gluon net (bertrt export), or, where MXNet is installed, of a Hugging Face "
            "BertModel or BertForSequenceClassification (bertrt import DIR --out BUNDLE)"
        )
    return MXNetBackend(mxnet, model)


def _import_mxnet(threads: int) -> Any:
    try:
        with _omp_threads(threads), warnings.catch_warnings():
            # MXNet 1.9 uses names that numpy deprecates, and says so on every import.
            warnings.simplefilter("ignore")
            import mxnet
    # With numpy 1.24 or newer the import fails with AttributeError (numpy.bool).
    except (ImportError, AttributeError, OSError) as error:
        raise MissingDependencyError(
            f"backend mxnet needs the packages mxnet 1.9.1 and numpy 1.23 ({error}): "
            "pip install 'bertrt[export]' (Python 3.11 or older)"
        ) from error
    return mxnet


@contextlib.contextmanager
def _omp_threads(threads: int) -> Iterator[None]:
    """OMP_NUM_THREADS for MXNet's import, which reads it once; left as it was afterwards."""
    if "mxnet" in sys.modules or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


class MXNetBackend(Backend):
    """See `bertrt.backends.base.Backend`."""

    name = "mxnet"
    device = "cpu"
    precision = "fp32"
    pads = True

    def __init__(self, mxnet: Any, model: Model) -> None:
        names = model.plan().inputs
        self._roles = [role for role in INPUTS if names[role] is not None]
        self._mxnet = mxnet
        self._outputs = model.outputs
        self._rows = model.rows
        self.provider = f"mxnet {mxnet.__version__}"
        self.threads = int(mxnet.base._LIB.omp_get_max_threads())
        with _lock, warnings.catch_warnings():
            # SymbolBlock warns about parameters that a truncated graph does not use.
            warnings.simplefilter("ignore")
            try:
                self._block = mxnet.gluon.SymbolBlock.imports(
                    str(model.symbol_path),
                    [names[role] for role in self._roles],
                    str(model.params_path),
                    ctx=mxnet.cpu(),
                )
            except mxnet.base.MXNetError as error:
                raise ModelFormatError(
                    f"{model.symbol_path}: mxnet cannot load it ({error})"
                ) from error
            found = [output.name for output in self._block._cached_graph[1]]
            check_outputs(str(model.symbol_path), found, self._outputs)
            self._block.hybridize(static_alloc=True)

    def run(self, batch: PackedBatch, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """See `bertrt.backends.base.Backend.run`."""
        values = batch.padded()
        with _lock:
            feeds = [self._mxnet.nd.array(values[role], dtype=np.float32) for role in self._roles]
            found = self._block(*feeds)
            if not isinstance(found, list | tuple):
                found = [found]
            results = {
                name: value.asnumpy()
                for name, value in zip(self._outputs, found, strict=True)
                if name in outputs
            }
        return {name: pack_rows(value, batch, self._rows[name]) for name, value in results.items()}

    def explain(self) -> str:
        """The inputs; MXNet does not tell its steps."""
        return f"inputs: {', '.join(self._roles)}\noutputs: {', '.join(self._outputs)}"

    def close(self) -> None:
        """See `bertrt.backends.base.Backend.close`."""
        del self._block
