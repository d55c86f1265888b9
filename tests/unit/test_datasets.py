"""Labelled data: every layout that is read, and every file that is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertrt.errors import InvalidInputError, InvalidTypeError, MissingFileError
from bertrt.evaluation.datasets import find_files, read_examples
from bertrt.evaluation.examples import GoldAnswer


@pytest.fixture
def write(tmp_path: Path):
    """A function: name, content -> a file's path."""

    def make(name: str, content: str | bytes | list) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def tsv(*rows: str) -> str:
    return "".join(row.replace("|", "\t") + "\n" for row in rows)


ROWS = {
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", '1|7|8|he said "no|he said no'),
    "QQP": ("id|qid1|qid2|question1|question2|is_duplicate", "0|1|2|why ?|how ?|0"),
    "QNLI": ("index|question|sentence|label", "0|who ?|he .|not_entailment"),
    "RTE": ("index|sentence1|sentence2|label", "0|a b|c|entailment"),
    "WNLI": ("index|sentence1|sentence2|label", "0|a b|c|1"),
    "SST": ("sentence|label", "it 's fine |1"),
    "MNLI": (
        "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse"
        "|sentence2_parse|sentence1|sentence2|label1|gold_label",
        "0|1|2|x|(|(|(|(|a b|c|neutral|entailment",
    ),
    "LCQMC": ("text_a|text_b|label", "一|二|1"),
    "ChnSentiCorp": ("label|text_a", "0|一 二"),
    "XNLI": ("text_a|text_b|label", "一|二|contradictory"),
}
READ = {
    "MRPC": (('he said "no', "he said no"), "1"),
    "QQP": (("why ?", "how ?"), "0"),
    "QNLI": (("who ?", "he ."), "not_entailment"),
    "RTE": (("a b", "c"), "entailment"),
    "WNLI": (("a b", "c"), "1"),
    "SST": ("it 's fine ", "1"),
    "MNLI": (("a b", "c"), "entailment"),
    "LCQMC": (("一", "二"), "1"),
    "ChnSentiCorp": ("一 二", "0"),
    "XNLI": (("一", "二"), "contradiction"),
}


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_the_tasks(write, task, ends, mark) -> None:
    path = write("dev.tsv", mark + tsv(*ROWS[task], "").replace("\n", ends))
    examples = read_examples(path, task)
    assert (examples.texts, examples.labels) == ([READ[task][0]], [READ[task][1]])
    assert examples.where(0) == f"{path}, line 2"
    assert (examples.task, examples.left_out) == ("classification", 0)
    assert examples.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_without_a_header(write) -> None:
    cola = write("train.tsv", tsv("gj04|1||They left.", "gj04|0|*|Left they.", "x|1||label"))
    examples = read_examples(cola, "CoLA")
    assert examples.texts == ["They left.", "Left they.", "label"]
    assert examples.labels == ["1", "0", "1"]
    assert examples.where(2) == f"{cola}, line 3"
    # The benchmark's own file; some of its lines have two more columns.
    sts = write("sts-dev.csv", tsv("g|f|2012|1|3.750|a|b", "g|f|2012|2|0.0|c|d|url|url"))
    examples = read_examples(sts, "STS-B")
    assert examples.task == "regression"
    assert examples.texts == [("a", "b"), ("c", "d")]
    assert examples.labels == [3.75, 0.0]
    lcqmc = write("train.txt", tsv("一|二|1", "三|四|0"))
    assert read_examples(lcqmc, "LCQMC").texts == [("一", "二"), ("三", "四")]
    # GLUE's
    glue = write("dev.tsv", tsv("index|genre|sentence1|sentence2|score", "0|g|a|b|5"))
    assert read_examples(glue, "STS-B").labels == [5.0]


