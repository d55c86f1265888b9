"""`bertrt quantize` on tiny nets: what it chooses, writes, reports and refuses."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from bertrt import Engine
from bertrt.commands.main import main
from bertrt.errors import (
    BertrtError,
    DeviceError,
    InvalidInputError,
    InvalidTypeError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
)
from bertrt.evaluation import quantize as module
from bertrt.evaluation.quantize import quantize
from bertrt.evaluation.receipt import BoundError
from bertrt.evaluation.run import evaluate
from bertrt.evaluation.verify import verify
from bertrt.models.bundle import Bundle

pytest.importorskip("sklearn")

ROWS = 40
STEPS = [
    f"layer{layer}.{part}"
    for layer in range(2)
    for part in ("qkv", "attention", "attention_output", "ffn", "ffn_output")
]


@pytest.fixture(scope="module")
def bundle(make_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("quantize") / "bundle"
    net = {"classes": 2, "activation": "relu"}
    return make_bundle(path, "classifier", net, task="MRPC", max_length=30)


def sentence(random) -> str:
    return " ".join(f"word{i}" for i in random.integers(0, 55, random.integers(1, 12)))


@pytest.fixture
def data(tmp_path, bundle):
    """Pairs whose label is fp32's answer but for a few, so that there is something to lose."""
    random = np.random.default_rng(5)
    pairs = [(sentence(random), sentence(random)) for _ in range(ROWS)]
    with Engine.load(bundle) as engine:
        labels = [result.label for result in engine.predict(pairs)]
    labels[::10] = ["1" if label == "0" else "0" for label in labels[::10]]
    lines = [f"{label}\t1\t2\t{a}\t{b}" for label, (a, b) in zip(labels, pairs, strict=True)]
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines]) + "\n")
    return path


@pytest.fixture
def texts(tmp_path):
    random = np.random.default_rng(6)
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{sentence(random)}\t{sentence(random)}\n" for _ in range(ROWS)))
    return path


def logits(path, precision=None) -> np.ndarray:
    random = np.random.default_rng(8)
    pairs = [(sentence(random), sentence(random)) for _ in range(20)]
    with Engine.load(path, precision=precision) as engine:
        return np.array([rows[0] for rows in engine.predict_with_outputs(pairs)[1]])


def nothing_beside(out) -> bool:
    return not [path for path in out.parent.iterdir() if out.name in path.name]


@pytest.mark.parametrize("precision", ["int8", "bf16"])
def test_all_steps(bundle, tmp_path, precision, capsys) -> None:
    out = tmp_path / "small"
    report = quantize(bundle, out, precision=precision)
    assert [step.name for step in report.steps] == STEPS
    assert {step.precision for step in report.steps} == {precision}
    assert report.cost is None and "nothing was measured" in str(report)
    np.testing.assert_array_equal(logits(out), logits(bundle, precision))
    np.testing.assert_array_equal(logits(out, precision), logits(bundle, precision))
    opened = Bundle.open(out)
    assert set(opened.manifest["files"]) == {
        "plan.json", "model.safetensors", "vocab.json", "golden.npz",
    }  # fmt: skip
    source = Bundle.open(bundle)
    for key in ("task", "labels", "tokenizer", "settings", "origin", "architecture"):
        assert opened.manifest[key] == source.manifest[key]
    quantization = opened.manifest["quantization"]
    assert quantization["source"] == {"manifest_sha256": source.manifest["manifest_sha256"]}
    share = {"int8": 0.4, "bf16": 0.5}[precision]
    assert report.weight_bytes[1] <= share * report.weight_bytes[0]
    with Engine.load(out) as engine:
        assert engine.precision == precision
        with pickle.loads(pickle.dumps(engine)) as again:
            assert again.precision == precision
    for other in {"fp32", "bf16", "int8"} - {precision}:
        with pytest.raises(DeviceError, match=f"quantised to {precision}"):
            Engine.load(out, precision=other)
    checked = verify(out)
    assert checked.ok and {check.backend for check in checked.checks} == {"native"}
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "quantization" in shown and f"precision={precision}" in shown


