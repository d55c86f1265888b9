"""The benchmark: what it counts, compares and refuses. Nothing here depends on a clock."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt import _native
from bertrt.backends import native
from bertrt.backends.roofline import StepTrace, roofline
from bertrt.batch import PackedBatch
from bertrt.bench import bench
from bertrt.bench import run as bench_run
from bertrt.bench.arithmetic import operations, weight_bytes
from bertrt.bench.engines import ENGINES, parse_engine
from bertrt.bench.engines.base import Inputs
from bertrt.bench.report import Agreement, EngineReport, Report, Timing, WorkloadReport
from bertrt.bench.run import agreement, worse
from bertrt.bench.workloads import GROUPS, full, make_workloads, read_texts
from bertrt.commands.main import main
from bertrt.errors import InvalidInputError, MissingFileError
from bertrt.models.model import Model

# In a module of their own, as the engines' processes import them.
PEERS = """
import numpy as np
from bertrt.bench.engines.base import Runner
from bertrt.engine import Engine

METHODS = {"fp32": "a peer of the tests"}


class Peer(Runner):
    provider = "test 1.0"

    def __init__(self, path, kind):
        self.kind = kind
        self.engine = Engine.load(path, threads=1)

    def run(self, prepared):
        if self.kind == "dies" and len(prepared.token_ids) > 1:
            raise SystemExit(3)
        return self.engine.run(
            prepared.token_ids, prepared.token_types, prepared.valid_length
        )

    def outputs(self, answer):
        if self.kind == "wrong":
            return {name: value + np.float32(0.01) for name, value in answer.items()}
        if self.kind == "flat":
            return {name: value[0] for name, value in answer.items()}
        return answer


def load(path, name, precision, threads, directory):
    if name == "missing":
        import a_package_that_nobody_has
    if name == "broken":
        raise ValueError("no weights\\nto be found")
    return Peer(path, name)
"""


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A function that puts peers of the tests beside the native engine."""
    (tmp_path / "bench_test_peers.py").write_text(PEERS)
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(*names: str) -> list[tuple[str, str]]:
        for name in names:
            monkeypatch.setitem(ENGINES, name, ("bench_test_peers", ("fp32",)))
        return [(name, "fp32") for name in names]

    return put


# Arithmetic


def count_by_hand(config, lengths, last_layer_rows) -> int:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    tokens, pairs = sum(lengths), sum(n * n for n in lengths)
    layer = 2 * tokens * (4 * hidden * hidden + 2 * hidden * ffn) + 4 * hidden * pairs
    rows = last_layer_rows
    last = 2 * tokens * 2 * hidden * hidden + 2 * rows * (2 * hidden * hidden + 2 * hidden * ffn)
    last += 4 * hidden * (pairs if rows == tokens else tokens)
    return layer * (config["num_hidden_layers"] - 1) + last


def test_operations_of_a_model_that_reads_every_row(hugging) -> None:
    weights = hugging.weights(hugging.config)
    plan = Model.open(hugging.write(weights=weights)).plan()
    hidden = hugging.config["hidden_size"]
    expected = count_by_hand(hugging.config, [5, 16], 21) + 2 * 2 * hidden * hidden
    assert operations(plan, [5, 16]) == expected


def test_operations_of_a_classifier_leave_out_the_rows_that_nobody_reads(hugging) -> None:
    config = {**hugging.config, "architectures": ["BertForSequenceClassification"]}
    path = hugging.write(config, hugging.weights(config, classes=2))
    hidden = config["hidden_size"]
    heads = 2 * 2 * (hidden * hidden + 2 * hidden)
    assert operations(Model.open(path).plan(), [5, 16]) == (
        count_by_hand(config, [5, 16], 2) + heads
    )


def test_weight_bytes(hugging) -> None:
    plan = Model.open(hugging.write()).plan()
    hidden, ffn = hugging.config["hidden_size"], hugging.config["intermediate_size"]
    count = 2 * (4 * hidden * hidden + 2 * hidden * ffn) + hidden * hidden
    assert [weight_bytes(plan, p) for p in ("fp32", "bf16", "int8")] == [
        4 * count,
        2 * count,
        count,
    ]


# Agreement


