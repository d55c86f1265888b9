"""Labelled data: the official files of the tasks, and any TSV or JSON-lines file.

Whatever is wrong with a file is told with its path, the line and the reason, before anything is
done with the rows that are fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertrt.errors import InvalidInputError, InvalidTypeError, MissingFileError
from bertrt.evaluation.examples import Examples
from bertrt.evaluation.layouts import STEMS, SUFFIXES
from bertrt.evaluation.readers import DataFile, Questions, Reader, Rows, Sentences, Texts
from bertrt.host.files import reading
from bertrt.host.paths import check_path
from bertrt.tasks.settings import PRESETS, SCORED, TASKS

__all__ = ["find_files", "read_examples", "read_texts"]


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
    with reading(found, InvalidInputError):
        file = _data_file(found)
        reader: Reader
        if kind == "question-answering":
            if columns is not None:
                raise InvalidInputError(
                    "columns: question answering reads SQuAD's JSON, without any"
                )
            reader = Questions(file)
        elif kind == "tagging":
            reader = Sentences(file, labels, columns)
        else:
            reader = Rows(file, task, kind, labels, columns)
        reader.read()
    if not reader.texts:
        left = f": all {reader.left_out} rows are left out" if reader.left_out else ""
        raise InvalidInputError(f"{found} holds no example{left}")
    return Examples(
        kind, found, file.sha256, reader.texts, reader.labels, reader.places, reader.left_out
    )


def _data_file(path: Path) -> DataFile:
    if not path.exists():
        raise MissingFileError(f"{path}: there is no such file")
    if path.is_dir():
        raise InvalidInputError(f"{path} is a directory; expected a file")
    return DataFile(path)


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
    with reading(found, InvalidInputError):
        file = _data_file(found)
        reader = Texts(file, task)
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
    with reading(found, InvalidInputError):
        if not found.exists():
            raise MissingFileError(f"{found}: there is no such directory")
        if not found.is_dir():
            raise InvalidInputError(
                f"{found} is a file; expected a directory with {part}.tsv in it"
            )
        groups = (*STEMS.get(task, {}).get(part, ()), (part,))
        for group in groups:
            for suffix in SUFFIXES:
                paths = [found / f"{stem}{suffix}" for stem in group]
                if present := [path for path in paths if path.is_file()]:
                    return present
    stems = ", ".join(stem for group in groups for stem in group)
    raise MissingFileError(
        f"{found} holds no {part} file of {task}: expected the name {stems} with the suffix "
        f"{', '.join(SUFFIXES)}; name the file itself where it has another"
    )
