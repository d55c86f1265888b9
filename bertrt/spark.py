"""A model over a DataFrame of Spark: what `pyspark.ml.functions.predict_batch_udf` calls."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bertrt.engine import Engine
from bertrt.errors import BertrtError, InvalidInputError, InvalidTypeError
from bertrt.host.cores import usable_cores

__all__ = ["make_predict_fn"]

# What can be written of each task's results: the UDF knows scalars and arrays of them, no structs
# within a struct.
_FIELDS = {
    "classification": ("label", "score", "scores"),
    "regression": ("score",),
    "question-answering": ("text", "score", "start", "end"),
    "tagging": ("words", "tags", "scores"),
    "embedding": ("vector",),
    "next-sentence": ("is_next", "score"),
}
# What stands where there is no answer.
_NO_ANSWER: dict[str, Any] = {
    "label": "",
    "score": float("nan"),
    "scores": np.empty(0),
    "text": "",
    "start": -1,
    "end": -1,
    "words": np.empty(0, object),
    "tags": np.empty(0, object),
    "vector": np.empty(0, np.float32),
    "is_next": -1,
    "truncated": -1,
}


def make_predict_fn(
    path: str | os.PathLike[str],
    write: str | Sequence[str],
    *,
    pairs: bool = False,
    prompt: str | None = None,
    on_error: str = "raise",
    **load: Any,
) -> Callable[[], Callable[..., Any]]:
    """The `make_predict_fn` of `predict_batch_udf`: loads an engine in each Python worker::

        from pyspark.ml.functions import predict_batch_udf
        from pyspark.sql.types import ArrayType, FloatType

        embed = predict_batch_udf(
            make_predict_fn("/models/minilm", "vector"),
            return_type=ArrayType(FloatType()),
            batch_size=1024,
        )
        frame.withColumn("vector", embed("text"))

    `batch_size` counts rows and is how many go through at once; however many they are, the engine
    runs them by tokens. A row's answer has the bits of `Engine.predict` for it alone.

    | task | what can be written, and its type in Spark |
    | --- | --- |
    | classification | `label` string, `score` double, `scores` array<double>, by `Engine.labels` |
    | regression | `score` double |
    | question-answering | `text` string, `score` double, `start` bigint, `end` bigint |
    | tagging | `words` array<string>, `tags` array<string>, `scores` array<double> |
    | embedding, of texts | `vector` array<float> |
    | next-sentence | `is_next` int, `score` double |
    | all of these | `truncated` int; `error` string, "" where there is an answer |

    The UDF knows no boolean: these are 1 and 0.

    Args:
        path: the model, at the same place on every executor.
        write: one of these, for a column of its type; but what differs in length from row to row
            (`words`, `tags`, `scores` of tags) is of structs only. Or a list of them, for a column
            of structs: `return_type` is a StructType with these names.
        pairs: whether the UDF is called with two columns: ``answer("question", "context")``.
        prompt: see `Engine.predict`.
        on_error: "raise": a batch with a row that cannot be answered is an error that names all
            such rows, and the task fails. "return": `error`, which has to be written then, says why
            a row has no answer. The rest of it is an empty string or array, NaN or -1: the UDF
            takes no null in the first row of a batch.
        load: the further arguments of `Engine.load`. `threads` is spark.task.cpus where it is not
            given: an executor runs spark.executor.cores / spark.task.cpus Python workers, each with
            an engine and its weights.

    Raises:
        InvalidTypeError: `write` is no name and no list of them.
        InvalidInputError: `on_error` is unknown, or is "return" and `error` is not written. In the
            workers also: `write` names what the task does not have; and what `Engine.load` and
            `Engine.predict` raise.
    """
    names = [write] if isinstance(write, str) else write
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(f"write is {write!r}; expected a name, or a list of them")
    if on_error not in ("raise", "return"):
        raise InvalidInputError(f"on_error is {on_error!r}; expected 'raise' or 'return'")
    if on_error == "return" and (isinstance(write, str) or "error" not in names):
        raise InvalidInputError(
            "on_error is 'return', and write is no list with 'error', which says which rows have "
            "no answer, and why"
        )
    options = {"prompt": prompt, "on_error": on_error}
    return functools.partial(
        _load,
        os.fspath(path),
        write if isinstance(write, str) else list(names),
        pairs,
        options,
        load,
    )


def _load(
    path: str, write: str | list[str], pairs: bool, options: dict[str, Any], load: dict[str, Any]
) -> Callable[..., Any]:
    if load.get("threads") is None and (cpus := _task_cpus()) is not None:
        load = {**load, "threads": max(1, min(cpus, usable_cores()))}
    engine = Engine.load(path, **load)
    _check_fields(engine, write)

    def answer(inputs: list[Any]) -> Any:
        results = engine.predict(inputs, **options)
        if isinstance(write, str):
            return _column([_value(result, write) for result in results], write)
        return [{name: _value(result, name) for name in write} for result in results]

    # The UDF counts the parameters, and gives each a column.
    def predict(texts: np.ndarray) -> Any:
        return answer(_texts(texts))

    def predict_pairs(first: np.ndarray, second: np.ndarray) -> Any:
        return answer(list(zip(_texts(first), _texts(second), strict=True)))

    return predict_pairs if pairs else predict


def _task_cpus() -> int | None:
    """spark.task.cpus; None outside of a task."""
    # Spark's workers have imported it.
    pyspark = sys.modules.get("pyspark")
    context = None if pyspark is None else pyspark.TaskContext.get()
    return None if context is None else context.cpus()


def _check_fields(engine: Engine, write: str | list[str]) -> None:
    fields = _FIELDS.get(engine.task or "")
    if fields is None:
        raise InvalidInputError(
            f"{engine!r} answers with nothing that predict_batch_udf can hold; the tasks that do "
            f"are {', '.join(_FIELDS)}"
        )
    for name in [write] if isinstance(write, str) else write:
        if name not in (*fields, "truncated", "error"):
            raise InvalidInputError(
                f"write names {name!r}; of {engine.task} {', '.join(fields)}, truncated and error "
                "can be written"
            )
    if engine.task == "tagging" and write in fields:
        raise InvalidInputError(
            f"write is {write!r}, of which texts have different numbers, and predict_batch_udf "
            f"holds these in structs only: write=[{write!r}], with a StructType as return_type"
        )


def _texts(column: np.ndarray) -> list[Any]:
    """A column's texts, None for nulls: pandas makes NaN of them."""
    return [None if item != item else item for item in column.tolist()]


def _value(result: Any, name: str) -> Any:
    """A field of a result as the UDF takes it: a scalar, or an array of one dimension."""
    if isinstance(result, BertrtError):
        return str(result) if name == "error" else _NO_ANSWER[name]
    if name == "error":
        return ""
    value = getattr(result, name)
    if name == "vector" and value.ndim == 2:
        raise InvalidInputError(
            "the model gives a vector for each token or word, and predict_batch_udf holds no "
            "arrays of arrays; a pooling of texts makes one vector of them: "
            'settings={"pooling": "mean"}'
        )
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, dict):
        return np.array(list(value.values()))
    if isinstance(value, tuple):
        return np.array(value, object if name in ("words", "tags") else np.float64)
    return value


def _column(values: list[Any], name: str) -> np.ndarray:
    if isinstance(values[0], np.ndarray):
        return np.stack(values)
    return np.array(values, object if isinstance(values[0], str) else None)