def test_rows_that_the_tasks_leave_out(write) -> None:
    header, row = ROWS["QQP"]
    path = write("train.tsv", tsv(header, row, "1|2|3|cut", row))
    examples = read_examples(path, "QQP")
    assert (len(examples), examples.left_out, examples.places[1]) == (2, 1, "line 4")
    with pytest.raises(InvalidInputError, match=r"line 3: has 7 columns, expected 6"):
        read_examples(write("train.tsv", tsv(header, row, "1|2|3|a|b|0|c")), "QQP")

    rows = [{"sentence1": "a", "sentence2": "b", "gold_label": label} for label in ("-", "neutral")]
    examples = read_examples(write("dev.jsonl", rows), "MNLI")
    assert (examples.labels, examples.left_out) == (["neutral"], 1)
    with pytest.raises(InvalidInputError, match="holds no example: all 1 rows are left out"):
        read_examples(write("dev.jsonl", rows[:1]), "MNLI")

    path = write(
        "xnli.dev.tsv",
        tsv(
            "language|gold_label|sentence1|sentence2",
            "en|neutral|a|b",
            "zh|entailment|一|二",
        ),
    )
    examples = read_examples(path, "XNLI")
    assert (examples.texts, examples.labels, examples.left_out) == (
        [("一", "二")],
        ["entailment"],
        1,
    )


def test_lines_end_where_they_end(write) -> None:
    # Characters at which str.splitlines would cut
    text = "one\u2028two\x0bthree\x85four\rfive"
    examples = read_examples(write("a.tsv", f"sentence\tlabel\n{text}\t1\n"), "SST")
    assert examples.texts == [text]


def test_columns_that_are_named(write) -> None:
    path = write("a.tsv", tsv("id|mood|said", "1|sad|well", "2|glad|oh"))
    examples = read_examples(path, "classification", columns=["said", "mood"])
    assert (examples.texts, examples.labels) == (["well", "oh"], ["sad", "glad"])
    path = write("a.tsv", tsv("well|he|0.5", "oh|she|-1e2"))
    examples = read_examples(path, "regression", columns=["2", "1", "3"])
    assert (examples.texts, examples.labels) == ([("he", "well"), ("she", "oh")], [0.5, -100.0])
    rows = [{"q": "a", "r": "b", "l": 1}, {"l": "0", "q": "c", "r": "", "more": None}]
    examples = read_examples(
        write("a.jsonl", rows), "classification", columns=["q", "r", "l"], labels=["0", "1"]
    )
    assert (examples.texts, examples.labels) == ([("a", "b"), ("c", "")], ["1", "0"])
    assert examples.places == ["line 1", "line 2"]
    # In JSON a number is a name like others.
    examples = read_examples(
        write("a.jsonl", [{"1": "a", "2": 2.5}]), "regression", columns=["1", "2"]
    )
    assert (examples.texts, examples.labels) == (["a"], [2.5])
    # A preset's task on a file with other names
    path = write("a.tsv", tsv("l|s", "1|fine"))
    assert read_examples(path, "SST", columns=["s", "l"]).texts == ["fine"]