def test_steps_go_back_until_the_bound_holds(bundle, data, tmp_path, capsys) -> None:
    free = quantize(bundle, tmp_path / "free", calibrate=data, task="MRPC")
    assert free.cost == free.plain and free.cost.largest > 0
    assert {step.precision for step in free.steps} == {"int8"}
    assert 80 < free.before["accuracy"] < 100
    errors = {step.name: step.rms for step in free.steps}
    assert all(0 < error < math.inf for error in errors.values())
    bound = 0.6 * free.cost.largest
    out = tmp_path / "bound"
    arguments = ["quantize", str(bundle), "--precision", "int8", "--calibrate", str(data)]
    arguments += ["--task", "MRPC", "--max-error", f"{bound:.6f}", "--out", str(out), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    kept = {step["name"]: step["precision"] for step in report["steps"]}
    back = [name for name in STEPS if kept[name] != "int8"]
    assert 0 < len(back) < len(STEPS)
    assert report["cost"]["largest"] <= bound < report["plain"]["largest"]
    # The worst went back, and no more than had to.
    ordered = sorted(STEPS, key=lambda name: -errors[name])
    assert set(back) == set(ordered[: len(back)])
    assert {"rms", "largest"} < set(report["steps"][0])
    # The bundle has the precisions, the report, and really costs that much.
    manifest = Bundle.open(out).manifest
    assert {k: v for k, v in manifest["quantization"].items() if k != "source"} == report
    assert report["data"] | {"sha256": ""} == {
        "file": "dev.tsv", "sha256": "", "examples": ROWS, "task": "MRPC",
    }  # fmt: skip
    stated = {
        step.name: step.fields["precision"]
        for step in Bundle.open(out).plan().steps
        if "precision" in step.fields
    }
    assert stated == kept
    (row,) = evaluate(out, data, task="MRPC", backends=["native"]).rows
    assert row.precision == "int8" and row.scores == report["cost"]["scores"]
    assert main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"{back[0]} stays in {kept[back[0]]}" in shown
    assert "accuracy" in shown and "dev.tsv (MRPC)" in shown


def test_a_bound_on_the_score(bundle, data, tmp_path) -> None:
    report = quantize(bundle, tmp_path / "a", calibrate=data, task="MRPC", max_loss=0.0)
    lost = report.before["accuracy"] - report.cost.scores["accuracy"]
    assert lost <= 1e-9
    assert report.cost.lost <= report.cost.gained
    # A bundle that is good enough as it is stays as it is.
    loose = quantize(bundle, tmp_path / "b", calibrate=data, task="MRPC", max_loss=100)
    assert {step.precision for step in loose.steps} == {"int8"} and loose.cost == loose.plain


def test_fp32_where_bf16_does_not_hold(bundle, texts, tmp_path) -> None:
    half = quantize(bundle, tmp_path / "half", precision="bf16", calibrate=texts)
    free = quantize(bundle, tmp_path / "free", calibrate=texts)
    # What the least sensitive matrix costs in int8, and less than all others cost in bf16.
    matrices = [step for step in free.steps if not step.name.endswith("attention")]
    bound = 1.2 * min(matrices, key=lambda step: step.rms).largest
    assert bound < half.cost.largest
    report = quantize(bundle, tmp_path / "out", calibrate=texts, max_error=bound)
    assert {step.precision for step in report.steps} == {"int8", "fp32"}
    assert report.cost.largest <= bound
    assert (report.cost.scores, report.cost.lost, report.task) == ({}, None, None)
    np.testing.assert_allclose(
        logits(tmp_path / "out"), logits(bundle, "fp32"), atol=2 * bound, rtol=0
    )


def test_a_bound_that_cannot_be_held(bundle, texts, data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    with pytest.raises(BoundError, match=r"cannot hold a logit error of 0 .*the worst steps are"):
        quantize(bundle, out, calibrate=texts, max_error=0)
    assert nothing_beside(out)
    arguments = ["quantize", str(bundle), "--precision", "bf16", "--calibrate", str(texts)]
    assert main([*arguments, "--max-error", "0", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert "bf16 cannot hold" in error and any(name in error for name in STEPS)
    assert len(error.splitlines()) == 1 and nothing_beside(out)


def test_smoothing(bundle, texts, tmp_path) -> None:
    """What is smoothed has a smaller error for it; fp32 does not know."""
    plain = quantize(bundle, tmp_path / "plain", calibrate=texts)
    smoothed = quantize(bundle, tmp_path / "smoothed", calibrate=texts, smooth=True)
    pairs = zip(plain.steps, smoothed.steps, strict=True)
    chosen = [(before, after) for before, after in pairs if after.smoothed]
    assert chosen and all(after.rms < before.rms for before, after in chosen)
    assert all(after.name.endswith("output") for _, after in chosen)
    assert plain.plain == smoothed.plain
    assert "smoothed: layer" in str(smoothed) and not any(step.smoothed for step in plain.steps)


def test_an_embedding(make_bundle, tmp_path) -> None:
    path = make_bundle(tmp_path / "bundle", "bert", {}, task="embedding", max_length=30)
    texts = tmp_path / "texts.txt"
    texts.write_text("word1 word2\nword3\nword4 word5 word6\n")
    report = quantize(path, tmp_path / "out", calibrate=texts, smooth=True)
    # The net has GELU: only the context can be smoothed.
    assert {step.name for step in report.steps if step.smoothed} <= {
        "layer0.attention_output", "layer1.attention_output",
    }  # fmt: skip
    assert report.cost.largest > 0
    with Engine.load(tmp_path / "out") as engine:
        assert engine.predict("word1 word2").vector.shape == (32,)
    with pytest.raises(InvalidInputError, match="embedding"):
        quantize(path, tmp_path / "more", calibrate=texts, max_loss=1)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "holds no text"),
        (b"word1\tword2\n\xff\n", {}, "line 2: is not UTF-8"),
        (b"word1\tword2\nword1\n", {}, "line 2: texts and pairs"),
        (b"word1\tword2\n\nword1\tword2\n", {}, "line 2: the text is an empty string"),
        (b"word1\tword\x00\n", {}, "line 1.*NUL"),
        (b"a\tb\tc\n", {}, "line 1: has 2 tabs.*name the task"),
        (b"word1\nword2\n", {}, "line 1: .*takes a pair"),
        (b"no header\n", {"task": "MRPC"}, "line 1"),
        (
            b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n7\t1\t2\ta\tb\n",
            {"task": "MRPC"},
            "line 2.*'7'",
        ),
        (b"a\tb\n", {"max_loss": 0.5}, "columns"),
        (b"a\tb\n", {"task": "STS-B"}, "STS-B is regression"),
    ],
)
def test_bad_data(bundle, tmp_path, content, options, message) -> None:
    path = tmp_path / "data.tsv"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        quantize(bundle, tmp_path / "out", calibrate=path, **options)
    assert nothing_beside(tmp_path / "out")


def test_bad_arguments(bundle, texts, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    for options, kind, message in (
        ({"precision": "fp32"}, InvalidInputError, "precision is 'fp32'"),
        ({"precision": "fp16"}, InvalidInputError, "precision is 'fp16'"),
        ({"max_error": 1.0}, InvalidInputError, "max_error can only go with calibration data"),
        ({"smooth": True}, InvalidInputError, "smooth can only go"),
        ({"task": "MRPC"}, InvalidInputError, "task can only go"),
        ({"calibrate": texts, "max_error": math.nan}, InvalidInputError, "max_error is nan"),
        ({"calibrate": texts, "max_error": -1}, InvalidInputError, "max_error is -1"),
        ({"calibrate": texts, "max_loss": "1"}, InvalidTypeError, "max_loss is '1'"),
        ({"calibrate": texts, "max_loss": True}, InvalidTypeError, "max_loss is True"),
        ({"calibrate": tmp_path}, InvalidInputError, "is a directory"),
        ({"calibrate": tmp_path / "none"}, MissingFileError, "there is no such file"),
    ):
        with pytest.raises(kind, match=message):
            quantize(bundle, out, **options)
    start = ["quantize", str(bundle), "--out", str(out), "--precision"]
    for rest, message in (
        (["int4"], "invalid choice"),
        (["int8", "--max-loss", "0.5"], "--max-loss can only go with --calibrate"),
        (["int8", "--max-error", "0"], "--max-error can only go with --calibrate"),
        (["int8", "--smooth"], "--smooth can only go with --calibrate"),
        (["int8", "--calibrate", "x", "--max-loss", "-1"], "not a number from 0"),
        (["int8", "--calibrate", "x", "--max-loss", "nan"], "not a number from 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*start, *rest])
        assert message in capsys.readouterr().err
    assert nothing_beside(out)


def test_models_that_cannot_be_quantised(bundle, tmp_path) -> None:
    small = tmp_path / "small"
    quantize(bundle, small)
    with pytest.raises(InvalidInputError, match="quantised to int8 already"):
        quantize(small, tmp_path / "again")
    with pytest.raises(OutputExistsError):
        quantize(bundle, small)
    with pytest.raises(ModelFormatError, match="is no bundle"):
        quantize(bundle / "model-symbol.json", tmp_path / "out")
    with pytest.raises(MissingFileError):
        quantize(tmp_path / "nothing", tmp_path / "out")
    assert nothing_beside(tmp_path / "out") and nothing_beside(tmp_path / "again")
    data = bytearray((small / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (small / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelFormatError, match="sha256"):
        Engine.load(small)


def test_nothing_is_left_of_what_was_interrupted(bundle, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_plan", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize(bundle, out)
    assert nothing_beside(out)


def test_a_bundle_that_was_written_wrong_is_not_kept(bundle, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    wrong = module.store_quantized

    def store(plan):
        stored = wrong(plan)
        name = next(name for name in stored.weights if name.endswith(".scale"))
        array = stored.weights[name].array
        array[0] *= 2
        return stored

    monkeypatch.setattr(module, "store_quantized", store)
    with pytest.raises(BertrtError, match=r"gives another .* than what was measured"):
        quantize(bundle, out)
    assert nothing_beside(out)
