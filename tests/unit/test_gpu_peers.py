"""PyTorch as benchmarks/gpu times it, on the CPU: it computes what the engine does.

Its attention over packed texts and its graphs run on GPUs only: a plain loop and a plain call stand
for them here."""

from __future__ import annotations

import inspect
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt import _native

torch = pytest.importorskip("torch", reason="PyTorch is in the environment of make test-adapters")
FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def gpu(monkeypatch) -> SimpleNamespace:
    """Models and peers of benchmarks/gpu, of a trial's sizes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import models
    import peers

    models.Sizes.shrink()
    yield SimpleNamespace(models=models, peers=peers)
    for name in ("models", "peers"):
        del sys.modules[name]


def one_by_one(q, k, v, ends, longest):
    """Attention of (tokens, heads, head size), text by text."""
    assert longest == int((ends[1:] - ends[:-1]).max())
    found = []
    for begin, end in itertools.pairwise(ends.tolist()):
        heads = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        found.append(torch.nn.functional.scaled_dot_product_attention(*heads).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("output", ["pooled_output", "span_logits"])
@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [3, 11, 1, 48]])
def test_peers_answer_as_the_engine_does(gpu, monkeypatch, lengths, output):
    monkeypatch.setattr(gpu.peers, "varlen", one_by_one)
    monkeypatch.setattr(gpu.peers, "captured", lambda f, inputs: lambda: f(*inputs))
    made = gpu.models.plan_of("large")
    peers = gpu.peers.peers_of("large", made[1], "fp32", "cpu")
    assert [name.split()[-1] for name in peers] == ["padded", "packed", "graph"]
    engine = _native.Engine(_native.Model(*made, "fp32", 1), 1)
    for seed in range(2):  # the second one by the graph of the first
        batch = gpu.models.batch_of(lengths, seed)
        want = engine.run(*batch, None, [output])[output]
        for name, peer in peers.items():
            found = peer(*batch, output)
            assert found.dtype == np.float32, name
            np.testing.assert_allclose(found, want, atol=2e-5, err_msg=name)


def test_the_attention_over_packed_texts_is_called_as_pytorch_has_it():
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="PyTorch has it from 2.10 on")
    names = list(inspect.signature(varlen.varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
