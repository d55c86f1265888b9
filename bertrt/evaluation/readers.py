"""The readers of data files: rows and JSON lines, columns of words, questions, plain texts."""

from __future__ import annotations

import hashlib
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bertrt.errors import InvalidInputError
from bertrt.evaluation.examples import GoldAnswer
from bertrt.evaluation.layouts import JSON_LINES, LAYOUTS, Layout, called, counted, span_of
from bertrt.host.files import parse_json
from bertrt.tasks.settings import PRESETS
from bertrt.tasks.tagging import to_bioes
from bertrt.text.inputs import check_text

__all__ = ["DataFile", "Questions", "Reader", "Rows", "Sentences", "Texts"]

_LONGEST_LINE = 64 << 20
_LARGEST = 1 << 30


class DataFile:
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
            # A file may be a pipe or a device, and be without end or without lines.
            for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), b""), 1):
                self._hash.update(line)
                place = f"line {number}"
                if len(line) == _LONGEST_LINE:
                    self.refuse(place, f"has {_LONGEST_LINE} bytes or more")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if not line:
                    empty.append(place)
                    continue
                yield from ((before, "") for before in empty)
                empty.clear()
                yield place, self.text(place, line)

    def content(self) -> bytes:
        """All of it."""
        data = bytearray()
        with open(self.path, "rb") as file:
            while piece := file.read(1 << 20):
                data += piece
                if len(data) > _LARGEST:
                    self.refuse("the file", f"has more than {_LARGEST} bytes")
        self._hash.update(data)
        return bytes(data.removeprefix(b"\xef\xbb\xbf"))

    def text(self, place: str, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(place, f"is not UTF-8 ({error.reason} at byte {error.start})")


class Reader(ABC):
    """Collects the examples of a file."""

    def __init__(self, file: DataFile) -> None:
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


class Texts(Reader):
    """Texts without labels, one a line."""

    def __init__(self, file: DataFile, task: str) -> None:
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
                    f"has {counted(len(texts) - 1, 'tab')}, and one parts the texts of a pair; of "
                    "labelled data name the task",
                )
            for index, text in enumerate(texts):
                self.check(place, "the text", text, may_be_empty=index > 0)
            item = tuple(texts) if len(texts) == 2 else texts[0]
            if self.texts and type(item) is not type(self.texts[0]):
                self.file.refuse(place, "texts and pairs of them (with a tab) stand together")
            self.add(place, item, None)


class Rows(Reader):
    """Texts and pairs of them: TSV and JSON lines."""

    def __init__(
        self,
        file: DataFile,
        task: str,
        kind: str,
        labels: Sequence[str] | None,
        columns: Sequence[str] | None,
    ) -> None:
        super().__init__(file)
        self._is_json = file.path.suffix.lower() in JSON_LINES
        self._label: Callable[[str, Any], Any] = self._name
        if kind == "regression":
            self._label = self._number
        self._names = None if labels is None else set(labels)
        self._task = task
        if columns is None:
            if task not in LAYOUTS:
                raise InvalidInputError(
                    f"{task} has no columns of its own: name those of the text, or of both texts, "
                    "and of the label"
                )
            self._layouts = LAYOUTS[task]
        else:
            self._layouts = (self._named(task, columns),)

    def _named(self, task: str, columns: Sequence[str]) -> Layout:
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
            return Layout(tuple(places[:-1]), places[-1], header=False)
        return Layout(tuple(names[:-1]), names[-1])

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
                self.check(place, called(column), text, may_be_empty=index > 0)
            if isinstance(label, str):
                label = dict(layout.aliases).get(label, label)
            text = texts[0] if len(texts) == 1 else tuple(texts)
            self.add(place, text, self._label(place, label))

    def _tsv_rows(self) -> Iterator[tuple[str, Layout, list[Any]]]:
        layout: Layout | None = None
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
                    f"has {counted(len(fields), 'column')}, expected {span_of(widths)} (fields are "
                    "parted by tabs and never quoted)",
                )
            yield place, layout, [fields[index] for index in places]

    def _json_rows(self) -> Iterator[tuple[str, Layout, list[Any]]]:
        layout: Layout | None = None
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
            row = parse_json(line.encode())
        except json.JSONDecodeError as error:
            self.file.refuse(place, f"is not JSON ({error}); expected an object on each line")
        except ValueError as error:
            self.file.refuse(place, str(error))
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
            # float() strips less white space than str does.
            number = float(label.strip() if isinstance(label, str) else label)
        except OverflowError:  # a long integer of JSON
            number = math.inf
        if not math.isfinite(number):
            self.file.refuse(place, f"the label {_short(str(label))} is not a finite number")
        return number


class Sentences(Reader):
    """Words and their tags: the columns of CoNLL."""

    def __init__(
        self, file: DataFile, labels: Sequence[str] | None, columns: Sequence[str] | None
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
                    place, f"has {counted(len(fields), 'column')}, those before it have {width}"
                )
            if width < 2 or max(self._word, self._tag) >= width:
                wanted = max(2, self._word + 1, self._tag + 1)
                self.file.refuse(
                    place,
                    f"has {counted(width, 'column')}, expected {wanted} or more: a word and its "
                    "tag",
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


class Questions(Reader):
    """SQuAD's JSON: articles, their paragraphs, and the questions of each with their answers."""

    def read(self) -> None:
        """Every question of the file."""
        data = self.file.content()
        try:
            content = parse_json(data)
        except UnicodeDecodeError as error:
            number = 1 + data[: error.start].count(b"\n")
            self.file.refuse(f"line {number}", f"is not UTF-8 ({error.reason})")
        except json.JSONDecodeError as error:
            self.file.refuse(f"line {error.lineno}", f"is not JSON ({error.msg})")
        except ValueError as error:
            self.file.refuse("line 1", str(error))
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


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _json_kind(value: Any) -> str:
    """What a value of JSON is, as messages say it."""
    if value is None or isinstance(value, bool | int | float):
        return _short(json.dumps(value))
    return (
        "a text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"
    )