REFUSED = [
    # a classifier's TSV
    ("SST", "", r"holds no example"),
    ("SST", "\n\n", r"holds no example"),
    ("SST", "sentence\tlabel\n", r"holds no example"),
    ("SST", "sentence\tlabels\na\t1\n", r"line 1: has the columns 'sentence', 'labels'; SST want"),
    ("SST", "a fine film\n", r"line 1: .*wants the columns 'sentence', 'label'"),
    ("SST", "sentence\tlabel\tlabel\na\t1\t0\n", r"line 1: the column 'label' is there twice"),
    ("SST", "sentence\tlabel\na\t1\nb\n", r"line 3: has 1 column, expected 2 \(fields"),
    ("SST", "sentence\tlabel\na\tb\t1\n", r"line 2: has 3 columns, expected 2"),
    ("SST", "sentence\tlabel\na\t1\n\nb\t1\n", r"line 3: has 1 column, expected 2"),
    ("SST", "sentence\tlabel\na\t2\n", r"line 2: the label '2' is unknown; the labels are '0', "),
    ("SST", "sentence\tlabel\na\t\n", r"line 2: the label '' is unknown"),
    ("SST", "sentence\tlabel\n\t1\n", r"line 2: 'sentence' is an empty string"),
    ("SST", "sentence\tlabel\na\0b\t1\n", r"line 2: 'sentence' holds a NUL character at positio"),
    ("SST", b"sentence\tlabel\na\t1\nb\xff\t1\n", r"line 3: is not UTF-8 \(invalid start byte at"),
    ("SST", b"\xff\xfes\0e\0", r"line 1: is not UTF-8"),
    ("CoLA", "gj04\t1\t\n", r"line 1: has the columns .*4 columns and no header, to read the col"),
    ("CoLA", "gj04\t1\t\ta\ngj04\t1\ta\n", r"line 2: has 3 columns, expected 4"),
    ("CoLA", "gj04\t1\t\t\n", r"line 1: column 4 is an empty string"),
    ("STS-B", "g\tf\ty\ti\tnan\ta\tb\n", r"line 1: the label 'nan' is not a number"),
    ("STS-B", "g\tf\ty\ti\t1e999\ta\tb\n", r"line 1: the label 1e999 is not a finite number"),
    ("STS-B", "g\tf\ty\ti\t1_0\ta\tb\n", r"line 1: the label '1_0' is not a number"),
    ("STS-B", "g\tf\ty\ti\t\x1c1_0\ta\tb\n", r"line 1: the label '.*1_0' is not a number"),
    ("STS-B", "g\tf\ty\ti\tfive\ta\tb\n", r"line 1: the label 'five' is not a number"),
    ("STS-B", "g\tf\ty\ti\t1\ta\tb\ng\tf\ty\n", r"line 2: has 3 columns, expected 7 to 9"),
]


@pytest.mark.parametrize(("task", "content", "message"), REFUSED)
def test_refused_rows(write, task, content, message) -> None:
    path = write("a.tsv", content)
    with pytest.raises(InvalidInputError, match=message) as error:
        read_examples(path, task)
    assert str(error.value).startswith(str(path))


def test_white_space_around_a_number(write) -> None:
    """That which float() does not strip, too."""
    path = write("a.tsv", "g\tf\ty\ti\t\x1c2.5\u2003\ta\tb\n")
    assert read_examples(path, "STS-B").labels == [2.5]


GOOD = '{"premise": "a", "hypothesis": "b", "label": "neutral"}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: is not JSON \(Expecting .*\); expected an object on each line"),
        ("[]", r"line 2: is a list, expected an object"),
        ("null", r"line 2: is null, expected an object"),
        ("[" * 100_000, r"line 2: is nested too deeply"),
        ('{"premise": "a", "hypothesis": "b"}', r"line 2: there is no 'label'"),
        ('{"premise": "a", "hypothesis": 1, "label": "neutral"}', r"'hypothesis' is 1, expected a"),
        ('{"premise": null, "hypothesis": "", "label": "neutral"}', r"'premise' is null, expected"),
        ('{"premise": "a", "hypothesis": "b", "label": "maybe"}', r"the label 'maybe' is unknown"),
        ('{"premise": "a", "hypothesis": "b", "label": true}', r"the label is true, expected a te"),
        ('{"premise": "a", "hypothesis": "b", "label": []}', r"the label is a list, expected a te"),
        ('{"premise": "a", "hypothesis": "b", "label": 1.0}', r"the label is 1.0, expected a text"),
        ('{"premise": "\\ud800", "hypothesis": "b", "label": "neutral"}', r"a lone surrogate"),
        ("", None),
        ("\n" + GOOD, r"line 2: is not JSON"),
    ],
)
def test_refused_json_lines(write, line, message) -> None:
    path = write("a.jsonl", GOOD + line + "\n")
    if message is None:
        assert len(read_examples(path, "MNLI")) == 1
        return
    with pytest.raises(InvalidInputError, match=message) as error:
        read_examples(path, "MNLI")
    assert str(error.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "9" * 400])
