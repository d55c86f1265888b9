"""The plain activations of torch, by their classes' names: what follows a Dense module, and what a
CrossEncoder makes of its logits.

Formulas and constants are those of torch.nn.modules.activation with nothing passed, in evaluation.
All compute in double precision along the last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from bertrt.tasks.base import softmax

__all__ = ["ACTIVATIONS", "activate"]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # The power cannot overflow.
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.where(x > 20, x, np.log1p(np.exp(np.minimum(x, 20))))


def _leaky(slope: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.where(x < 0, slope * x, x)


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717

# By their classes' names; settings have these in lower case.
_CLASSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Sigmoid": _sigmoid,
    "Softmax": softmax,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "SiLU": lambda x: x * _sigmoid(x),
    "CELU": _elu,
    "ELU": _elu,
    "Hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "Hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "Hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "Hardtanh": lambda x: np.clip(x, -1, 1),
    "LeakyReLU": _leaky(0.01),
    "LogSigmoid": lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
    "LogSoftmax": _log_softmax,
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "RReLU": _leaky((1 / 8 + 1 / 3) / 2),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "SELU": lambda x: _SELU_SCALE * np.where(x < 0, _SELU_ALPHA * np.expm1(np.minimum(x, 0)), x),
    "Softmin": lambda x: softmax(-x),
    "Softplus": _softplus,
    "Softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "Tanhshrink": lambda x: x - np.tanh(x),
}
ACTIVATIONS = tuple(_CLASSES)
_BY_NAME = {name.lower(): function for name, function in _CLASSES.items()}


def activate(name: str, row: np.ndarray) -> np.ndarray:
    """An activation of one row.

    Args:
        name: one of `ACTIVATIONS`, in lower case.
        row: float32 or float64, shape (numbers,). A row at a time, so that no bit depends on the
            rows beside it.

    Returns:
        float64, shape (numbers,).
    """
    return np.asarray(_BY_NAME[name](row.astype(np.float64)))
