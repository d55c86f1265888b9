"""Labelled data: the official files of the tasks, and any TSV or JSON-lines file.

Whatever is wrong with a file is told with its path, the line and the reason, before anything is
done with the rows that are fine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bertrt.batch import check_text
from bertrt.errors import InvalidInputError, InvalidTypeError, MissingFileError
from bertrt.host.paths import check_path
from bertrt.tasks.settings import PRESETS, SCORED, TASKS
from bertrt.tasks.tagging import to_bioes

__all__ = ["Examples", "GoldAnswer", "find_files", "read_examples", "read_texts"]


@dataclass(frozen=True)
class GoldAnswer:
    """An answer that the data give to a question.

    Attributes:
        text: the answer.
        start: where it begins in the context, in characters, as the file says.
    """

    text: str
    start: int


@dataclass(frozen=True)
class Examples:
    """Labelled texts.

    Attributes:
        task: what they are for: "classification", "regression", "question-answering", "tagging".
        path: the file, absolute.
        sha256: of the file.
        texts: what `Engine.predict` takes: str, (str, str), or lists of words for tagging.
        labels: one for each text. Classification: str. Regression: float, finite.
            Question answering: a tuple of `GoldAnswer`, empty where the context has none. Tagging:
            a list with a tag for each word, in the scheme BIOES whatever the file's scheme is.
        places: where in the file each is, such as "line 12".
        left_out: how many rows the task's rules leave out; see `read_examples`.
    """

    task: str
    path: Path
    sha256: str
    texts: list[Any]
    labels: list[Any]
    places: list[str]
    left_out: int

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """The file and the place in it of an example, as messages name it."""
        return f"{self.path}, {self.places[index]}"

    def take(self, indices: Iterable[int]) -> Examples:
        """Some of the examples, in the order of `indices`."""
        chosen = list(indices)
        return dataclasses.replace(
            self,
            texts=[self.texts[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            places=[self.places[i] for i in chosen],
        )


@dataclass(frozen=True)
class _Layout:
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
        columns = (*self.texts, self.label)
        return columns if self.language is None else (*columns, self.language[0])

    def __str__(self) -> str:
        if self.header:
            return "the columns " + ", ".join(repr(name) for name in self.columns)
        numbers = ", ".join(str(place + 1) for place in self.columns)
        counts = "" if self.widths is None else f"{_span(self.widths)} columns and "
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
_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "MRPC": (
        _Layout(("#1 String", "#2 String"), "Quality"),
        _Layout(_SENTENCES, "label"),
    ),
    "QQP": (
        _Layout(("question1", "question2"), "is_duplicate", short_lines=True),
        _Layout(("question1", "question2"), "label"),
    ),
    "QNLI": (_Layout(("question", "sentence"), "label"),),
    "RTE": (_Layout(_SENTENCES, "label"), _Layout(_NLI, "label")),
    "STS-B": (
        _Layout(_SENTENCES, "score"),
        _Layout(_SENTENCES, "label"),
        _Layout((5, 6), 4, header=False, widths=range(7, 10)),
    ),
    "CoLA": (_Layout(("sentence",), "label"), _Layout((3,), 1, header=False, widths=range(4, 5))),
    "MNLI": (
        _Layout(_SENTENCES, "gold_label", unlabelled="-"),
        _Layout(_NLI, "label", unlabelled="-"),
    ),
    "WNLI": (_Layout(_SENTENCES, "label"),),
    "SST": (_Layout(("sentence",), "label"),),
    "XNLI": (
        _Layout(_SENTENCES, "gold_label", language=("language", "zh"), aliases=_ALIASES),
        _Layout(("text_a", "text_b"), "label", aliases=_ALIASES),
        _Layout(("premise", "hypo"), "label", aliases=_ALIASES),
        _Layout(_NLI, "label", aliases=_ALIASES),
    ),
    "LCQMC": (
        _Layout(("text_a", "text_b"), "label"),
        _Layout(_SENTENCES, "label"),
        _Layout((0, 1), 2, header=False, widths=range(3, 4)),
    ),
    "ChnSentiCorp": (_Layout(("text_a",), "label"), _Layout(("text",), "label")),
}

# Names of files, without suffix, in a directory of a task's data; several dev files are all meant.
_STEMS: dict[str, dict[str, tuple[tuple[str, ...], ...]]] = {
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
_SUFFIXES = (".tsv", ".jsonl", ".csv", ".txt")
_JSON_LINES = (".jsonl", ".ndjson", ".json")


def read_examples(
    path: Any,
    task: str,
    *,
    labels: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Examples:
    """Read a file of labelled data.

    - A preset's file ("MRPC", ...): the official one, with or without the header that it has there,
      or a copy with common column names, as TSV or JSON lines.
    - "classification", "regression": a TSV or JSON-lines file with `columns`.
    - "question-answering": SQuAD's JSON, 1.1 or 2.0.
    - "tagging": CoNLL's columns: a word a line, its columns parted by blanks or tabs, sentences
      parted by empty lines; the word comes first and the tag last, unless `columns` says otherwise.
      Tags are in any of the schemes IO, IOB1, IOB2 and BIOES. Lines of ``-DOCSTART-`` are no words.

    Text is UTF-8; a byte order mark at the beginning is passed over. Lines end with ``\\n`` or
    ``\\r\\n``, and empty ones at the end do not count. TSV fields are never quoted, so that a
    quotation mark is a character like others. Files whose names end in .jsonl, .ndjson or .json
    hold JSON lines, all others are TSV (STS-B's .csv is).

    Rows that are left out, and counted: those of MNLI whose label is "-" (those who labelled them
    did not agree), those of another language than Chinese in XNLI's own file, and those of QQP that
    are cut (GluonNLP does so).

    Args:
        path: the file.
        task: a preset of `bertrt.tasks.settings.PRESETS`, or one of the four tasks above.
        labels: the labels that there are (for tagging: the model's tags, of which the kinds of
            entities count); None: the preset's, and without a preset any.
        columns: the columns of the text, or of both texts, and of the label: names in the TSV
            header or keys of the JSON objects; whole numbers, from 1, for a TSV file without a
            header. For tagging the numbers of two columns.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: the file is no file, is empty, or is not what the task wants; the message
            says at which line, and why. Or there is no such task, or no such columns.
        InvalidTypeError: an argument of another type.
    """
    found = check_path("path", path)
    kind = PRESETS[task].task if task in PRESETS else task
    if kind not in SCORED:
        known = "" if kind in TASKS else "there is no such task; "
        raise InvalidInputError(
            f"task {task!r}: {known}labelled data are read for {', '.join(SCORED)}, "
            f"{', '.join(PRESETS)}"
        )
    if columns is not None and (
        isinstance(columns, str) or not all(isinstance(name, str) for name in columns)
    ):
        raise InvalidTypeError(f"columns is {columns!r}; expected a list of names")
    if labels is None and task in PRESETS:
        labels = PRESETS[task].labels
    if not found.exists():
        raise MissingFileError(f"{found}: there is no such file")
    if found.is_dir():
        raise InvalidInputError(f"{found} is a directory; expected a file")
    file = _File(found)
    reader: _Reader
    if kind == "question-answering":
        if columns is not None:
            raise InvalidInputError("columns: question answering reads SQuAD's JSON, without any")
        reader = _Questions(file)
    elif kind == "tagging":
        reader = _Sentences(file, labels, columns)
    else:
        reader = _Rows(file, task, kind, labels, columns)
    reader.read()
    if not reader.texts:
        left = f": all {reader.left_out} rows are left out" if reader.left_out else ""
        raise InvalidInputError(f"{found} holds no example{left}")
    return Examples(
        kind, found, file.sha256, reader.texts, reader.labels, reader.places, reader.left_out
    )


def read_texts(path: Any, task: str) -> Examples:
    """Read texts without labels, one a line; a tab parts those of a pair. Otherwise as
    `read_examples`: the labels are None.

    Args:
        path: the file.
        task: what they are for, one of `bertrt.tasks.settings.TASKS`.

    Raises:
        MissingFileError, InvalidInputError: as `read_examples`.
    """
    found = check_path("path", path)
    if not found.exists():
        raise MissingFileError(f"{found}: there is no such file")
    if found.is_dir():
        raise InvalidInputError(f"{found} is a directory; expected a file")
    file = _File(found)
    reader = _Texts(file, task)
    reader.read()
    if not reader.texts:
        raise InvalidInputError(f"{found} holds no text")
    return Examples(task, found, file.sha256, reader.texts, reader.labels, reader.places, 0)


def find_files(directory: Any, task: str, part: str) -> list[Path]:
    """The files of a part of a data set, by their usual names: ``train.tsv``, ``dev.tsv``,
    ``sts-train.tsv``, ``dev_matched.tsv`` with ``dev_mismatched.tsv``, ...

    Args:
        directory: where they lie.
        task: a preset, or any other task.
        part: "train" or "dev".

    Returns:
        One file, or MNLI's two.

    Raises:
        MissingFileError: there is no such directory, or no such file in it.
        InvalidInputError: `directory` is no directory.
    """
    found = check_path("directory", directory)
    if not found.exists():
        raise MissingFileError(f"{found}: there is no such directory")
    if not found.is_dir():
        raise InvalidInputError(f"{found} is a file; expected a directory with {part}.tsv in it")
    groups = (*_STEMS.get(task, {}).get(part, ()), (part,))
    for group in groups:
        for suffix in _SUFFIXES:
            paths = [found / f"{stem}{suffix}" for stem in group]
            if present := [path for path in paths if path.is_file()]:
                return present
    stems = ", ".join(stem for group in groups for stem in group)
    raise MissingFileError(
        f"{found} holds no {part} file of {task}: expected the name {stems} with the suffix "
        f"{', '.join(_SUFFIXES)}; name the file itself where it has another"
    )


class _File:
    """A text file, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of what has been read."""
        return self._hash.hexdigest()

    def refuse(self, place: str, reason: str) -> NoReturn:
        raise InvalidInputError(f"{self.path}, {place}: {reason}")

    def lines(self) -> Iterator[tuple[str, str]]:
        """Every line with its place; empty ones at the end are dropped."""
        empty: list[str] = []
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                self._hash.update(line)
                place = f"line {number}"
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if not line:
                    empty.append(place)
                    continue
                yield from ((before, "") for before in empty)
                empty.clear()
                yield place, self.text(place, line)

    def content(self) -> str:
        """All of it."""
        data = self.path.read_bytes()
        self._hash.update(data)
        number = 1
        try:
            return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
        except UnicodeDecodeError as error:
            number += data[: error.start].count(b"\n")
            self.refuse(f"line {number}", f"is not UTF-8 ({error.reason})")

    def text(self, place: str, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(place, f"is not UTF-8 ({error.reason} at byte {error.start})")


class _Reader(ABC):
    """Collects the examples of a file."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.texts: list[Any] = []
        self.labels: list[Any] = []
        self.places: list[str] = []
        self.left_out = 0

    @abstractmethod
    def read(self) -> None:
        """Read all of the file."""

    def add(self, place: str, text: Any, label: Any) -> None:
        self.texts.append(text)
        self.labels.append(label)
        self.places.append(place)

    def check(self, place: str, name: str, text: str, *, may_be_empty: bool = False) -> None:
        try:
            check_text(name, text, may_be_empty=may_be_empty)
        except InvalidInputError as error:
            self.file.refuse(place, str(error))


class _Texts(_Reader):
    """Texts without labels, one a line."""

    def __init__(self, file: _File, task: str) -> None:
        super().__init__(file)
        # Words are tagged in one text, whose tabs are white space.
        self._pairs = task != "tagging"

    def read(self) -> None:
        """Every line of the file."""
        for place, line in self.file.lines():
            texts = line.split("\t") if self._pairs else [line]
            if len(texts) > 2:
                self.file.refuse(
                    place,
                    f"has {_count(len(texts) - 1, 'tab')}, and one parts the texts of a pair; of "
                    "labelled data name the task",
                )
            for index, text in enumerate(texts):
                self.check(place, "the text", text, may_be_empty=index > 0)
            item = tuple(texts) if len(texts) == 2 else texts[0]
            if self.texts and type(item) is not type(self.texts[0]):
                self.file.refuse(place, "texts and pairs of them (with a tab) stand together")
            self.add(place, item, None)


class _Rows(_Reader):
    """Texts and pairs of them: TSV and JSON lines."""

    def __init__(
        self,
        file: _File,
        task: str,
        kind: str,
        labels: Sequence[str] | None,
        columns: Sequence[str] | None,
    ) -> None:
        super().__init__(file)
        self._is_json = file.path.suffix.lower() in _JSON_LINES
        self._label: Callable[[str, Any], Any] = self._name
        if kind == "regression":
            self._label = self._number
        self._names = None if labels is None else set(labels)
        self._task = task
        if columns is None:
            if task not in _LAYOUTS:
                raise InvalidInputError(
                    f"{task} has no columns of its own: name those of the text, or of both texts, "
                    "and of the label"
                )
            self._layouts = _LAYOUTS[task]
        else:
            self._layouts = (self._named(task, columns),)

    def _named(self, task: str, columns: Sequence[str]) -> _Layout:
        names = list(columns)
        pair = PRESETS[task].pair if task in PRESETS else None
        wanted = {None: (2, 3), True: (3,), False: (2,)}[pair]
        if len(names) not in wanted or len(set(names)) < len(names):
            texts = {None: "one text or two", True: "two texts", False: "one text"}[pair]
            raise InvalidInputError(
                f"columns {', '.join(map(repr, names))}: {task} wants those of {texts} and that of "
                "the label, each another one"
            )
        if not self._is_json and all(re.fullmatch(r"[1-9]\d{0,3}", n, re.ASCII) for n in names):
            places = [int(name) - 1 for name in names]
            return _Layout(tuple(places[:-1]), places[-1], header=False)
        return _Layout(tuple(names[:-1]), names[-1])

    def read(self) -> None:
        """Every row of the file."""
        for place, layout, values in self._json_rows() if self._is_json else self._tsv_rows():
            if layout.language is not None and values.pop() != layout.language[1]:
                self.left_out += 1
                continue
            *texts, label = values
            if layout.unlabelled is not None and label == layout.unlabelled:
                self.left_out += 1
                continue
            for index, (column, text) in enumerate(zip(layout.texts, texts, strict=True)):
                # As predict does, of a pair the second text may be empty.
                self.check(place, _called(column), text, may_be_empty=index > 0)
            if isinstance(label, str):
                label = dict(layout.aliases).get(label, label)
            text = texts[0] if len(texts) == 1 else tuple(texts)
            self.add(place, text, self._label(place, label))

    def _tsv_rows(self) -> Iterator[tuple[str, _Layout, list[Any]]]:
        layout: _Layout | None = None
        places: list[int] = []
        widths = range(0)
        for place, line in self.file.lines():
            fields = line.split("\t")
            if layout is None:
                layout = next((own for own in self._layouts if own.fits(fields)), None)
                if layout is None:
                    self._refuse_columns(place, fields)
                widths = layout.widths or range(len(fields), len(fields) + 1)
                places = list(layout.columns)
                if layout.header:
                    places = [fields.index(name) for name in layout.columns]
                    for name in layout.columns:
                        if fields.count(name) > 1:
                            self.file.refuse(place, f"the column {name!r} is there twice")
                    continue
            if len(fields) not in widths:
                if layout.short_lines and len(fields) < widths[0]:
                    self.left_out += 1
                    continue
                self.file.refuse(
                    place,
                    f"has {_count(len(fields), 'column')}, expected {_span(widths)} (fields are "
                    "parted by tabs and never quoted)",
                )
            yield place, layout, [fields[index] for index in places]

    def _json_rows(self) -> Iterator[tuple[str, _Layout, list[Any]]]:
        layout: _Layout | None = None
        for place, line in self.file.lines():
            row = self._object(place, line)
            if layout is None:
                layout = next((own for own in self._layouts if own.fits(list(row))), None)
                if layout is None:
                    self._refuse_columns(place, list(row))
            values = []
            for name in layout.columns:
                if name not in row:
                    self.file.refuse(place, f"there is no {name!r}")
                if name in layout.texts and not isinstance(row[name], str):
                    self.file.refuse(place, f"{name!r} is {_json_kind(row[name])}, expected a text")
                values.append(row[name])
            yield place, layout, values

    def _object(self, place: str, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except RecursionError:
            self.file.refuse(place, "is nested too deeply")
        except ValueError as error:
            self.file.refuse(place, f"is not JSON ({error}); expected an object on each line")
        if not isinstance(row, dict):
            self.file.refuse(place, f"is {_json_kind(row)}, expected an object")
        return row

    def _refuse_columns(self, place: str, found: list[str]) -> NoReturn:
        names = ", ".join(repr(_short(name)) for name in found[:20]) or "(none)"
        more = f" and {len(found) - 20} more" if len(found) > 20 else ""
        self.file.refuse(
            place,
            f"has the {'keys' if self._is_json else 'columns'} {names}{more}; {self._task} wants "
            f"{', or '.join(str(layout) for layout in self._layouts)}",
        )

    def _name(self, place: str, label: Any) -> str:
        if type(label) is int:
            label = str(label)
        if not isinstance(label, str):
            self.file.refuse(place, f"the label is {_json_kind(label)}, expected a text")
        if self._names is not None and label not in self._names:
            self.file.refuse(
                place,
                f"the label {_short(label)!r} is unknown; the labels are "
                f"{', '.join(map(repr, sorted(self._names)))}",
            )
        self.check(place, "the label", label)
        return label

    def _number(self, place: str, label: Any) -> float:
        pattern = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
        if isinstance(label, str) and not re.fullmatch(pattern, label.strip(), re.ASCII):
            self.file.refuse(place, f"the label {_short(label)!r} is not a number")
        if isinstance(label, bool) or not isinstance(label, str | int | float):
            self.file.refuse(place, f"the label is {_json_kind(label)}, expected a number")
        try:
            number = float(label)
        except OverflowError:  # a long integer of JSON
            number = math.inf
        if not math.isfinite(number):
            self.file.refuse(place, f"the label {_short(str(label))} is not a finite number")
        return number


class _Sentences(_Reader):
    """Words and their tags: the columns of CoNLL."""

    def __init__(
        self, file: _File, labels: Sequence[str] | None, columns: Sequence[str] | None
    ) -> None:
        super().__init__(file)
        self._word, self._tag = 0, -1
        if columns is not None:
            if len(columns) != 2 or not all(
                re.fullmatch(r"[1-9]\d?", n, re.ASCII) for n in columns
            ):
                raise InvalidInputError(
                    f"columns {', '.join(map(repr, columns))}: tagging wants the numbers, from 1, "
                    "of the column of the word and that of the tag"
                )
            self._word, self._tag = (int(name) - 1 for name in columns)
        self._kinds = None
        if labels is not None:
            self._kinds = {label[2:] for label in labels if re.match(r"[BIES]-.", label)}

    def read(self) -> None:
        """Every sentence of the file."""
        words: list[str] = []
        tags: list[str] = []
        begin, width = "", None
        for place, line in self.file.lines():
            if not line.strip(" \t"):
                self._end(begin, words, tags)
                words, tags = [], []
                continue
            fields = re.split(r"[ \t]+", line.strip(" \t"))
            if fields[0] == "-DOCSTART-":
                continue
            width = len(fields) if width is None else width
            if len(fields) != width:
                self.file.refuse(
                    place, f"has {_count(len(fields), 'column')}, those before it have {width}"
                )
            if width < 2 or max(self._word, self._tag) >= width:
                wanted = max(2, self._word + 1, self._tag + 1)
                self.file.refuse(
                    place,
                    f"has {_count(width, 'column')}, expected {wanted} or more: a word and its tag",
                )
            begin = begin if words else place
            words.append(fields[self._word])
            tags.append(self._check_tag(place, fields[self._tag]))
            self.check(place, "the word", words[-1])
        self._end(begin, words, tags)

    def _end(self, place: str, words: list[str], tags: list[str]) -> None:
        if words:
            self.add(place, words, to_bioes(tags))

    def _check_tag(self, place: str, tag: str) -> str:
        if tag != "O" and not re.fullmatch(r"[BIES]-.+", tag):
            self.file.refuse(
                place,
                f"the tag {_short(tag)!r} is unknown; expected 'O', or a kind behind 'B-', 'I-', "
                "'E-' or 'S-'",
            )
        if self._kinds is not None and tag != "O" and tag[2:] not in self._kinds:
            self.file.refuse(
                place,
                f"the tag {_short(tag)!r} is of an unknown kind; the kinds are "
                f"{', '.join(map(repr, sorted(self._kinds)))}",
            )
        return tag


class _Questions(_Reader):
    """SQuAD's JSON: articles, their paragraphs, and the questions of each with their answers."""

    def read(self) -> None:
        """Every question of the file."""
        text = self.file.content()
        try:
            content = json.loads(text)
        except RecursionError:
            self.file.refuse("line 1", "is nested too deeply")
        except json.JSONDecodeError as error:
            self.file.refuse(f"line {error.lineno}", f"is not JSON ({error.msg})")
        except ValueError as error:  # a number of too many digits
            self.file.refuse("line 1", f"is not JSON ({error})")
        for at, article in self._list("the file", content, "data"):
            for within, paragraph in self._list(at, article, "paragraphs"):
                context = self._text(within, paragraph, "context")
                for place, question in self._list(within, paragraph, "qas"):
                    self._question(place, question, context)

    def _question(self, place: str, question: Any, context: str) -> None:
        asked = self._text(place, question, "question")
        answers = tuple(
            self._answer(at, answer, context)
            for at, answer in self._list(place, question, "answers")
        )
        impossible = question.get("is_impossible", False)
        if not isinstance(impossible, bool):
            self.file.refuse(
                place, f"'is_impossible' is {_json_kind(impossible)}, expected true or false"
            )
        if bool(answers) == impossible:
            found = "answers and is marked" if impossible else "no answers and is not marked"
            self.file.refuse(place, f"the question has {found} as impossible")
        self.add(place, (asked, context), answers)

    def _answer(self, place: str, answer: Any, context: str) -> GoldAnswer:
        text = self._text(place, answer, "text")
        start = answer.get("answer_start")
        if type(start) is not int or not 0 <= start < len(context):
            self.file.refuse(
                place,
                f"'answer_start' is {_json_kind(start) if type(start) is not int else start}, "
                f"expected a place in the context, 0 to {len(context) - 1}",
            )
        return GoldAnswer(text, start)

    def _list(self, place: str, parent: Any, key: str) -> Iterator[tuple[str, Any]]:
        values = self._get(place, parent, key)
        if not isinstance(values, list):
            self.file.refuse(place, f"{key!r} is {_json_kind(values)}, expected a list")
        before = "" if place == "the file" else f"{place}."
        return ((f"{before}{key}[{i}]", value) for i, value in enumerate(values))

    def _text(self, place: str, parent: Any, key: str) -> str:
        value = self._get(place, parent, key)
        if not isinstance(value, str):
            self.file.refuse(place, f"{key!r} is {_json_kind(value)}, expected a text")
        self.check(place, repr(key), value)
        return value

    def _get(self, place: str, parent: Any, key: str) -> Any:
        if not isinstance(parent, dict):
            self.file.refuse(place, f"is {_json_kind(parent)}, expected an object")
        if key not in parent:
            self.file.refuse(place, f"there is no {key!r}")
        return parent[key]


def _called(column: Any) -> str:
    return f"column {column + 1}" if isinstance(column, int) else f"{column!r}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _span(widths: range) -> str:
    return " to ".join(str(count) for count in sorted({widths[0], widths[-1]}))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _json_kind(value: Any) -> str:
    """What a value of JSON is, as messages say it."""
    if value is None or isinstance(value, bool | int | float):
        return _short(json.dumps(value))
    return (
        "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    )