def outputs(rows: np.ndarray, pooled: np.ndarray) -> dict[str, np.ndarray]:
    return {"sequence_output": rows, "pooled_output": pooled}


def test_agreement() -> None:
    batch = Inputs(*np.zeros((2, 2, 3), np.int32), np.array([3, 1], np.int32))
    rows = np.ones((2, 3, 4), np.float32)
    pooled = np.full((2, 4), 2.0, np.float32)
    expected = outputs(rows, pooled)
    assert agreement([batch], [expected], [expected]) == Agreement(0.0, 1.0, 1.0)

    padding = rows.copy()
    padding[1, 1:] = np.nan
    assert agreement([batch], [outputs(padding, pooled)], [expected]).largest == 0.0

    # Relative to the largest magnitude where that is above 1.
    found = agreement([batch], [outputs(rows, pooled + 0.5)], [expected])
    assert found.largest == 0.25
    assert found.smallest_cosine == pytest.approx(1.0)

    turned = pooled.copy()
    turned[1] *= [1, 1, -1, -1]
    found = agreement([batch], [outputs(rows, turned)], [expected])
    assert (found.smallest_cosine, found.median_cosine) == (0.0, 1.0)

    for bad in (
        outputs(rows[:, :2], pooled),
        {"sequence_output": rows},
        outputs(rows, np.full_like(pooled, np.inf)),
    ):
        found = agreement([batch], [bad], [expected])
        assert found.largest == np.inf
        assert not any(found.ok(precision) for precision in ("fp32", "bf16", "int8"))


def test_a_lower_precision_may_differ_more() -> None:
    off = Agreement(largest=0.02, smallest_cosine=0.9, median_cosine=0.98)
    assert [off.ok(precision) for precision in ("fp32", "bf16", "int8")] == [False, False, True]
    assert worse(None, off) is off
    assert worse(off, Agreement(0.01, 0.8, 0.99)) == Agreement(0.02, 0.8, 0.98)


# The report

PEAKS = {"isa": "avx2", "fp32": 100e9, "bf16": 200e9, "int8": 400e9, "read": 10e9}


@pytest.fixture
def report() -> Report:
    """Two workloads of 1 Gop and 0.05 GB: ours takes 20 ms, the peers 30 and 50."""
    names = [("native", "fp32"), ("onnxruntime", "fp32"), ("torch", "fp32"), ("native", "int8")]
    workloads = [
        WorkloadReport(
            f"1 x {tokens}",
            ("latency",),
            seqs=1,
            tokens=tokens,
            padded_tokens=tokens,
            operations=10**9,
            weight_bytes={"fp32": 50_000_000, "bf16": 25_000_000, "int8": 12_500_000},
            agreements={name: Agreement(0.0, 1.0, 1.0) for name in names},
            timings={
                name: Timing((seconds, seconds, 9.0))
                for name, seconds in zip(names, (0.02, 0.03, 0.05, 0.01), strict=True)
            },
        )
        for tokens in (16, 32)
    ]
    return Report(
        name="model",
        architecture={"layers": 2, "hidden": 24},
        cpu="a CPU",
        threads=2,
        peaks=PEAKS,
        versions={"python": "3"},
        engines={name: EngineReport(*name, "1.0", start_seconds=0.5) for name in names},
        workloads=workloads,
    )


def test_shares_and_ratios(report) -> None:
    workload = report.workloads[0]
    ours, int8 = ("native", "fp32"), ("native", "int8")
    assert workload.share_of_peak(ours, PEAKS) == pytest.approx(0.5)
    assert workload.share_of_peak(int8, PEAKS) == pytest.approx(0.25)
    assert workload.share_of_memory(ours, PEAKS) == pytest.approx(0.25)
    assert workload.best_peer("fp32") == ("onnxruntime", "fp32")
    assert workload.ratio(ours) == pytest.approx(1.5)
    assert workload.ratio(("torch", "fp32")) == pytest.approx(0.6)
    assert workload.best_peer("int8") is None
    assert workload.ratio(int8) is None
    assert workload.floor("fp32", PEAKS) == pytest.approx(0.01)
    assert workload.floor("fp32", {**PEAKS, "read": 1e9}) == pytest.approx(0.05)


