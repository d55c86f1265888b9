"""The graph comes out of a live net, whatever was done with the net before, and leaves no trace."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bertrt.export import gluon_to_symbol

from bertrt.errors import InvalidInputError, ModelFormatError
from bertrt.evaluation.verify import sample_batch

pytestmark = pytest.mark.mxnet

ARCHITECTURE = {"vocab_size": 60, "type_vocab_size": 2, "max_length": 40}


def sample(length=9, masked=False, seed=3):
    return sample_batch(ARCHITECTURE, length, masked=masked, seed=seed)


def nd(mxnet, batch):
    return [mxnet.nd.array(array) for array in batch.values()]


def run_pair(mxnet, symbol, params, batch):
    names = [f"data{index}" for index in range(len(batch))]
    block = mxnet.gluon.SymbolBlock.imports(str(symbol), names, str(params))
    result = block(*nd(mxnet, batch))
    return [out.asnumpy() for out in (result if isinstance(result, list) else [result])]


def operators(path):
    return [node["op"] for node in json.loads(path.read_text())["nodes"]]


@pytest.mark.parametrize(
    "heads",
    [
        {"use_pooler": False},
        {},
        {"use_classifier": True},
        {"use_decoder": True},
        {"use_decoder": True, "use_classifier": True},
    ],
)
def test_the_pair_gives_the_numbers_of_the_net(mxnet, make_bert, tmp_path, heads):
    net = make_bert(**heads)
    batch = sample(masked=heads.get("use_decoder", False))
    expected = gluon_to_symbol.run_gluon(net, batch)
    assert list(expected) == gluon_to_symbol.output_names(net)
    found = run_pair(mxnet, *gluon_to_symbol.write_symbol_pair(net, tmp_path), batch)
    for (name, array), other in zip(expected.items(), found, strict=True):
        np.testing.assert_array_equal(array, other, err_msg=name)


def test_the_graph_is_that_of_export(mxnet, make_classifier, tmp_path):
    net = make_classifier()
    net.hybridize()
    net(*nd(mxnet, sample()))
    net.export(str(tmp_path / "theirs"))
    (tmp_path / "ours").mkdir()
    symbol, params = gluon_to_symbol.write_symbol_pair(net, tmp_path / "ours")
    assert operators(symbol) == operators(tmp_path / "theirs-symbol.json")
    ours = mxnet.nd.load(str(params))
    theirs = mxnet.nd.load(str(tmp_path / "theirs-0000.params"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name].asnumpy(), theirs[name].asnumpy())


@pytest.mark.parametrize("used", ["fresh", "imperative", "hybrid", "hybrid without length"])
def test_what_was_done_with_the_net_before_does_not_matter(mxnet, make_bert, tmp_path, used):
    net = make_bert(deferred=True)
    batch = sample()
    arrays = nd(mxnet, batch)
    if used.startswith("hybrid"):
        net.hybridize(static_alloc=True)
    if used == "hybrid without length":
        arrays = arrays[:2]
    before = None if used == "fresh" else net(*arrays)[0].asnumpy()
    expected = gluon_to_symbol.run_gluon(net, batch)
    found = run_pair(mxnet, *gluon_to_symbol.write_symbol_pair(net, tmp_path), batch)
    for array, other in zip(expected.values(), found, strict=True):
        np.testing.assert_allclose(array, other, atol=1e-6)
    if before is not None:
        np.testing.assert_array_equal(net(*arrays)[0].asnumpy(), before)
    assert net._active == used.startswith("hybrid")


def test_dropout_never_acts(mxnet, make_bert):
    batch = sample()
    calm = gluon_to_symbol.run_gluon(make_bert(dropout=0.0), batch)
    net = make_bert(dropout=0.5)
    with mxnet.autograd.record():
        wild = gluon_to_symbol.run_gluon(net, batch)
        assert mxnet.autograd.is_recording()
    for name in calm:
        np.testing.assert_array_equal(calm[name], wild[name])


def test_empty_and_padded_rows_are_gluons(make_bert):
    batch = sample()
    assert {0, 1} <= set(batch["valid_length"].tolist())
    out = gluon_to_symbol.run_gluon(make_bert(), batch)["sequence_output"]
    padding = np.arange(9) >= batch["valid_length"][:, None]
    assert np.abs(out[padding]).max() == 0
    assert np.abs(out[~padding]).min(axis=-1).max() > 0


def test_nets_that_cannot_be_exported(mxnet, make_bert):
    from gluonnlp.model import BERTEncoder, BERTModel

    encoder = BERTEncoder(num_layers=1, units=8, hidden_size=8, max_length=9, num_heads=2)
    net = BERTModel(encoder, 60, 2, 8, 8, use_decoder=False, use_classifier=False)
    with pytest.raises(InvalidInputError, match="is not initialised"):
        gluon_to_symbol.run_gluon(net, sample(4))
    net = make_bert()
    gluon_to_symbol.run_gluon(net, sample(4))
    net.cast("float16")
    with pytest.raises(InvalidInputError, match=r"float16.*cast"):
        gluon_to_symbol.run_gluon(net, sample(4))


def test_set_parameters_takes_all_and_nothing_else(make_bert):
    net = make_bert(use_decoder=True)
    batch = sample(masked=True)
    expected = gluon_to_symbol.run_gluon(net, batch)
    arrays = {
        name: parameter.data().asnumpy()
        for name, parameter in gluon_to_symbol.structural_parameters(net).items()
    }
    del arrays["decoder.3.weight"]  # the word embedding once more
    other = make_bert(use_decoder=True, seed=9)
    gluon_to_symbol.set_parameters(other, arrays, "test")
    found = gluon_to_symbol.run_gluon(other, batch)
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name])

    layer = "encoder.transformer_cells.1.ffn.ffn_1"
    wrong = dict(arrays)
    del wrong["pooler.bias"]
    wrong[f"{layer}.weight"] = np.zeros((47, 32), np.float32)
    wrong["encoder.surprise"] = np.zeros(3, np.float32)
    with pytest.raises(ModelFormatError) as caught:
        gluon_to_symbol.set_parameters(other, wrong, "test")
    for part in ("test", "missing: pooler.bias", "unexpected: encoder.surprise", "(47, 32)", layer):
        assert part in str(caught.value)
    poisoned = {**arrays, "pooler.bias": np.full(32, np.nan, np.float32)}
    with pytest.raises(ModelFormatError, match=r"pooler\.bias.*not finite"):
        gluon_to_symbol.set_parameters(other, poisoned, "test")