def test_refused_numbers_of_json(write, value) -> None:
    path = write("a.jsonl", '{"t": "a", "l": ' + value + "}\n")
    with pytest.raises(
        InvalidInputError, match=r"line 1: (the label .* is not a finite|has the) number"
    ):
        read_examples(path, "regression", columns=["t", "l"])


def test_refused_keys(write) -> None:
    path = write("a.jsonl", [{"text": "a", "label": "neutral"}])
    with pytest.raises(InvalidInputError, match=r"line 1: has the keys 'text', 'label'; MNLI want"):
        read_examples(path, "MNLI")


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("classification", None, "has no columns of its own: name those"),
        ("classification", ["a"], "wants those of one text or two and that of the label"),
        ("classification", ["a", "b", "c", "d"], "wants those of one text or two"),
        ("classification", ["a", "a"], "each another one"),
        ("SST", ["a", "b", "c"], "SST wants those of one text and"),
        ("RTE", ["a", "b"], "RTE wants those of two texts and"),
        ("classification", ["a", "x"], "line 1: has the columns 'a', 'b'; classification wants"),
        ("classification", ["1", "3"], "wants no header, to read the columns 1, 3"),
        ("question-answering", ["a", "b"], "SQuAD's JSON, without any"),
        ("tagging", ["word", "tag"], "wants the numbers, from 1"),
        ("embedding", None, "labelled data are read for classification"),
        ("sst", None, "there is no such task; labelled data are read for .*SST"),
    ],
)
def test_refused_arguments(write, task, columns, message) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_examples(write("a.tsv", "a\tb\nc\t1\n"), task, columns=columns)


def test_what_is_no_file(write, tmp_path) -> None:
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_examples(tmp_path / "none.tsv", "SST")
    with pytest.raises(InvalidInputError, match="is a directory; expected a file"):
        read_examples(tmp_path, "SST")
    with pytest.raises(InvalidInputError, match="cannot be the path of a file"):
        read_examples("", "SST")
    with pytest.raises(InvalidTypeError, match="path is a int"):
        read_examples(3, "SST")
    with pytest.raises(InvalidTypeError, match="expected a list of names"):
        read_examples(write("a.tsv", "a"), "classification", columns="ab")


def test_labels_of_a_model(write) -> None:
    path = write("a.tsv", tsv("sentence|label", "a|1"))
    with pytest.raises(InvalidInputError, match=r"line 2: the label '1' is unknown.*'bad', 'good'"):
        read_examples(path, "SST", labels=["good", "bad"])


def test_take(write) -> None:
    path = write("a.tsv", tsv("sentence|label", "a|1", "b|0", "c|1"))
    part = read_examples(path, "SST").take([2, 0])
    assert (part.texts, part.labels, part.places) == (["c", "a"], ["1", "1"], ["line 4", "line 2"])


# --- words ------------------------------------------------------------------------------------

CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
New NNP I-NP I-LOC
York NNP I-NP I-LOC
Paris NNP I-NP B-LOC