def test_percentiles() -> None:
    timing = Timing(tuple(i / 100 for i in range(101)))
    assert (timing.best, timing.p50, timing.p95, timing.p99) == (0.0, 0.5, 0.95, 0.99)


def test_table_and_json(report) -> None:
    lines = str(report).splitlines()
    assert "100 Gflop/s fp32" in lines[1] and "10 GB/s" in lines[1]
    row = next(line for line in lines if line.startswith("| native fp32") and "1.50" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == cells[4] == "20.00"
    assert cells[5:] == ["800", "1.50", "50%", "25%", "0.0e+00", "1.00000"]
    widths = {
        len(line)
        for line in lines[lines.index("**1 x 16**: 1 sequence, 16 tokens, 1 Gop") :]
        if line.startswith("|")
    }
    assert len(widths) == 1  # aligned

    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    result = content["workloads"][0]["results"][0]
    assert result["p50"] == 0.02
    assert result["share_of_peak"] == pytest.approx(0.5)
    assert result["ratio_to_best_peer"] == pytest.approx(1.5)
    assert result["agrees"] is True


def test_no_time_without_agreement(report) -> None:
    workload = report.workloads[0]
    torch = ("torch", "fp32")
    workload.agreements[torch] = Agreement(np.inf, -1.0, -1.0)
    del workload.timings[torch]
    row = next(line for line in str(report).splitlines() if line.startswith("| torch fp32"))
    assert "1.0" in row  # of the list of engines
    (row,) = [line for line in str(report).splitlines() if "disagrees" in line]
    assert row.startswith("| torch fp32") and "50.00" not in row
    (result,) = [
        r
        for r in json.loads(json.dumps(report.to_dict(), allow_nan=False))["workloads"][0][
            "results"
        ]
        if r["engine"] == "torch"
    ]
    assert result == {
        "engine": "torch",
        "precision": "fp32",
        "agrees": False,
        "largest_difference": None,
        "smallest_cosine": -1.0,
        "median_cosine": -1.0,
    }


def test_plot(report, tmp_path) -> None:
    pytest.importorskip("matplotlib")
    from bertrt.bench.plot import plot

    assert plot(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    report.workloads = report.workloads[:1]
    assert not plot(report, tmp_path / "b.png")


# Workloads


def test_workloads_fit_the_model(hugging) -> None:
    model = Model.open(hugging.write())  # 16 positions
    workloads = make_workloads(model, GROUPS, None)
    assert [w.name for w in workloads] == ["1 x 16", "8 x 16", "32 x 16", "ragged 32"]
    assert workloads[0].groups == ("latency", "throughput")
    ragged = workloads[-1]
    assert ragged.seqs == 32 and len(set(ragged.lengths)) > 3
    assert ragged.tokens < ragged.padded_tokens
    again = make_workloads(model, GROUPS, None)[-1]
    np.testing.assert_array_equal(ragged.batches[0].token_ids, again.batches[0].token_ids)
    assert not ragged.batches[0].token_ids[~ragged.batches[0].valid].any()


def test_texts_become_batches(hugging) -> None:
    model = Model.open(hugging.write())
    (texts,) = make_workloads(model, ["texts"], [("the boat", "sea")] * 40)
    assert [len(batch.valid_length) for batch in texts.batches] == [32, 8]
    assert texts.batches[0].token_types.any()
    bare = dataclasses.replace(model, tokenizer=None)
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        make_workloads(bare, ["texts"], ["the boat"])


def test_length_beyond_the_model(hugging) -> None:
    with pytest.raises(InvalidInputError, match="17 tokens: expected 1 to the model's 16"):
        full(Model.open(hugging.write()), 1, 17)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no text"),
        (b"\n  \n", "holds no text"),
        (b"\xff\xfe", "not UTF-8"),
        (b"one\na\tb\n", "together"),
    ],
)
def test_bad_texts(tmp_path, content, problem) -> None:
    path = tmp_path / "texts"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=problem):
        read_texts(str(path))
    with pytest.raises(MissingFileError):
        read_texts(str(tmp_path / "none"))
    with path.open("wb") as hole:
        hole.truncate((64 << 20) + 1)
    with pytest.raises(InvalidInputError, match="67108865 bytes"):
        read_texts(str(path))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InvalidInputError, match="should be a plain file"):
        read_texts(str(path))


