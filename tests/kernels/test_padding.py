"""Padding that a caller wants to see attend: nobody attends to it, in any part of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import test_native_engine as handmade

LENGTH, OUTPUTS = handmade.LENGTH, handmade.OUTPUTS


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_what_follows_the_attended_tokens_changes_no_bit(rng, isa, monkeypatch, precision):
    """Every number of attended tokens, multiples of a vector's 16 among them, in a batch of two
    parts (of 2,048 tokens each), against the same texts without padding."""
    monkeypatch.setenv("BERTRT_ISA", isa)
    engine = handmade.new_engine(*handmade.make_plan(rng), threads=2, precision=precision)
    attended = rng.permutation(np.arange(1, LENGTH + 1, dtype=np.int32))
    masked = np.stack([rng.integers(0, keys, 2, dtype=np.int32) for keys in attended])
    ids = rng.integers(0, handmade.VOCAB, (LENGTH, LENGTH), dtype=np.int32)
    types = rng.integers(0, handmade.TYPES, (LENGTH, LENGTH), dtype=np.int32)
    real = np.arange(LENGTH) < attended[:, None]
    ends = np.concatenate([[0], np.cumsum(attended)]).astype(np.int32)
    alone = engine.run(ids[real], types[real], ends, masked, OUTPUTS)

    ends = np.arange(LENGTH + 1, dtype=np.int32) * LENGTH
    padded = engine.run(ids.ravel(), types.ravel(), ends, masked, OUTPUTS, attended)
    rows = padded["sequence_output"].reshape(LENGTH, LENGTH, -1)
    np.testing.assert_array_equal(rows[real], alone["sequence_output"])
    for name in ("pooled_output", "masked_lm_outputs"):
        np.testing.assert_array_equal(padded[name], alone[name])
    pooled = engine.run(ids.ravel(), types.ravel(), ends, None, ["pooled_output"], attended)
    np.testing.assert_array_equal(pooled["pooled_output"], alone["pooled_output"])

    # A padding token attends as a text's own do: to them, and to none of the padding beside it.
    other = np.where(real, ids, rng.integers(0, handmade.VOCAB, ids.shape, dtype=np.int32))
    other[:, -1] = ids[:, -1]
    again = engine.run(other.ravel(), types.ravel(), ends, None, ["sequence_output"], attended)
    again = again["sequence_output"].reshape(rows.shape)
    np.testing.assert_array_equal(again[:, -1], rows[:, -1])
    np.testing.assert_array_equal(again[real], rows[real])
    assert (again != rows).any()
