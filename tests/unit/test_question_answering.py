"""Windows, candidates and spans of question answering, by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bertrt.errors import InvalidInputError, InvalidTypeError, ModelFormatError
from bertrt.tasks.question_answering import QuestionAnswering, _align, _widest, _Window
from bertrt.tasks.settings import complete_settings
from bertrt.tasks.windows import cut_windows, overlapping
from bertrt.text.inputs import raise_errors
from bertrt.text.load import load_tokenizer

WORDS = ["who", "?", "ada", "##m", "eve", "and", ",", "love", "##lace", "é", "in", "1815"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture
def answer(tmp_path: Path, write_vocabulary):
    """A function: question, context, the (start, end) logits by token -> the answer.

    What is not named has the logits (-9, -9).
    """

    def make(question, context, logits, *, max_length=16, **settings):
        write_vocabulary(SPECIAL + WORDS)
        tokenizer = load_tokenizer(
            {"kind": "gluonnlp", "file": "vocab.json", "lower": True, "max_length": max_length},
            tmp_path,
        )
        task = QuestionAnswering(complete_settings(settings, "question-answering", max_length))
        (request,), single = task.encode((question, context), tokenizer)
        assert single
        parts = []
        for window, sequence in zip(request.source.windows, request.sequences, strict=True):
            rows = np.full((len(sequence.ids), 2), -9, np.float32)
            for position in range(len(rows)):
                token = position - window.offset + window.begin
                known = logits.get(token if window.begin <= token < window.end else None)
                if known is not None and position >= window.offset:
                    rows[position] = known
            rows[0] = logits.get("null", (-9, -9))
            parts.append(rows)
        return task.answer(request, parts), request

    return make


def test_an_answer_and_where_it_stands(answer) -> None:
    context = "Eve  and\tAdam, in\n1815 ."
    # eve and ada ##m , in 1815 .
    found, request = answer("who ?", context, {1: (5, 0), 3: (0, 5)})
    assert (found.text, found.start, found.end) == ("and Adam", 5, 13)
    assert context[5:13] == "and\tAdam"
    assert found.nbest[0].text == "and Adam" and found.nbest[0].score == found.score
    assert sum(span.score for span in found.nbest) == pytest.approx(1)
    assert not found.truncated
    (sequence,) = request.sequences
    assert sequence.types.tolist() == [0] * 4 + [1] * 9


def test_a_part_of_a_word(answer) -> None:
    found, _ = answer("who ?", "(Adam), 1815", {1: (5, 0), 2: (0, 5)})
    # "( ada ##m ) , 1815": of the word "(Adam)," the answer has the name alone.
    assert (found.text, found.start, found.end) == ("Adam", 1, 5)


def test_a_text_that_cannot_be_aligned_is_whole_words(answer) -> None:
    """An accent that is a character of its own makes lengths differ; GluonNLP then takes it all."""
    found, _ = answer("who ?", "eve e\u0301, and", {1: (5, 5)})
    assert found.text == "e\u0301,"


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["ada", "##m"], "Adam", (0, 4)),
        (["lace"], "Love lace!", (5, 9)),
        (["love", "##lace", "!"], "Love lace!", (0, 10)),  # not found: all of it
        (["[UNK]"], "xyz", (0, 3)),
        (["a"], "e\u0301 a", (0, 4)),
    ],
)
def test_alignment(tokens, text, expected) -> None:
    assert _align(tokens, text, lower=True) == expected


def test_the_last_token_of_a_window_begins_no_answer(answer) -> None:
    """GluonNLP looks its flags up one token too late."""
    found, _ = answer("who ?", "eve and adam", {3: (9, 9), 1: (1, 0)})
    assert found.text == "and adam"
    found, _ = answer("who ?", "eve", {0: (9, 9)})
    assert (found.text, found.start, found.end) == ("empty", 0, 0)
    assert [span.text for span in found.nbest] == ["empty"]


def test_windows_and_their_best(answer) -> None:
    context = " ".join(["eve", "and", "in", ","] * 3)
    # [CLS] who ? [SEP] and eight tokens of the context at a time, four on: three windows at most.
    found, request = answer("who ?", context, {6: (7, 7)}, max_length=13, doc_stride=4)
    assert [(w.begin, w.end) for w in request.source.windows] == [(0, 8), (4, 12)]
    assert [len(sequence.ids) for sequence in request.sequences] == [13, 13]
    assert (found.text, found.start) == ("in", context.index("in", 15))
    # One answer, though the token stands in two windows: one of them has its flag.
    assert [span.text for span in found.nbest].count("in") == 1


@pytest.mark.parametrize(
    ("tokens", "room", "stride"),
    list(itertools.product([1, 7, 8, 9, 30], [1, 3, 8], [1, 3, 8, 128])),
)
def test_windows_cover_every_token(tokens: int, room: int, stride: int) -> None:
    windows = cut_windows(tokens, room, stride)
    assert windows[0][0] == 0 and windows[-1][1] == tokens
    assert all(0 < end - begin <= room for begin, end in windows)
    assert all(
        begin == last + min(room, stride) for (last, _), (begin, _) in itertools.pairwise(windows)
    )
    assert set(range(tokens)) == {t for begin, end in windows for t in range(begin, end)}
    made = [_Window(begin, end, 2) for begin, end in windows]
    for token in range(tokens):
        index = _widest(made, token)
        assert made[index].begin <= token < made[index].end


@pytest.mark.parametrize("room", [1, 2, 3, 7, 59, 123, 379])
@pytest.mark.parametrize("stride", [1, 16, 128])
def test_windows_overlap_by_half(answer, room: int, stride: int) -> None:
    """With the rule "overlapping" a span of half the room stands whole in a window."""
    tokens = 1000
    _, request = answer(
        "who ?",
        "eve " * tokens,
        {},
        max_length=room + 5,
        doc_stride=stride,
        max_query_length=1,
        windows="overlapping",
    )
    windows = [(w.begin, w.end) for w in request.source.windows]
    # The question takes a token, and so there is one more.
    assert windows[0] == (0, room + 1) and windows[-1][1] == tokens
    assert {later - first for (first, _), (later, _) in itertools.pairwise(windows)} == {
        min(stride, (room + 1) // 2)
    }
    half = (room + 1) // 2
    assert all(
        any(begin <= first and first + half <= end for begin, end in windows)
        for first in range(tokens - half + 1)
    )


def test_gluonnlp_windows_keep_its_stride(answer) -> None:
    """Its script goes on by `doc_stride` whatever the room is, and directly behind a window that
    is shorter."""
    for settings, expected in (
        ({}, [(0, 8), (8, 16), (16, 20)]),
        ({"doc_stride": 6}, [(0, 8), (6, 14), (12, 20)]),
        ({"windows": "overlapping"}, [(0, 8), (4, 12), (8, 16), (12, 20)]),
    ):
        _, request = answer("who ?", "eve " * 20, {}, max_length=13, **settings)
        assert [(w.begin, w.end) for w in request.source.windows] == expected
    assert overlapping(1) == 1


def test_an_answer_across_an_edge_is_found(answer) -> None:
    context = "eve " * 7 + "ada love in " + "eve " * 9
    logits = {7: (9, -9), 9: (-9, 9)}
    assert answer("who ?", context, logits, max_length=13)[0].text != "ada love in"
    found, _ = answer("who ?", context, logits, max_length=13, windows="overlapping")
    assert (found.text, found.start, found.end) == ("ada love in", 28, 39)


@pytest.mark.parametrize("before", range(30))
def test_answers_of_half_the_room_are_found_anywhere(answer, before: int) -> None:
    """[CLS] who [SEP] context [SEP] of 24 tokens: 20 of the context, and an answer of ten."""
    context = "eve " * before + "ada " + "and " * 8 + "love" + " eve" * 30
    logits = {before: (9, -9), before + 9: (-9, 9)}
    found, request = answer("who", context, logits, max_length=24, windows="overlapping")
    assert request.source.windows[1].begin == 10
    assert found.text == "ada " + "and " * 8 + "love"
    assert (found.start, context[found.start : found.end]) == (4 * before, found.text)


def test_a_context_of_one_token_has_an_answer(answer) -> None:
    assert answer("who ?", "eve", {0: (9, 9)}, windows="overlapping")[0].text == "eve"


def test_limits_of_an_answer(answer) -> None:
    context = "eve and adam , in 1815 ,"
    logits = {0: (5, -9), 1: (4.5, -9), 5: (-9, 6), 3: (-9, 5)}
    assert answer("who ?", context, logits)[0].text == "eve and adam , in"
    assert answer("who ?", context, logits, max_answer_length=5)[0].text == "and adam , in"
    assert answer("who ?", context, logits, max_answer_length=4)[0].text == "eve and adam"
    assert len(answer("who ?", context, logits, n_best=1)[0].nbest) == 1
    # A pair that ends before it begins is none.
    assert answer("who ?", context, {3: (9, 0), 1: (0, 9)}, n_best=1)[0].text == "empty"


def test_texts_that_are_there_twice_count_once(answer) -> None:
    found, _ = answer("who ?", "eve and eve and", {0: (5, 5), 2: (5, 4.5)}, n_best=3)
    assert [span.text for span in found.nbest][:1] == ["eve"]
    assert len({span.text for span in found.nbest}) == len(found.nbest)
    assert found.start == 0


@pytest.mark.parametrize(
    ("null", "threshold", "text"),
    [((5, 6), 0.0, ""), ((5, 4), 0.0, "eve"), ((5, 4), -2.0, ""), ((5, 6), 2.0, "eve")],
)
def test_no_answer(answer, null, threshold, text) -> None:
    found, _ = answer(
        "who ?",
        "eve and adam",
        {0: (5, 5), "null": null},
        null_answer=True,
        null_threshold=threshold,
    )
    assert found.text == text
    assert (found.start, found.end) == ((0, 3) if text else (0, 0))
    assert "" in [span.text for span in found.nbest]
    assert found.score == next(span.score for span in found.nbest if span.text == text)


def test_no_candidate_is_no_answer_where_there_may_be_none(answer) -> None:
    """There GluonNLP's script fails."""
    assert answer("who ?", "eve", {}, null_answer=True)[0].text == ""


