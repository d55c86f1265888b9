"""The command line: what it prints, its exit status, and one line for every error."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

import bertrt
from bertrt.commands.main import main
from bertrt.engine import Engine
from bertrt.errors import OutputExistsError


@pytest.fixture
def predict(tiny, monkeypatch, capsys):
    """A function that runs `bertrt predict` on the tiny model: (status, out lines, err lines)."""
    loads: list[dict] = []
    real_load = Engine.load

    def load(path, **arguments):
        loads.append({"path": path, **arguments})
        return real_load(path, backend="tiny")

    monkeypatch.setattr(Engine, "load", load)

    def run(*arguments: str, stdin: bytes | None = None):
        if stdin is not None:
            monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        status = main(["predict", "bundle", *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err.splitlines()

    run.loads = loads
    run.tiny = tiny
    return run


def test_arguments(predict) -> None:
    status, out, err = predict("hello", "a\tb")
    assert (status, out, err) == (0, ["2 3 10 0", "2 5 27 2"], [])
    assert predict.loads == [
        {
            "path": "bundle",
            "backend": "native",
            "device": "cpu",
            "precision": None,
            "threads": None,
        }
    ]


def test_engine_options(predict) -> None:
    predict(
        "a", "--backend", "mxnet", "--device", "cuda:1", "--precision", "bf16", "--threads", "3"
    )
    (load,) = predict.loads
    assert list(load.values())[1:] == ["mxnet", "cuda:1", "bf16", 3]


@pytest.mark.parametrize(
    "arguments",
    [
        ("hello", "a\tb", "--threads", "2"),
        ("--threads", "2", "hello", "a\tb"),
        ("hello", "--threads", "2", "a\tb"),
        ("--threads", "2", "--", "hello", "a\tb"),
        ("--threads=2", "--", "hello", "a\tb"),
    ],
)
def test_texts_and_options_in_any_order(predict, arguments) -> None:
    assert predict(*arguments) == (0, ["2 3 10 0", "2 5 27 2"], [])
    assert predict.loads[0]["threads"] == 2


@pytest.mark.parametrize("before", [(), ("--json",)])
def test_text_that_looks_like_an_option(predict, before) -> None:
    status, (line,), _ = predict(*before, "--", "--hello")
    # [CLS] - - hello [SEP], the hyphens being unknown
    assert (status, "2" in line) == (0, True)
    assert predict.tiny.backends[-1].batches[0].token_ids.tolist() == [2, 1, 1, 5, 3]
    status, _, _ = predict(*before, "- a hello")
    assert status == 0
    assert predict.tiny.backends[-1].batches[0].token_ids.tolist() == [2, 1, 9, 5, 3]


def test_json_lines(predict) -> None:
    status, out, _ = predict("hello", "a " * 9, "--json")
    assert status == 0
    assert [json.loads(line) for line in out] == [
        {"vector": [2.0, 3.0, 10.0, 0.0], "truncated": False},
        {"vector": [2.0, 8.0, 59.0, 0.0], "truncated": True},
    ]


def test_answers(predict) -> None:
    predict.tiny.settings |= {
        "task": "question-answering",
        "pooling": None,
        "outputs": ["logits"],
        "rows": {"logits": "tokens"},
        "settings": {"max_query_length": 2},
    }
    status, (line,), _ = predict("hello\ta b\ta")  # a question, a tab, a context with another
    assert status == 0
    text, score, start, end = line.split("\t")
    assert "a b a"[int(start) : int(end)] == text and 0 < float(score) <= 1
    status, (line,), _ = predict("hello\ta b", "--json")
    result = json.loads(line)
    assert list(result) == ["text", "score", "start", "end", "nbest", "truncated"]
    assert list(result["nbest"][0]) == ["text", "score", "start", "end"]
    status, out, err = predict("hello")
    assert (status, out) == (1, [])
    assert err == [
        "bertrt: error: text 1 is a text; question answering, as (question, context), takes a pair"
    ]


def test_tags(predict) -> None:
    predict.tiny.settings |= {
        "task": "tagging",
        "labels": ["S-a", "O", "I-a", "E-a"],
        "pooling": None,
        "outputs": ["logits"],
        "rows": {"logits": "tokens"},
    }
    # A tab is white space among words.
    status, out, _ = predict("hello worlds", "a\tb")
    assert (status, out) == (0, ["hello\tS-a", "worlds\tS-a", "", "a\tS-a", "b\tS-a", ""])
    status, (line,), _ = predict("hello", "--json")
    (entity,) = json.loads(line)["entities"]
    assert (entity["label"], entity["text"], entity["start"], entity["end"]) == ("a", "hello", 0, 5)


def test_masks_and_next_sentences(predict) -> None:
    predict.tiny.settings |= {
        "task": "fill-mask",
        "pooling": None,
        "outputs": ["masked_lm_outputs"],
        "settings": {"top_k": 2},
    }
    status, out, _ = predict("a [MASK]")
    assert status == 0 and [line.split("\t")[0] for line in out] == ["[CLS]", "[PAD]", ""]
    predict.tiny.settings |= {
        "task": "next-sentence",
        "outputs": ["next_sentence_classifier_output"],
        "settings": {},
    }
    assert predict("a\tb")[1] == ["not next\t0.000000"]


def test_vectors_of_words(predict) -> None:
    predict.tiny.settings["pooling"] = {"mode": "words", "normalize": False, "subwords": "avg"}
    assert predict("hello a")[1] == ["hello\t5 0 1 4", "a\t9 0 2 4", ""]
    (line,) = predict("hello a", "--json")[1]
    assert json.loads(line)["tokens"] == ["hello", "a"]


def test_classification(predict) -> None:
    predict.tiny.settings |= {
        "task": "classification",
        "labels": ["ja", "né"],
        "pooling": None,
        "outputs": ["logits"],
    }
    status, (line,), _ = predict("a")
    assert (status, line) == (0, "né\t0.999983")
    _, (line,), _ = predict("a", "--json")
    found = json.loads(line)
    assert "né" in line and found["label"] == "né" and set(found["scores"]) == {"ja", "né"}


def test_truncation_is_told_once(predict) -> None:
    status, out, err = predict("a " * 9, "a", "b " * 9)
    assert (status, len(out)) == (0, 3)
    assert err == ["bertrt: warning: 2 texts were cut to the model's 8 tokens"]


def test_lines(predict) -> None:
    """The last line may lack its end; a carriage return is none of the text; line separators that
    are no \\n split nothing."""
    status, out, err = predict(stdin="hello\r\na\tb\nb\u2028b\x0cb\nhello".encode())
    assert (status, err) == (0, [])
    assert out == ["2 3 10 0", "2 5 27 2", "2 4 16 0", "2 3 10 0"]


def test_no_lines(predict) -> None:
    assert predict(stdin=b"") == (0, [], [])


def test_lines_cut_at_any_place(predict, monkeypatch) -> None:
    """However the bytes arrive, the lines are the same; what has arrived is answered at once."""
    content = "hello\na é b\n\tb\n".encode().replace(b"\n\t", b"\na\t")
    expected = predict(stdin=content)
    assert expected[0] == 0 and len(expected[1]) == 3
    for cut in range(1, len(content)):
        parts = [content[:cut], content[cut:]]
        stream = SimpleNamespace(read1=lambda size, parts=parts: parts.pop(0) if parts else b"")
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
        assert predict() == expected, cut


@pytest.mark.parametrize(
    ("stdin", "done", "message"),
    [
        (b"hello\na\tb\na\n\0\n", 3, "line 4 holds a NUL character"),
        (b"hello\na\0b\n", 1, "line 2 holds a NUL character"),
        (b"hello\na\tb\0\na\0\n", 1, "line 2[1] holds a NUL character"),
        (b"hello\n\xff\n", 1, "line 2 is not UTF-8"),
    ],
)
def test_bad_line(predict, stdin: bytes, done: int, message: str) -> None:
    """The lines before it are answered; the error names its number."""
    status, out, err = predict(stdin=stdin)
    assert status == 1
    assert len(out) == done
    (line,) = err
    assert line.startswith(f"bertrt: error: {message}")


def test_lines_without_a_token_have_an_answer(predict) -> None:
    status, out, err = predict(stdin=b"hello\n\n \n")
    assert (status, out, err) == (0, ["2 3 10 0", "2 2 5 0", "2 2 5 0"], [])


def test_bad_lines_in_their_places(predict) -> None:
    stdin = b"hello\na\0b\na\tb\n\xff\nhello\n"
    status, out, err = predict("--on-error", "return", stdin=stdin)
    assert (status, err) == (1, ["bertrt: error: 2 lines cannot be answered"])
    assert out[1] == "error\tline 2 holds a NUL character at position 1"
    assert out[3].startswith("error\tline 4 is not UTF-8 (")
    assert [out[0], out[2], out[4]] == ["2 3 10 0", "2 5 27 2", "2 3 10 0"]
    status, out, _ = predict("--on-error", "return", "--json", stdin=stdin)
    assert status == 1
    assert [list(json.loads(line)) for line in out] == [
        *(["vector", "truncated"], ["error"]) * 2,
        ["vector", "truncated"],
    ]
    assert json.loads(out[1]) == {"error": "line 2 holds a NUL character at position 1"}
    assert predict("a", "--on-error", "return")[0] == 0


def test_error_of_the_engine(tmp_path, capsys) -> None:
    for arguments in (["predict", str(tmp_path / "none"), "a"], ["inspect", str(tmp_path)]):
        assert main(arguments) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("bertrt: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice"),
        (["predict"], "required: BUNDLE"),
        (["predict", "b", "--backend", "torch"], "--backend: invalid choice"),
        (["predict", "b", "--device", "gpu"], "'gpu' is not 'cpu', 'cuda' or 'cuda:N'"),
        (["predict", "b", "--precision", "fp4"], "--precision: invalid choice"),
        (["predict", "b", "--threads", "0"], "'0' is not a whole number from 1"),
        (["predict", "b", "--threads", "999999999"], "'999999999' is more than 1024"),
        (["predict", "b", "--threads", "two"], "'two' is not a whole number from 1"),
        (["predict", "b", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        (["predict", "b", "--json", "a", "--no-such-option"], "unrecognized arguments"),
        (["export", "bert_12_768_12", "--out", "o"], "--dataset is missing; --list shows"),
        (["export", "m", "--dataset", "d"], "--out is missing"),
        (["export"], "MODEL is missing"),
        (["export", "m", "--dataset", "d", "--out", "o", "--task", "ner"], "--task"),
        (["export", "m", "--dataset", "d", "--out", "o", "--labels", "a,,b"], "--labels"),
        (["import", "path"], "required: --out"),
        (["verify"], "required: BUNDLE"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == "" and err.startswith("bertrt") and err.count("\n") == 1
    assert message in err


def test_help_and_version(capsys) -> None:
    for arguments in (["--help"], ["--version"], ["predict", "--help"], ["export", "--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
    assert f"bertrt {bertrt.__version__}" in capsys.readouterr().out


# --- what export, import and verify pass on ---------------------------------------------------


@pytest.fixture
def exporter(monkeypatch):
    """Stands in for bertrt.export; keeps the calls."""
    calls: list[tuple] = []

    def record(name: str):
        def call(*args, **kwargs):
            calls.append((name, args, kwargs))
            return "made/bundle"

        return call

    package = ModuleType("bertrt.export")
    package.__path__ = []
    package.import_graph = record("import_graph")
    zoo, huggingface = ModuleType("bertrt.export.zoo"), ModuleType("bertrt.export.huggingface")
    zoo.export_zoo = record("export_zoo")
    huggingface.import_huggingface = record("import_huggingface")
    for module in (package, zoo, huggingface):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(calls=calls, package=package, zoo=zoo)


def test_export(exporter, capsys) -> None:
    options = ["--task", "classification", "--params", "p", "--vocab", "v", "--labels", "a,b"]
    options += ["--merges", "m", "--set", "pair=true"]
    words = ["--set", "mode=words", "--set", "normalize=true"]
    assert main(["export", "bert_12_768_12", "--dataset", "book", "--out", "o"]) == 0
    assert main(["export", "m", "--dataset", "d", "--out", "o", "--max-length", "9", *options]) == 0
    assert main(["export", "m", "--dataset", "d", "--out", "o", *words]) == 0
    assert capsys.readouterr().out == "made/bundle\n" * 3
    names = ["task", "params", "vocab", "merges", "labels", "max_length"]
    nothing = dict.fromkeys(names)
    chosen = {
        "task": "classification",
        "params": "p",
        "vocab": "v",
        "merges": "m",
        "labels": ["a", "b"],
        "max_length": 9,
        "settings": {"pair": True},
    }
    pooling = {"mode": "words", "normalize": True}
    assert exporter.calls == [
        ("export_zoo", ("bert_12_768_12", "book", "o"), nothing | {"pooling": None}),
        ("export_zoo", ("m", "d", "o"), chosen),
        ("export_zoo", ("m", "d", "o"), nothing | {"pooling": pooling}),
    ]


def test_import(exporter, tmp_path, capsys) -> None:
    directory, file = str(tmp_path), str(tmp_path / "net-symbol.json")
    assert main(["import", directory, "--out", "o"]) == 0
    settings = ["--set", "pooling=cls,max", "--set", "truncate_dim=4"]
    assert main(["import", directory, "--out", "o", "--task", "embedding", *settings]) == 0
    assert main(["import", file, "--out", "o"]) == 0
    assert exporter.calls == [
        ("import_huggingface", (directory, "o"), {"task": None, "settings": None}),
        (
            "import_huggingface",
            (directory, "o"),
            {"task": "embedding", "settings": {"pooling": ["cls", "max"], "truncate_dim": 4}},
        ),
        ("import_graph", (file, "o"), {"task": None, "tokenizer": None, "settings": None}),
    ]
    (tmp_path / "model.onnx").touch()
    assert main(["import", directory, "--out", "o", "--tokenizer", "t", *settings]) == 0
    assert exporter.calls[-1] == (
        "import_graph",
        (directory, "o"),
        {
            "task": None,
            "tokenizer": "t",
            "settings": {"pooling": ["cls", "max"], "truncate_dim": 4},
        },
    )
    (tmp_path / "model.onnx").unlink()
    assert main(["import", directory, "--out", "o", "--tokenizer", "t"]) == 1
    assert "goes with an ONNX file" in capsys.readouterr().err


def test_failed_export(exporter, capsys) -> None:
    def fail(*args, **kwargs):
        raise OutputExistsError("o exists\nalready")

    exporter.zoo.export_zoo = fail
    assert main(["export", "m", "--dataset", "d", "--out", "o"]) == 1
    assert capsys.readouterr().err == "bertrt: error: o exists already\n"


def test_missing_extra(exporter, capsys) -> None:
    def fail(*args, **kwargs):
        raise bertrt.MissingDependencyError("export needs mxnet: pip install 'bertrt[export]'")

    exporter.package.import_graph = fail
    assert main(["import", "x.onnx", "--out", "o"]) == 1
    assert "bertrt[export]" in capsys.readouterr().err


@pytest.mark.parametrize(("ok", "status"), [(True, 0), (False, 1)])
def test_verify(monkeypatch, capsys, ok: bool, status: int) -> None:
    class Report:
        def __init__(self) -> None:
            self.ok = ok

        def __str__(self) -> str:
            return "the report"

        def to_dict(self) -> dict:
            return {"ok": self.ok}

    calls = []

    def verify(path, **arguments):
        calls.append((path, arguments))
        return Report()

    monkeypatch.setattr("bertrt.evaluation.verify.verify", verify)
    assert main(["verify", "b"]) == status
    assert capsys.readouterr().out == "the report\n"
    assert main(["verify", "b", "--json", "--backend", "mxnet", "--threads", "2"]) == status
    assert json.loads(capsys.readouterr().out) == {"ok": ok}
    engine = {"device": "cpu", "precision": None}
    assert calls == [
        ("b", {"backends": None, "threads": None, **engine}),
        ("b", {"backends": ["mxnet"], "threads": 2, **engine}),
    ]


# --- the process ------------------------------------------------------------------------------

PROGRAM = """
import signal
import sys
from bertrt.commands.main import main
from bertrt.engine import Engine
from bertrt.results import Regression

