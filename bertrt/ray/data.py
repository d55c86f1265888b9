"""A model over a data set of Ray: a class for `ray.data.Dataset.map_batches`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError, MissingDependencyError
from bertrt.ray.load import load_engine

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Predict"]


class Predict:
    """Adds what a model says of each row to a data set, as columns.

    Made for `map_batches`, with one engine an actor::

        dataset.map_batches(
            Predict,
            fn_constructor_kwargs={"path": "model.bundle", "columns": "text"},
            batch_format="pyarrow",
            batch_size=1024,
            num_cpus=2,
            compute=ray.data.ActorPoolStrategy(size=4),
        )

    Ray Data reads and writes with CPUs of its own. A pool that takes every CPU of the cluster
    leaves none for that, and waits for ever.

    `batch_size` counts rows and is how many go through at once; however many they are, the engine
    runs them by tokens. A row's answer has the bits of `Engine.predict` for it alone, whatever
    the blocks and batches are. The columns, with the types of Arrow:

    - classification: `label` (string), `score` (double), `scores` (map of string to double);
    - regression: `score` (double);
    - question answering: `text` (string), `score` (double), `start`, `end` (int64), `nbest` (list
      of structs of these four);
    - tagging: `words`, `tags` (lists of string), `scores` (list of double), `entities` (list of
      structs of `label`, `text`, `start`, `end`, `score`);
    - embedding: `vector` (list of float, float32), or of tokens and words a list of those, beside
      `tokens` (list of string);
    - fill-mask: `candidates` (list of structs of `token`, `score`, `mask`);
    - next-sentence: `is_next` (bool), `score` (double);

    all as `bertrt.results` has them, and `truncated` (bool) with each.

    Args:
        path: the model, at the same place on every node.
        columns: the column that holds the texts (for tagging also lists of words); or two, whose
            rows are pairs: ("question", "context").
        write: which of the columns above to write: a sequence of their names, or a mapping of them
            to the names that they get. None: all of them.
        prompt: see `Engine.predict`.
        on_error: "raise": a batch with a row that cannot be answered is an error that names all
            such rows. "return": such a row's columns are null, and the column `error` (string),
            null elsewhere, says why.
        load: the further arguments of `Engine.load`. `threads` is the actor's num_cpus where it is
            not given. On a GPU (num_gpus=1) `device="cuda"` is the one that Ray lets the actor see.

    Raises:
        What `Engine.load` raises.
        InvalidInputError: `write` names a column that the task does not have, or names one twice;
            `on_error` is "return" and "error" is not among what to write; the prompt is none.
        InvalidTypeError: `columns` or `write` is something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: str | Sequence[str] = "text",
        *,
        write: Sequence[str] | Mapping[str, str] | None = None,
        prompt: str | None = None,
        on_error: str = "raise",
        **load: Any,
    ) -> None:
        self._columns = _check_columns(columns)
        if on_error not in ("raise", "return"):
            raise InvalidInputError(f"on_error is {on_error!r}; expected 'raise' or 'return'")
        self._prompt, self._on_error = prompt, on_error
        self._engine = load_engine(path, load)
        self._types = _types(self._engine, prompt)
        if on_error == "return":
            self._types["error"] = _arrow().string()
        self._write = _check_write(write, self._types, on_error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A batch with its new columns.

        Args:
            batch: a table of Arrow (`batch_format="pyarrow"`).

        Raises:
            What `Engine.predict` raises; the index in a message is the row's in its batch.
            InvalidTypeError: the batch is no table.
            InvalidInputError: it lacks a column to read, or has one to write already.
        """
        pa = _arrow()
        if not isinstance(batch, pa.Table):
            raise InvalidTypeError(
                f"the batch is a {type(batch).__name__}; expected a pyarrow.Table: call "
                'map_batches(..., batch_format="pyarrow")'
            )
        if lacking := [name for name in self._columns if name not in batch.column_names]:
            raise InvalidInputError(
                f"the data set has no column {lacking[0]!r}; its columns are "
                f"{', '.join(batch.column_names)}"
            )
        if taken := [name for name in self._write.values() if name in batch.column_names]:
            raise InvalidInputError(
                f"the data set has a column {taken[0]!r} already, which bertrt does not overwrite; "
                "give what is written another name: write={'score': 'bertrt_score', ...}"
            )
        read = [batch.column(name).to_pylist() for name in self._columns]
        inputs = read[0] if len(read) == 1 else list(zip(*read, strict=True))
        results: list[Any] = []
        if inputs:
            results = self._engine.predict(inputs, prompt=self._prompt, on_error=self._on_error)
        for field, name in self._write.items():
            values = [_value(result, field) for result in results]
            column = pa.array(values, self._types[field])
            batch = batch.append_column(pa.field(name, column.type), column)
        return batch


def _arrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingDependencyError(
            "bertrt.ray.data needs pyarrow: pip install 'bertrt[ray]'"
        ) from error
    return pyarrow


def _types(engine: Any, prompt: str | None) -> dict[str, Any]:
    """The columns of the engine's task, and their types."""
    pa = _arrow()
    text, number, integer = pa.string(), pa.float64(), pa.int64()

    def structs(**fields: Any) -> Any:
        return pa.list_(pa.struct(list(fields.items())))

    span = {"text": text, "score": number, "start": integer, "end": integer}
    task = engine.task
    if task == "classification":
        types = {"label": text, "score": number, "scores": pa.map_(text, number)}
    elif task == "regression":
        types = {"score": number}
    elif task == "question-answering":
        types = {**span, "nbest": structs(**span)}
    elif task == "tagging":
        types = {
            "words": pa.list_(text),
            "tags": pa.list_(text),
            "scores": pa.list_(number),
            "entities": structs(label=text, text=text, start=integer, end=integer, score=number),
        }
    elif task == "embedding":
        # Lists of no fixed size: of those with one, Parquet takes no null.
        vector = pa.list_(pa.float32())
        types = {"vector": vector}
        if engine.predict("a", prompt=prompt).tokens is not None:
            types = {"vector": pa.list_(vector), "tokens": pa.list_(text)}
    elif task == "fill-mask":
        types = {"candidates": structs(token=text, score=number, mask=integer)}
    elif task == "next-sentence":
        types = {"is_next": pa.bool_(), "score": number}
    else:
        raise InvalidInputError(f"{engine!r} has no task; Predict needs a model that has one")
    return {**types, "truncated": pa.bool_()}


def _value(result: Any, field: str) -> Any:
    """A field of a result as Arrow takes it; of an error the message, and None for the rest."""
    if isinstance(result, BertrtError):
        return str(result) if field == "error" else None
    value: Any = getattr(result, field, None)
    if field == "vector":
        return value if value.ndim == 1 else list(value)
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, tuple) and value and not isinstance(value[0], str | float):
        return [vars(item) for item in value]
    return value


