"""Attention as it runs beside that of Hopper's instructions (docs/cuda.md), kernel by kernel."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

__all__ = ["compare"]

# Weights are rounded to bf16, 2^-9 of them, and so is the result, of values that are below 5.
BOUND = 2 * 2.0**-9 * 5


def compare(kernels: ModuleType, lengths: list[int], heads: int, head_dim: int) -> dict[str, Any]:
    """TFLOP/s in bf16 of texts of these lengths, and which kernel is ahead.

    Raises ValueError if one differs from attention in fp32 by more than rounding does.
    """
    rng = np.random.default_rng(0)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = rng.normal(size=(cu_seqlens[-1], 3 * heads * head_dim)).astype(np.float32)
    np.clip(values, -4.9, 4.9, out=values)
    qkv = (values.view(np.uint32) >> 16).astype(np.uint16)  # the upper halves of floats: bf16
    wide = widened(qkv)
    scale = head_dim**-0.5
    exact = kernels.attention("fp32", wide, cu_seqlens, heads, scale)
    work = 4e-12 * heads * head_dim * sum(length * length for length in lengths)
    rate = {}
    for kernel in (None, "hopper"):
        name = kernel or "as it runs"
        found = widened(kernels.attention("bf16", qkv, cu_seqlens, heads, scale, kernel=kernel))
        apart = float(np.abs(found - exact).max())
        if not apart <= BOUND:
            raise ValueError(f"attention {name} is {apart:.3g} from fp32 at lengths {lengths[:4]}")
        seconds = kernels.attention_seconds("bf16", qkv, cu_seqlens, heads, scale, kernel)
        rate[name] = work / max(seconds, 1e-9)
    return {**rate, "ahead": max(rate, key=lambda name: rate[name])}


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