def test_questions_are_cut_and_contexts_are_not(answer) -> None:
    found, request = answer(
        "who ? who ? who ?", "eve and adam " * 9, {1: (3, 3)}, max_query_length=4
    )
    assert found.truncated
    for sequence in request.sequences:
        assert len(sequence.ids) <= 16 and sequence.types.tolist().index(1) == 6
    assert request.source.windows[-1].end == 36


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (("who ?", ""), InvalidInputError, r"batch\[0\]: the context is empty"),
        (("who ?", " \u200b "), InvalidInputError, r"batch\[0\]: the context .* no|gives a token"),
        (("\u200b", "eve"), InvalidInputError, r"batch\[0\]: the question"),
        (("", "eve"), InvalidInputError, r"batch\[0\]: the question is empty"),
        (
            [("", "eve"), ("who ?", "eve"), ("who ?", " "), "eve"],
            InvalidInputError,
            r"3 of 4 .*batch\[0\]: the question .*batch\[2\]: the context .*batch\[3\] is a text;",
        ),
        ("who ?", InvalidInputError, r"\(question, context\), takes a pair"),
        ([["who ?", "eve"]], InvalidTypeError, r"batch\[0\] is a list"),
    ],
)
def test_bad_input(answer, batch, error, message) -> None:
    _, request = answer("who ?", "eve", {})
    task = QuestionAnswering(complete_settings(None, "question-answering", 16))
    found, _ = task.encode(batch, request.source.tokenizer)
    with pytest.raises(error, match=message):
        raise_errors(found)


def test_a_model_that_cannot_answer(answer) -> None:
    _, request = answer("who ?", "eve", {})
    task = QuestionAnswering(complete_settings(None, "question-answering", 16))
    batch = SimpleNamespace(cu_seqlens=np.array([0, 6]))
    with pytest.raises(ModelFormatError, match=r"two logits for each token.*not 3"):
        task.read({"logits": np.zeros((6, 3), np.float32)}, batch, [request])
    narrow = QuestionAnswering(complete_settings(None, "question-answering", 384))
    with pytest.raises(ModelFormatError, match="no room for a context"):
        narrow.encode(("who ?", "eve"), request.source.tokenizer)