# Runs


@pytest.fixture(autouse=True)
def _without_patience(monkeypatch):
    # Tests run on machines that do other things beside them.
    monkeypatch.setattr(bench_run, "_PATIENCE", 0.0)


def test_names() -> None:
    assert parse_engine("native:int8") == [("native", "int8")]
    assert parse_engine("torch") == [("torch", "fp32"), ("torch", "bf16")]
    for text in ("", "tensorflow", "native:", "native:fp16", "mxnet:int8"):
        with pytest.raises(InvalidInputError):
            parse_engine(text)


@pytest.mark.parametrize(
    ("states", "patience", "turns"),
    [
        ([True, True], 1.0, 1),
        ([False, False, True, True], 1.0, 1),  # waits
        ([True, False, True, True], 1.0, 2),  # repeats
        ([], 0.0, 1),  # has no patience, and looks no more
    ],
)
def test_turns_are_kept_to_a_whole_machine(monkeypatch, states, patience, turns) -> None:
    class Worker:
        turns = 0

        def run(self, batches):
            self.turns += 1
            return [float(self.turns)], []

    report = Report("m", {}, "cpu", 1, {"fp32": 1e9}, {}, {}, [])
    left = list(states)
    monkeypatch.setattr(_native, "present_fp32_peak", lambda threads: 1e9 if left.pop(0) else 0.8e9)
    monkeypatch.setattr(bench_run, "wait_until_idle", lambda workers: None)
    worker = Worker()
    workload = SimpleNamespace(batches=())
    assert bench_run._Watch(report, patience).turn(worker, workload, []) == ([float(turns)], [])
    assert worker.turns == turns and not left


def test_run(hugging, peers) -> None:
    """One run with every way in which a peer can go wrong."""
    names = peers("good", "wrong", "flat", "missing", "broken", "dies")
    report = bench(
        hugging.write(), [*names, ("native", "int8")], groups=["throughput"], threads=1, repeats=2
    )
    assert list(report.engines) == [("native", "fp32"), *names, ("native", "int8")]
    problems = {name[0]: engine.problem for name, engine in report.engines.items()}
    assert "a_package_that_nobody_has" in problems["missing"]
    assert problems["missing"].startswith("not installed")
    assert problems["broken"] == "failed: ValueError: no weights to be found"
    assert problems["dies"].startswith("failed on 8 x 16: its process ended with status 3")
    assert not problems["good"] and not problems["wrong"]

    one, eight, many = report.workloads
    timed = {("native", "fp32"), ("good", "fp32"), ("native", "int8")}
    assert set(one.timings) == {*timed, ("dies", "fp32")}
    assert set(eight.timings) == set(many.timings) == timed
    assert one.agreements["good", "fp32"].largest == 0.0
    assert one.agreements["wrong", "fp32"].largest == pytest.approx(0.01, rel=0.5)
    assert one.agreements["flat", "fp32"].largest == np.inf
    assert len(one.timings["native", "fp32"].seconds) >= 2
    good = report.engines["good", "fp32"]
    assert good.provider == "test 1.0" and good.method == "a peer of the tests"
    assert 0 < good.interpreter_memory <= good.first_memory <= good.peak_memory
    assert set(report.peaks) == {"isa", "fp32", "bf16", "int8", "read"}
    assert "disagrees" in str(report) and "no weights to be found" in str(report)


def test_peers_that_are_installed(hugging) -> None:
    """The same classifier in every library."""
    config = {**hugging.config, "architectures": ["BertForSequenceClassification"]}
    path = hugging.write(config, hugging.weights(config, classes=2))
    report = bench(path, groups=["ragged"], threads=1, repeats=1)
    (workload,) = report.workloads
    for name, engine in report.engines.items():
        if name[0] == "mxnet":
            assert "no MXNet symbol" in engine.problem or "not installed" in engine.problem
        elif not engine.problem.startswith("not installed"):
            assert not engine.problem
            assert workload.agreements[name].ok(name[1]), (name, workload.agreements[name])
            assert name in workload.timings


