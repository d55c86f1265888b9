"""Golden inputs and outputs: what the source framework answers, recorded once for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bertrt.evaluation.verify import sample_batch
from bertrt.models.golden import GoldenCase

__all__ = ["record_golden"]

_SEED = 20211122
# A graph in which one length got baked in while tracing is found out by the other.
_LENGTHS = (12, 33)


def record_golden(
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    architecture: Mapping[str, Any],
    *,
    masked: bool,
    empty: bool = True,
    padded: bool = True,
    lowest: int = 0,
) -> list[GoldenCase]:
    """Run random ragged batches at two sequence lengths and keep what comes out.

    Args:
        run: the source framework: arrays by input name to float32 arrays by output name.
        architecture: the model's ``vocab_size``, ``type_vocab_size`` and ``max_length``. A model
            with fewer positions than the batches would have gets shorter ones.
        masked: whether the model takes masked positions.
        empty: whether the model has an answer to a row without tokens.
        padded: whether the model knows rows of different lengths.
        lowest: the first id that texts have.
    """
    limit = architecture["max_length"]
    lengths = _LENGTHS if limit >= max(_LENGTHS) else ((limit + 1) // 2, limit)
    cases = []
    for length in sorted(set(lengths)):
        inputs = sample_batch(architecture, length, masked=masked, seed=_SEED, lowest=lowest)
        if not padded:
            inputs["valid_length"][:] = length
        elif not empty:
            np.maximum(inputs["valid_length"], 1, out=inputs["valid_length"])
        outputs = {name: np.asarray(out, np.float32) for name, out in run(inputs).items()}
        cases.append(GoldenCase(inputs, outputs))
    return cases
