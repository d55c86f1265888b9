"""What an engine of the benchmark is: a model that takes padded arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Inputs", "Runner"]


@dataclass(frozen=True)
class Inputs:
    """A batch as users have it: int32 arrays, padded with zeros.

    Attributes:
        token_ids, token_types: shape (batch, sequence).
        valid_length: shape (batch,).
    """

    token_ids: np.ndarray
    token_types: np.ndarray
    valid_length: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Which positions hold tokens: bool, shape (batch, sequence)."""
        return np.arange(self.token_ids.shape[1]) < self.valid_length[:, None]

    @property
    def tokens(self) -> int:
        """The tokens, without padding."""
        return int(self.valid_length.sum())


class Runner(ABC):
    """A model, loaded into an engine.

    `run` is what is timed. It takes what `prepare` made of a batch, and its result is complete in
    the memory of the CPU; `outputs` makes arrays of it.
    """

    provider: str  # what runs: a library and its version

    def prepare(self, inputs: Inputs) -> Any:
        """A batch in the form that the engine's users pass in."""
        return inputs

    @abstractmethod
    def run(self, prepared: Any) -> Any:
        """One call of the engine."""

    @abstractmethod
    def outputs(self, answer: Any) -> dict[str, np.ndarray]:
        """Arrays by the names of the model's outputs, all of them; what stands at padding does not
        matter."""
