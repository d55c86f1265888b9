"""The same model in PyTorch, three ways: what the engine is timed beside.

    padded   eager, scaled_dot_product_attention over texts padded to the longest
    packed   eager, torch.nn.attention.varlen over the texts' tokens one behind the other
    graph    the padded one, captured in a CUDA graph for each shape, its inputs and its result in
             pinned memory

Nothing here is imported unless PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from models import Sizes

__all__ = ["Peer", "TorchBert", "captured", "peers_of", "varlen"]

# ids, types and ends of a batch, and the output's name; the output as the engine has it.
Peer = Callable[[np.ndarray, np.ndarray, np.ndarray, str], np.ndarray]


def varlen(q: Any, k: Any, v: Any, ends: Any, longest: int) -> Any:
    """Attention of (tokens, heads, head size) within the texts that end there."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(q, k, v, ends, ends, longest, longest)


def captured(function: Callable[..., Any], inputs: Sequence[Any]) -> Callable[[], Any]:
    """Runs the function on what stands in `inputs` by then, from a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # libraries choose and allocate before the capture
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*inputs)

    def replay() -> Any:
        graph.replay()
        return result

    return replay


class TorchBert:
    """The model of plan_of(name) in fp16 or bf16 on a device."""

    def __init__(
        self, name: str, weights: dict[str, np.ndarray], precision: str, device: str
    ) -> None:
        self.layers, self.hidden, self.heads = Sizes.models[name]
        self.device = device
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        w = {k: torch.from_numpy(array).to(device).to(dtype) for k, array in weights.items()}
        for i in range(self.layers):
            w[f"{i}.qkv"] = torch.cat([w.pop(f"{i}.{part}") for part in "qkv"])
            w[f"{i}.qkv.bias"] = torch.cat([w.pop(f"{i}.{part}.bias") for part in "qkv"])
        self.weights = w

    def padded(self, ids: Any, types: Any, mask: Any, output: str) -> Any:
        """Of ids and types (texts, length) and a mask of True where a token is, or None."""
        positions = self.weights["position"][: ids.shape[1]]
        parts = (*ids.shape, 3, self.heads, self.hidden // self.heads)

        def attend(qkv: Any) -> Any:
            q, k, v = qkv.view(parts).permute(2, 0, 3, 1, 4)
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return found.transpose(1, 2).reshape(*ids.shape, self.hidden)

        x = self._encode(ids, types, positions, attend)
        return self._pool(x[:, 0]) if output == "pooled_output" else self._linear(x, "span")

    def packed(
        self, ids: Any, types: Any, positions: Any, ends: Any, longest: int, output: str
    ) -> Any:
        """Of ids, types and positions (tokens,)."""
        parts = (-1, 3, self.heads, self.hidden // self.heads)

        def attend(qkv: Any) -> Any:
            return varlen(*qkv.view(parts).unbind(1), ends, longest).reshape(-1, self.hidden)

        x = self._encode(ids, types, self.weights["position"][positions], attend)
        return self._pool(x[ends[:-1]]) if output == "pooled_output" else self._linear(x, "span")

    def _encode(self, ids: Any, types: Any, positions: Any, attend: Callable[[Any], Any]) -> Any:
        w = self.weights
        x = self._norm(w["word"][ids] + w["type"][types] + positions, "embeddings")
        for i in range(self.layers):
            attended = self._linear(attend(self._linear(x, f"{i}.qkv")), f"{i}.o")
            a = self._norm(attended + x, f"{i}.a")
            x = self._norm(self._linear(F.gelu(self._linear(a, f"{i}.f")), f"{i}.g") + a, f"{i}.x")
        return x

    def _pool(self, first: Any) -> Any:
        return torch.tanh(self._linear(first, "pooler"))

    def _norm(self, x: Any, key: str) -> Any:
        w = self.weights
        return F.layer_norm(x, (self.hidden,), w[f"{key}.gamma"], w[f"{key}.beta"], 1e-12)

    def _linear(self, x: Any, key: str) -> Any:
        return F.linear(x, self.weights[key], self.weights[f"{key}.bias"])


def _pad(ids: np.ndarray, types: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids and types (2, texts, length), and where the tokens are."""
    lengths = np.diff(ends)
    valid = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((2, *valid.shape), np.int64)
    padded[:, valid] = np.stack([ids, types])
    return padded, valid


def _in_our_form(found: Any, valid: np.ndarray, output: str) -> np.ndarray:
    array = found.float().cpu().numpy()
    return array if output == "pooled_output" else array[valid]


def peers_of(
    name: str, weights: dict[str, np.ndarray], precision: str, device: str = "cuda"
) -> dict[str, Peer]:
    """The three by name; each takes host arrays and returns one, as the engine does."""
    model = TorchBert(name, weights, precision, device)
    graphs: dict[Any, tuple[Any, ...]] = {}
    pinned = device == "cuda"

    def padded(ids: np.ndarray, types: np.ndarray, ends: np.ndarray, output: str) -> np.ndarray:
        both, valid = _pad(ids, types, ends)
        inputs = torch.from_numpy(both).to(device)
        mask = None if valid.all() else torch.from_numpy(valid).to(device)[:, None, None]
        with torch.inference_mode():
            return _in_our_form(model.padded(*inputs, mask, output), valid, output)

    def packed(ids: np.ndarray, types: np.ndarray, ends: np.ndarray, output: str) -> np.ndarray:
        lengths = np.diff(ends)
        positions = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        inputs = torch.from_numpy(np.stack([ids, types, positions]).astype(np.int64)).to(device)
        on_device = torch.from_numpy(ends).to(device)
        with torch.inference_mode():
            found = model.packed(*inputs, on_device, int(lengths.max()), output)
            return found.float().cpu().numpy()

    def graph(ids: np.ndarray, types: np.ndarray, ends: np.ndarray, output: str) -> np.ndarray:
        both, valid = _pad(ids, types, ends)
        key = (*valid.shape, bool(valid.all()), output)
        with torch.inference_mode():
            if key not in graphs:
                # One at a time: each keeps the memory of its run.
                graphs.clear()
                inputs = torch.zeros(both.shape, dtype=torch.int64, device=device)
                mask = None if valid.all() else torch.ones(valid.shape, device=device).bool()
                run = captured(
                    lambda i, m: model.padded(*i, None if m is None else m[:, None, None], output),
                    (inputs, mask),
                )
                host = torch.zeros(both.shape, dtype=torch.int64, pin_memory=pinned)
                result = torch.empty_like(run(), device="cpu", pin_memory=pinned)
                graphs[key] = (host, inputs, mask, run, result)
            host, inputs, mask, run, result = graphs[key]
            host.numpy()[...] = both
            inputs.copy_(host, non_blocking=True)
            if mask is not None:
                mask.copy_(torch.from_numpy(valid))
            result.copy_(run(), non_blocking=True)
            if pinned:
                torch.cuda.synchronize()
            return _in_our_form(result, valid, output)

    about = f"PyTorch {torch.__version__} {precision}"
    return {f"{about} padded": padded, f"{about} packed": packed, f"{about} graph": graph}
