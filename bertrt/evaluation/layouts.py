"""How files of labelled data are laid out: columns, names of files, and labels, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["JSON_LINES", "LAYOUTS", "STEMS", "SUFFIXES", "Layout", "called", "counted", "span_of"]


@dataclass(frozen=True)
class Layout:
    """Where a kind of file has what.

    Attributes:
        texts, label: columns: names in the header of a TSV file, keys of JSON lines, or, without
            a header, places from 0.
        header: whether columns have names.
        widths: without a header, how many columns a line may have; None: as many as the first.
        short_lines: whether lines with too few columns are left out and not refused.
        unlabelled: the label of rows on which those who labelled them did not agree.
        language: a further column, and the value that it must have in rows that are read.
        aliases: labels by other names that they have in such files.
    """

    texts: tuple[Any, ...]
    label: Any
    header: bool = True
    widths: range | None = None
    short_lines: bool = False
    unlabelled: str | None = None
    language: tuple[str, str] | None = None
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[Any, ...]:
        """The columns of the texts, then that of the label."""
        columns = (*self.texts, self.label)
        return columns if self.language is None else (*columns, self.language[0])

    def __str__(self) -> str:
        if self.header:
            return "the columns " + ", ".join(repr(name) for name in self.columns)
        numbers = ", ".join(str(place + 1) for place in self.columns)
        counts = "" if self.widths is None else f"{span_of(self.widths)} columns and "
        return f"{counts}no header, to read the columns {numbers}"

    def fits(self, fields: Sequence[str]) -> bool:
        """Whether a file may have this layout whose first line has these fields."""
        if self.header:
            return set(self.columns) <= set(fields)
        return max(self.columns) < len(fields) and (
            self.widths is None or len(fields) in self.widths
        )


_SENTENCES = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_ALIASES = (("contradictory", "contradiction"),)
# The files of the GLUE benchmark, of the data sets that it was made of, of Baidu's ERNIE (XNLI,
# LCQMC, ChnSentiCorp, as gluonnlp.data has them), and the common column names of copies. QQP's file
# in GLUE has lines that are cut, which GluonNLP leaves out. XNLI's own file has 15 languages; the
# task is GluonNLP's, in Chinese, whose files say "contradictory".
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "MRPC": (
        Layout(("#1 String", "#2 String"), "Quality"),
        Layout(_SENTENCES, "label"),
    ),
    "QQP": (
        Layout(("question1", "question2"), "is_duplicate", short_lines=True),
        Layout(("question1", "question2"), "label"),
    ),
    "QNLI": (Layout(("question", "sentence"), "label"),),
    "RTE": (Layout(_SENTENCES, "label"), Layout(_NLI, "label")),
    "STS-B": (
        Layout(_SENTENCES, "score"),
        Layout(_SENTENCES, "label"),
        Layout((5, 6), 4, header=False, widths=range(7, 10)),
    ),
    "CoLA": (Layout(("sentence",), "label"), Layout((3,), 1, header=False, widths=range(4, 5))),
    "MNLI": (
        Layout(_SENTENCES, "gold_label", unlabelled="-"),
        Layout(_NLI, "label", unlabelled="-"),
    ),
    "WNLI": (Layout(_SENTENCES, "label"),),
    "SST": (Layout(("sentence",), "label"),),
    "XNLI": (
        Layout(_SENTENCES, "gold_label", language=("language", "zh"), aliases=_ALIASES),
        Layout(("text_a", "text_b"), "label", aliases=_ALIASES),
        Layout(("premise", "hypo"), "label", aliases=_ALIASES),
        Layout(_NLI, "label", aliases=_ALIASES),
    ),
    "LCQMC": (
        Layout(("text_a", "text_b"), "label"),
        Layout(_SENTENCES, "label"),
        Layout((0, 1), 2, header=False, widths=range(3, 4)),
    ),
    "ChnSentiCorp": (Layout(("text_a",), "label"), Layout(("text",), "label")),
}
# Names of files, without suffix, in a directory of a task's data; several dev files are all meant.
STEMS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
    "MRPC": {"train": (("msr_paraphrase_train",),), "dev": (("msr_paraphrase_test",),)},
    "STS-B": {"train": (("sts-train",),), "dev": (("sts-dev",),)},
    "MNLI": {
        "train": (("multinli_1.0_train",),),
        "dev": (
            ("dev_matched", "dev_mismatched"),
            ("multinli_1.0_dev_matched", "multinli_1.0_dev_mismatched"),
        ),
    },
    "XNLI": {"train": (), "dev": (("xnli.dev",),)},
}
SUFFIXES = (".tsv", ".jsonl", ".csv", ".txt")
JSON_LINES = (".jsonl", ".ndjson", ".json")


def called(column: Any) -> str:
    """A column as messages call it: its name, or its number from 1."""
    return f"column {column + 1}" if isinstance(column, int) else f"{column!r}"


def counted(number: int, what: str) -> str:
    """A number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def span_of(widths: range) -> str:
    """The widths that a row may have, in words."""
    return " to ".join(str(count) for count in sorted({widths[0], widths[-1]}))