@pytest.mark.parametrize(
    "arguments",
    [
        ("--engines", "nobody"),
        ("--engines", "torch:int8"),
        ("--workloads", "all"),
        ("--steps", "8*128"),
        ("--steps", "0x16"),
        ("--steps", "1x16", "--out", "out"),
        ("--repeats", "0"),
        ("--threads", "x"),
    ],
)
def test_wrong_use(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["bench", "bundle", *arguments])
    assert ending.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_command(hugging, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    path, out = str(hugging.write()), tmp_path / "out"
    arguments = ["bench", path, "--engines", "native:fp32", "--workloads", "latency"]
    arguments += ["--repeats", "1", "--threads", "1", "--json"]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((out / "report.json").read_text()) == printed
    assert "**1 x 16**" in (out / "report.md").read_text()
    assert main([*arguments, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "a/b")]) == 1
    assert "no such directory" in capsys.readouterr().err


def test_failed_run_leaves_no_directory(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main(["bench", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert not out.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_without_matplotlib(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "bundle", "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'bertrt[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Step by step


def test_roofline_from_given_numbers() -> None:
    product = StepTrace("layer0.ffn", "gemm_bf16.avx512_bf16.14x32", 0.01, 10**9, 2 * 10**7)
    other = StepTrace("layer1.ffn", "gemm_bf16.avx512_bf16.14x32", 0.03, 10**9, 2 * 10**7)
    norm = StepTrace("norm", "layer_norm_f32.avx512", 0.01, 0, 10**8)
    idle = StepTrace("pooler", "gemm_f32.avx512", 0.0, 0, 0)
    assert product.share_of_peak(PEAKS) == pytest.approx(0.5)
    assert product.share_of_memory(PEAKS) == pytest.approx(0.2)
    assert norm.share_of_peak(PEAKS) is None
    assert norm.share_of_memory(PEAKS) == pytest.approx(1.0)
    assert idle.share_of_peak(PEAKS) is idle.share_of_memory(PEAKS) is None

    lines = roofline([product, other, norm, idle], PEAKS).splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["layer0.ffn"][2:] == ["10.000", "20.0%", "1.000", "50%", "20.000", "20%"]
    assert rows["norm"][2:] == ["10.000", "20.0%", "100.000", "100%"]
    # Both layers together.
    assert rows["ffn"][1:3] == ["(2)", "gemm_bf16.avx512_bf16.14x32"]
    assert rows["ffn"][3:] == ["40.000", "80.0%", "2.000", "25%", "40.000", "10%"]
    assert rows["all"][1:] == ["50.000", "100.0%", "2.000"]


@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_engine_counts_what_is_needed(hugging, classes, precision) -> None:
    """Its own count of what it has done, and the least that the plan asks for, are made apart."""
    config = hugging.config
    if classes:
        config = {**config, "architectures": ["BertForSequenceClassification"]}
    model = Model.open(hugging.write(config, hugging.weights(config, classes=classes)))
    backend = native.load(model, device="cpu", precision=precision, threads=1, trace=True)
    assert "ms" not in backend.explain()
    packed = PackedBatch.from_sequences(
        [np.ones(n, np.int32) for n in (5, 16)], [np.zeros(n, np.int32) for n in (5, 16)]
    )
    backend.run(packed, model.outputs)
    trace = {step.name: step for step in backend.trace()}
    least = operations(model.plan(), [5, 16])
    done = sum(step.operations for step in trace.values())
    assert done == least
    size = {"fp32": 4, "int8": 1}[precision]
    assert trace["layer0.ffn"].bytes == config["hidden_size"] * config["intermediate_size"] * size
    assert trace["embeddings"].bytes == 4 * 21 * config["hidden_size"] * 4
    assert "of peak" in backend.explain()


def test_steps_command(hugging, capsys) -> None:
    path = str(hugging.write())
    assert main(["bench", path, "--steps", "2x8", "--precision", "bf16", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 x 8, bf16, 1 threads, ") and "layer1.ffn_output" in out
    assert main(["bench", path, "--steps", "1x17"]) == 1
    assert "expected 1 to the model's 16" in capsys.readouterr().err