Ann NNP I-NP B-PER
Bo\tNNP  I-NP I-PER
Coe NNP I-NP I-PER
"""


def test_words_and_tags(write) -> None:
    path = write("eng.train", CONLL)
    examples = read_examples(path, "tagging")
    assert examples.task == "tagging"
    assert examples.texts == [["EU", "rejects", "New", "York", "Paris"], ["Ann", "Bo", "Coe"]]
    assert examples.labels == [
        ["S-ORG", "O", "B-LOC", "E-LOC", "S-LOC"],
        ["B-PER", "I-PER", "E-PER"],
    ]
    assert examples.places == ["line 3", "line 9"]
    # Other columns: chunks
    examples = read_examples(path, "tagging", columns=["1", "3"])
    assert examples.labels[0] == ["S-NP", "S-VP", "B-NP", "I-NP", "E-NP"]
    assert read_examples(path, "tagging", labels=["X", "O", "B-ORG", "B-LOC", "I-PER"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no example"),
        ("-DOCSTART- -X- O O\n\n", "holds no example"),
        ("a O\nb\n", "line 2: has 1 column, those before it have 2"),
        ("a\n", "line 1: has 1 column, expected 2 or more: a word and its tag"),
        ("a O\n\nb NN\n", "line 3: the tag 'NN' is unknown; expected 'O'"),
        ("a I-\n", "line 1: the tag 'I-' is unknown"),
        ("a I-GPE\n", "line 1: the tag 'I-GPE' is of an unknown kind; the kinds are 'LOC', 'PER'"),
        ("a\0 O\n", "line 1: the word holds a NUL"),
        (b"a O\n\xc3 O\n", "line 2: is not UTF-8"),
    ],
)
def test_refused_words(write, content, message) -> None:
    path = write("eng.dev", content)
    with pytest.raises(InvalidInputError, match=message) as error:
        read_examples(path, "tagging", labels=["O", "B-PER", "I-PER", "I-LOC"])
    assert str(error.value).startswith(str(path))


def test_a_column_that_is_not_there(write) -> None:
    with pytest.raises(InvalidInputError, match="line 1: has 2 columns, expected 4 or more"):
        read_examples(write("eng.dev", "a O\n"), "tagging", columns=["1", "4"])


# --- questions --------------------------------------------------------------------------------


def squad(**question) -> dict:
    asked = {
        "id": "1",
        "question": "Who ?",
        "answers": [{"text": "Ada", "answer_start": 0}, {"text": "Ada L.", "answer_start": 0}],
    } | question
    return {"data": [{"paragraphs": [{"context": "Ada L. did.", "qas": [asked]}]}]}


def test_questions(write) -> None:
    examples = read_examples(write("dev.json", [squad()]), "question-answering")
    assert examples.texts == [("Who ?", "Ada L. did.")]
    assert examples.labels == [(GoldAnswer("Ada", 0), GoldAnswer("Ada L.", 0))]
    assert examples.places == ["data[0].paragraphs[0].qas[0]"]
    impossible = squad(answers=[], is_impossible=True, plausible_answers=[{"text": "x"}])
    assert read_examples(write("dev.json", [impossible]), "question-answering").labels == [()]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: is not JSON"),
        ('{"data":\n[}', "line 2: is not JSON"),
        ("[" * 100_000, "line 1: is nested too deeply"),
        (b'{"data":\n"\xff"}', "line 2: is not UTF-8"),
        ({}, "the file: there is no 'data'"),
        ([], "the file: is a list, expected an object"),
        ({"data": []}, "holds no example"),
        ({"data": {}}, "the file: 'data' is an object, expected a list"),
        ({"data": [3]}, r"data\[0\]: is 3, expected an object"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"paragraphs\[0\]: there is no 'context'"),
        (squad(question=7), r"qas\[0\]: 'question' is 7, expected a text"),
        (squad(question=""), r"qas\[0\]: 'question' is an empty string"),
        (squad(answers=[]), r"qas\[0\]: the question has no answers and is not marked as impossib"),
        (squad(is_impossible=True), r"qas\[0\]: the question has answers and is marked as"),
        (squad(is_impossible=1), r"qas\[0\]: 'is_impossible' is 1, expected true or false"),
        (squad(answers=[{"text": "a"}]), r"answers\[0\]: 'answer_start' is null, expected a place"),
        (
            squad(answers=[{"text": "a", "answer_start": 11}]),
            r"answers\[0\]: 'answer_start' is 11, expected a place in the context, 0 to 10",
        ),
    ],
)
def test_refused_questions(write, content, message) -> None:
    path = write("dev.json", content if isinstance(content, str | bytes) else json.dumps(content))
    with pytest.raises(InvalidInputError, match=message) as error:
        read_examples(path, "question-answering")
    assert str(error.value).startswith(str(path))


# --- anything ---------------------------------------------------------------------------------

NAMES = st.sampled_from(["sentence", "label", "1", "0", "a b", "O", "B-X", "", "\xa0", "\u2028"])
CELLS = st.lists(NAMES, max_size=4)
TABLES = st.lists(CELLS, max_size=5).map(lambda rows: "\n".join(map("\t".join, rows)).encode())
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["data", "paragraphs", "context", "qas", "question", "answers", "text", "label"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=60) | TABLES | JSON)
def test_any_file_is_read_or_refused(write, content) -> None:
    for name, task, columns in (
        ("a.tsv", "SST", None),
        ("a.tsv", "STS-B", ["1", "2", "3"]),
        ("a.jsonl", "classification", ["text", "label"]),
        ("a.jsonl", "regression", ["text", "label"]),
        ("a.json", "question-answering", None),
        ("a.conll", "tagging", None),
    ):
        path = write(name, content)
        try:
            examples = read_examples(path, task, columns=columns)
        except InvalidInputError as error:
            assert str(error).startswith(str(path))
        else:
            assert 0 < len(examples) == len(examples.labels) == len(examples.places)


# --- directories ------------------------------------------------------------------------------


def test_files_of_a_directory(tmp_path) -> None:
    for name in ("train.tsv", "dev.jsonl", "dev_matched.tsv", "dev_mismatched.tsv", "sts-dev.csv"):
        (tmp_path / name).touch()
    assert find_files(tmp_path, "SST", "train") == [tmp_path / "train.tsv"]
    assert find_files(tmp_path, "classification", "dev") == [tmp_path / "dev.jsonl"]
    assert find_files(tmp_path, "STS-B", "dev") == [tmp_path / "sts-dev.csv"]
    assert find_files(tmp_path, "MNLI", "dev") == [
        tmp_path / "dev_matched.tsv",
        tmp_path / "dev_mismatched.tsv",
    ]
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(MissingFileError, match="holds no train file of SST: expected the name tr"):
        find_files(tmp_path, "SST", "train")
    with pytest.raises(MissingFileError, match="there is no such directory"):
        find_files(tmp_path / "none", "SST", "train")
    with pytest.raises(InvalidInputError, match=re.escape("dev.jsonl is a file; expected a direc")):
        find_files(tmp_path / "dev.jsonl", "SST", "dev")


# --- the corpora ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "task", "rows", "share"),
    [
        ("mrpc/train.tsv", "MRPC", 3668, {"1": 2474}),
        ("mrpc/dev.even.tsv", "MRPC", 204, {}),
        ("rte/train.tsv", "RTE", 2490, {}),
        ("rte/dev.even.tsv", "RTE", 139, {}),
        ("sst-2/train.tsv", "SST", 67349, {"1": 37569}),
        ("sst-2/dev.even.tsv", "SST", 436, {}),
        ("cola/train.tsv", "CoLA", 8551, {"1": 6023}),
        ("cola/dev.even.tsv", "CoLA", 522, {}),
        ("sts-b/sts-dev.even.tsv", "STS-B", 750, {}),
        ("qnli/dev.even.tsv", "QNLI", 2732, {}),
        ("mnli/dev_matched.part.jsonl", "MNLI", 1000, {}),
        ("xnli-zh/dev.part.tsv", "XNLI", 1000, {}),
        ("squad-v1.1/dev-v1.1.part-a.json", "question-answering", 4961, {}),
        ("squad-v2.0/dev-v2.0.part-a.json", "question-answering", 3782, {(): 2014}),
        ("conll2003/eng.train.3000", "tagging", 3000, {}),
        ("conll2003/eng.testa.part-a", "tagging", 1628, {}),
    ],
)
def test_corpora(file, task, rows, share) -> None:
    directory = os.environ.get("BERTRT_TEST_DATA")
    if not directory:
        pytest.skip("BERTRT_TEST_DATA names no directory with corpora")
    examples = read_examples(Path(directory) / file, task)
    assert (len(examples), examples.left_out) == (rows, 0)
    # Counts that the corpora's papers and pages tell.
    for label, count in share.items():
        assert examples.labels.count(label) == count
    if task == "question-answering":
        for (_, context), answers in zip(examples.texts, examples.labels, strict=True):
            assert all(context.startswith(own.text, own.start) for own in answers)