class Fake:
    max_length = 8
    task = "regression"
    def __enter__(self): return self
    def __exit__(self, *error): pass
    def predict(self, batch, on_error):
        return [Regression(float(len(text))) for text in batch]

Engine.load = lambda *args, **kwargs: Fake()
# Tests that run in the background of a shell have it ignored, and hand that down.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["predict", "b", *sys.argv[1:]]))
"""


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_each_line_is_answered_at_once() -> None:
    with start() as process:
        for text in ("a", "bcd"):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline() == f"{len(text)}.000000\n".encode()
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_reader_that_goes_away() -> None:
    with start() as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"a\n" * 100)
        process.stdin.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name != "posix", reason="needs signals")
def test_interrupt() -> None:
    with start() as process:
        process.stdin.write(b"a\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == b""
        process.stdin.close()


@pytest.mark.skipif(os.name != "posix", reason="closes file descriptors the POSIX way")
@pytest.mark.parametrize(
    ("closed", "status", "out", "err"),
    [
        ("<&-", 0, "", ""),
        ("a >&-", 1, "", "bertrt: error: standard output is closed"),
        ("a 2>&-", 0, "1.000000\n", ""),
        ("a <&- >&- 2>&-", 1, "", ""),
    ],
)
def test_streams_that_are_closed(closed: str, status: int, out: str, err: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, PROGRAM],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr.startswith(err) and done.stderr.count("\n") == bool(err)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_command_that_fails_says_why_whatever_becomes_of_what_it_printed() -> None:
    program = """
import sys
from bertrt.commands.main import main
from bertrt.errors import InvalidInputError
def fail(*_):
    print("what waits to be printed")
    raise InvalidInputError("the command's own")
sys.modules["bertrt.commands.main"]._run = fail
sys.exit(main([]))
"""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        )
    assert (done.returncode, done.stderr) == (1, "bertrt: error: the command's own\n")


def test_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bertrt", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"bertrt {bertrt.__version__}\n" and done.returncode == 0