def _check_columns(columns: Any) -> list[str]:
    named = [columns] if isinstance(columns, str) else columns
    if (
        not isinstance(named, Sequence)
        or len(named) not in (1, 2)
        or not all(isinstance(name, str) for name in named)
    ):
        raise InvalidTypeError(
            f"columns is {columns!r}; expected the name of a column, or of two for pairs"
        )
    return list(named)


def _check_write(write: Any, types: Mapping[str, Any], on_error: str) -> dict[str, str]:
    """What to write, and the names that it gets."""
    if write is None:
        return {name: name for name in types}
    told = [*write, *write.values()] if isinstance(write, Mapping) else write
    if (
        isinstance(write, str)
        or not isinstance(told, Sequence)
        or not all(isinstance(name, str) for name in told)
    ):
        raise InvalidTypeError(
            f"write is {write!r}; expected a sequence of names, or a mapping of them to new ones"
        )
    names = dict(write) if isinstance(write, Mapping) else {name: name for name in write}
    for field in names:
        if field not in types:
            raise InvalidInputError(
                f"write names {field!r}; this model has {', '.join(map(repr, types))}"
            )
    if on_error == "return" and "error" not in names:
        raise InvalidInputError(
            "on_error is 'return', and write lacks 'error', the column that says which rows have "
            "no answer, and why"
        )
    if len({*names.values()}) < len(names) or len(names) < len(write):
        raise InvalidInputError(f"write is {write!r}; it names a column twice")
    return names
