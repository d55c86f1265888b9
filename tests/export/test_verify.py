"""The parity report tells right from wrong, and says what it could not try."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from bertrt.errors import (
    DeviceError,
    InvalidInputError,
    MissingDependencyError,
    MissingFileError,
    ModelFormatError,
)
from bertrt.evaluation import verify as module
from bertrt.evaluation.verify import bound, difference, sample_batch, verify
from bertrt.models.bundle import Bundle, writing
from bertrt.models.golden import GoldenCase, write_golden
from bertrt.models.manifest import GOLDEN, MANIFEST


@pytest.fixture(scope="module")
def bundle(make_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "bundle"
    return make_bundle(path, "bert", {}, task="embedding", max_length=20)


def with_golden(bundle, out, change):
    """The bundle again, its golden cases changed."""
    opened = Bundle.open(bundle)
    with writing(out) as draft:
        for name in opened.manifest["files"]:
            if name != GOLDEN:
                (draft.directory / name).write_bytes((bundle / name).read_bytes())
        cases = change(opened.golden())
        if cases:
            write_golden(draft.directory / GOLDEN, cases)
        fields = ("format_version", "files", "manifest_sha256")
        draft.seal({k: v for k, v in opened.manifest.items() if k not in fields})
    return out


def test_a_good_bundle(bundle, with_mxnet):
    report = verify(bundle)
    assert report.ok
    found = {(check.backend, check.reference, check.output) for check in report.checks}
    for output in ("sequence_output", "pooled_output"):
        assert ("native", "golden", output) in found
        assert (("native", "live Gluon", output) in found) == with_mxnet
        assert (("mxnet", "golden", output) in found) == with_mxnet
        assert ("mxnet", "live Gluon", output) not in found
    text = str(report)
    assert "native" in text and "sequence_output" in text and "FAILED" not in text
    content = json.loads(json.dumps(report.to_dict()))
    assert content["ok"] is True and len(content["checks"]) == len(report.checks)


def test_only_the_backends_asked_for(bundle):
    report = verify(bundle, ["native"], live=False, threads=1)
    assert {check.backend for check in report.checks} == {"native"}
    assert {check.reference for check in report.checks} == {"golden"}
    with pytest.raises(InvalidInputError, match="'torch' does not exist"):
        verify(bundle, ["torch"])


@pytest.mark.parametrize("output", ["sequence_output", "pooled_output"])
def test_a_drift_beyond_the_bound_is_a_failure(bundle, tmp_path, output):
    def drift(cases):
        last = cases[-1].outputs[output]
        last[0, ...] += 2.5 * bound(output, 2) * max(1.0, np.abs(last).max())
        return cases

    report = verify(with_golden(bundle, tmp_path / "b", drift), ["native"], live=False)
    assert not report.ok
    assert {check.output for check in report.checks if not check.ok} == {output}
    assert "FAILED" in str(report)


def test_a_drift_within_the_bound_is_none(bundle, tmp_path):
    def drift(cases):
        cases[0].outputs["sequence_output"][0] += 1e-5
        return cases

    report = verify(with_golden(bundle, tmp_path / "b", drift), ["native"], live=False)
    assert report.ok
    assert max(check.difference for check in report.checks) > 1e-6


def test_nothing_to_compare_with(bundle, with_mxnet, tmp_path):
    path = with_golden(bundle, tmp_path / "b", lambda cases: [])
    if with_mxnet:
        assert verify(path, ["native"]).ok  # against the live graph
    with pytest.raises(InvalidInputError, match="nothing to compare with"):
        verify(path, live=False)
    with pytest.raises(MissingFileError):
        verify(tmp_path / "nowhere")


def test_backends_that_cannot_take_part(bundle, monkeypatch):
    load = module.Engine.load

    def without_mxnet(path, *, backend, **options):
        if backend == "mxnet":
            raise MissingDependencyError("pip install 'bertrt[export]'")
        return load(path, backend=backend, **options)

    monkeypatch.setattr(module.Engine, "load", without_mxnet)
    report = verify(bundle)
    assert report.ok
    assert report.left_out == {"mxnet": "pip install 'bertrt[export]'"}
    assert "mxnet: left out: pip" in str(report)
    with pytest.raises(MissingDependencyError):
        verify(bundle, ["mxnet"])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_lower_precisions_have_bounds_of_their_own(make_bundle, with_mxnet, tmp_path, precision):
    # The bounds are for nets like trained ones; the wide one of this file amplifies more.
    net = {"sigma": 0.1}
    path = make_bundle(tmp_path / "bundle", "bert", net, task="embedding", max_length=20)
    report = verify(path, precision=precision, live=False)
    assert report.ok, str(report)
    assert {check.backend for check in report.checks} == {"native"}
    assert set(report.left_out) == {"onnxruntime", "mxnet"}
    # They are other numbers than fp32's, by more than its bound.
    assert max(check.difference for check in report.checks) > 1e-4
    if with_mxnet:
        with pytest.raises(DeviceError, match=f"mxnet cannot run in '{precision}'"):
            verify(path, ["mxnet"], precision=precision)


def test_a_value_at_padding_is_a_failure(bundle, monkeypatch):
    run = module.Engine.run

    def leaky(self, **inputs):
        out = run(self, **inputs)
        out["sequence_output"][1, -1] = 1e-30
        return out

    monkeypatch.setattr(module.Engine, "run", leaky)
    report = verify(bundle, ["native"], live=False)
    assert not report.ok
    assert "padding reaches 1.0e-30" in str(report)


def test_difference():
    one = np.array([[0.5, -0.25]], np.float32)
    assert difference(one, one) == 0
    assert difference(one, one + np.float32(0.125)) == 0.125
    big = np.array([[10.0, -40.0]], np.float32)
    assert difference(big, big + np.float32(2)) == 0.05
    assert difference(one, one[:, :1]) == math.inf
    for bad in (math.nan, math.inf):
        assert difference(one, np.array([[0.5, bad]], np.float32)) == math.inf
    assert difference(one[:0], one[:0]) == 0


def test_an_infinite_difference_is_valid_json(bundle, tmp_path):
    def poison(cases):
        case = cases[0]
        wide = np.concatenate([case.outputs["pooled_output"]] * 2, axis=1)
        return [GoldenCase(case.inputs, case.outputs | {"pooled_output": wide})]

    report = verify(with_golden(bundle, tmp_path / "b", poison), ["native"], live=False)
    assert not report.ok
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ok"] is False


def test_bounds():
    assert bound("sequence_output", 12) == 5e-5
    assert bound("sequence_output", 24) == 1e-4
    for output in ("pooled_output", "logits", "next_sentence_classifier_output"):
        assert bound(output, 24) == 2e-5
        assert bound(output, 24, "bf16") == 3e-2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_sample_batches(length, masked):
    architecture = {"vocab_size": 7, "type_vocab_size": 2}
    batch = sample_batch(architecture, length, masked=masked, seed=0)
    lengths = batch["valid_length"]
    assert lengths.min() == (1 if masked else 0) and lengths.max() == length
    assert 1 in lengths
    assert batch["token_ids"].shape == batch["token_types"].shape == (len(lengths), length)
    assert batch["token_ids"].min() >= 0 and batch["token_ids"].max() <= 6
    assert batch["token_types"].max() == 1
    if masked:
        assert (batch["masked_positions"] < lengths[:, None]).all()
    none = sample_batch(architecture | {"type_vocab_size": 0}, length, masked=masked, seed=0)
    assert not none["token_types"].any()


def test_a_report_can_be_made_of_a_damaged_bundle_in_no_way(bundle, tmp_path):
    path = with_golden(bundle, tmp_path / "b", lambda cases: cases)
    (path / MANIFEST).write_text("{}")
    with pytest.raises(ModelFormatError):
        verify(path)
