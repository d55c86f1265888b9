"""Arguments, sane and otherwise, of an engine's methods."""

from __future__ import annotations

import array
import contextlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

__all__ = ["draw_batch", "draw_call", "draw_load", "draw_packed", "take"]

_DTYPES = (
    *("i8", "i8", "i4", "i4", "u1", "i1", "u2", "i2", "u4", "u8", "f4", "f8", "f2"),
    *(">i4", ">i8", ">f4", "?", "c8", "O", "U3", "S2", "M8[s]", "m8[s]", "g", "V4"),
)
_STRANGE = (
    *(-1, 11, 12, 13, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 2**64),
    *(10**400, 0.5, 5.0, float("nan"), float("inf"), -0.0, 1e300, True, None, "5", b"5", 5j),
)


class _Subclass(np.ndarray):
    """An array of a class of its own."""


class _Iterator:
    """A generator's recipe: an input is used twice, and a generator can be used once."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"iter({self.values!r})"


def take(arguments: Any) -> Any:
    """Arguments with new iterators in the places of their recipes."""
    if isinstance(arguments, _Iterator):
        return iter(arguments.values)
    if type(arguments) is tuple:
        return tuple(take(own) for own in arguments)
    if type(arguments) is dict:
        return {name: take(own) for name, own in arguments.items()}
    return arguments


def _cast(random: Random, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "iuf":  # some of numpy 1.23's own casts end the process
        return values
    with np.errstate(all="ignore"):
        try:
            return values.astype(random.choice(_DTYPES))
        except Exception:  # whatever numpy says of such a pair of types
            return values


def _laid_out(random: Random, values: np.ndarray) -> Any:
    """The same numbers in another dress."""
    dresses: tuple[Callable[[], Any], ...] = (
        lambda: np.asfortranarray(values),
        lambda: np.repeat(values, 2, axis=0)[::2],
        lambda: values[::-1],
        lambda: values.T,
        lambda: values.view(_Subclass),
        lambda: np.ma.masked_array(values, values == 5),
        lambda: np.asmatrix(values),
        lambda: memoryview(np.ascontiguousarray(values)),
        lambda: values.tolist(),
        lambda: tuple(values.tolist()),
        lambda: list(values),
        lambda: [list(row)[: random.randrange(5)] for row in values.tolist()],
        lambda: [np.asarray(row)[: random.randrange(1, 5)] for row in values],
        lambda: [_cast(random, np.asarray(row)) for row in values],
        lambda: _Iterator(list(values)),
        lambda: set(values.ravel().tolist()),
        lambda: dict(enumerate(values.tolist())),
        lambda: range(4),
        lambda: array.array("i", [1, 2]),
        lambda: values.tobytes(),
        lambda: str(values),
        lambda: values.ravel()[0],
        lambda: np.array(5),
        lambda: values[None],
        lambda: values[:0],
        lambda: values[:, :0],
        lambda: values.ravel(),
        lambda: _readonly(values),
        lambda: _misaligned(values),
        lambda: np.broadcast_to(np.int64(1), (2, random.choice((13, 2**20, 2**40)))),
        lambda: np.broadcast_to(np.int32(1), (random.choice((300, 5000)), 3)),
        lambda: np.lib.stride_tricks.as_strided(np.arange(9), (3, 4), (8, 16)),
        lambda: _nested(random.choice((3, 40, 2000))),
        lambda: _endless(),
        lambda: np.array([[1, [2]]], dtype=object),
    )
    try:
        return random.choice(dresses)()
    except (TypeError, ValueError, IndexError, BufferError):
        return values


def _readonly(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values.flags.writeable = False
    return values


def _misaligned(values: np.ndarray) -> np.ndarray:
    data = np.frombuffer(b"\0" + values.tobytes(), np.uint8)[1:]
    return data.view(values.dtype).reshape(values.shape)


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _numbers(random: Random, shape: tuple[int, ...], below: int) -> Any:
    """Integers below a limit, most often, in some dress."""
    values = np.array(
        [random.randrange(below) for _ in range(int(np.prod(shape)))], np.int64
    ).reshape(shape)
    if random.random() < 0.3 and values.size:
        values = values.astype(object)
        for _ in range(random.choice((1, 1, 3))):
            values.flat[random.randrange(values.size)] = random.choice(_STRANGE)
        if random.random() < 0.6:
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                values = np.array(values.tolist())
    if random.random() < 0.4:
        values = _cast(random, values)
    return _laid_out(random, values) if random.random() < 0.5 else values


def _shape(random: Random) -> tuple[int, int]:
    return random.choice((1, 1, 2, 3, 7)), random.choice((1, 2, 3, 8, 12, 12, 13, 40))


def _other_shape(random: Random, shape: tuple[int, int]) -> tuple[int, ...]:
    if random.random() < 0.8:
        return shape
    return random.choice((shape[::-1], shape[:1], shape[1:], (*shape, 1), (0,), (2, 2)))


def draw_batch(random: Random) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call of `Engine.run`."""
    shape = _shape(random)
    positional = [_numbers(random, shape, 11)]
    named: dict[str, Any] = {}
    if random.random() < 0.5:
        named["token_types"] = _numbers(random, _other_shape(random, shape), 2)
    if random.random() < 0.5:
        if random.random() < 0.7:
            named["valid_length"] = _numbers(random, shape[:1], shape[1] + 1)
        else:
            named["valid_length"] = _numbers(random, _other_shape(random, shape), 2)
    if random.random() < 0.4:
        masked = (shape[0], random.choice((0, 1, 2, 5)))
        named["masked_positions"] = _numbers(random, _other_shape(random, masked), shape[1])
    if random.random() < 0.03:
        positional = [random.choice((None, 5, "text", b"", {}, [], [[]], [None], object, np.nan))]
    return "run", tuple(positional), named


def draw_packed(random: Random) -> tuple[Any, ...]:
    """Arguments of the extension's own `run`: int32 arrays, and what is none."""

    def ints(values: list[int]) -> Any:
        made = np.array(values, np.int64).astype(np.int32)
        if random.random() < 0.2 and made.size:
            odd = (-1, 1, 2**31 - 1, -(2**31), 11, 12, 2)
            made[random.randrange(made.size)] = random.choice(odd)
        kind = random.random()
        if kind < 0.04:
            return made.astype(random.choice(("i8", "f4", ">i4", "u4")))
        if kind < 0.06:
            return made[::2]
        if kind < 0.08:
            return made[: random.randrange(made.size + 1)]
        return made.reshape(1, -1) if kind < 0.1 else made

    lengths = [random.choice((0, 1, 2, 5, 12, 12, 13)) for _ in range(random.choice((1, 2, 5)))]
    tokens = sum(lengths)
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    if random.random() < 0.1:
        random.shuffle(ends)
    masked: Any = None
    if random.random() < 0.6:
        masked = ints([0] * len(lengths)).reshape(-1, 1)
    outputs = ["sequence_output", "pooled_output", "masked_lm_outputs", "logits", "", "x"]
    attended: Any = None
    if random.random() < 0.3:
        attended = ints([random.randrange(length + 1) for length in lengths])
    wanted = random.choice((outputs[:1], outputs[:2], outputs[2:3], outputs[3:4], []))
    if random.random() < 0.1:
        wanted = random.choices(outputs, k=3)
    return (
        ints([random.randrange(11) for _ in range(tokens)]),
        ints([random.randrange(2) for _ in range(tokens)]),
        ints(ends),
        masked,
        wanted,
        attended,
    )


# --- texts -----------------------------------------------------------------------------------

_PIECES = (
    *("the", " ", "boat", "boats", "sea", "[MASK]", "[SEP]", "[CLS]", "[PAD]", "<mask>", "<s>"),
    *("\0", "\ud800", "\udfff", "é", "e\u0301", "\u2028", "\u200b", "\ufeff", "\U0001f468\u200d"),
    *(
        "\u0130",
        "ß",
        "\u1e9e",
        "\ufb01",
        "中文",
        "한국",
        "नमस्ते",
        "\u0e33",
        "\x85",
        "\x1f",
        "\u3000",
    ),
    *("\u202e", "\U0010ffff", "\ue000", "\ufdfa", "\uffff", "##s", "x" * 200, "a\u0300" * 60, "\n"),
    *("1e999", "'", '"', "\\", "{}", "%s", "\t", "\r", "."),
)


def _text(random: Random) -> str:
    if random.random() < 0.1:
        return "".join(chr(random.randrange(0x110000)) for _ in range(random.randrange(20)))
    return "".join(random.choice(_PIECES) for _ in range(random.choice((0, 1, 2, 3, 6, 20, 90))))


def _thing(random: Random) -> Any:
    return random.choice(
        (
            *(None, 5, 0.5, True, b"the", bytearray(b"a"), [], (), {}, {"a": 1}, {"the"}, object),
            *([None], [[]], [()], ["the", 5], ("the",), ("the", None), ("a", "b", "c")),
            *(np.array(["the"]), np.str_("the"), np.array("the"), [np.str_("the")]),
            *(_Iterator(["the"]), _endless(), _nested(50), [["the", "sea"]], [[""]], [["a", 5]]),
            *("", " ", "query", "nothing", ["the"] * 40),
        )
    )


def _batch(random: Random) -> Any:
    kind = random.random()
    if kind < 0.3:
        return _text(random)
    if kind < 0.5:
        return [_text(random) for _ in range(random.choice((1, 2, 5)))]
    if kind < 0.6:
        return _text(random), _text(random)
    if kind < 0.7:
        return [(_text(random), _text(random)) for _ in range(random.choice((1, 2)))]
    if kind < 0.8:
        return [[_text(random) for _ in range(3)], _text(random)]
    if kind < 0.9:
        return [random.choice((_text(random), _thing(random))) for _ in range(3)]
    return _thing(random)


def draw_call(random: Random) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """A call of a method that takes texts."""
    method = random.choice(
        ("predict", "predict", "predict", "predict_with_outputs", "tokenize", "rerank")
    )
    named: dict[str, Any] = {}
    if random.random() < 0.2:
        named["prompt"] = random.choice((_text(random), _thing(random), "query", None))
    if method == "predict" and random.random() < 0.3:
        named["on_error"] = random.choice(("return", "return", "raise", _thing(random)))
    if method == "rerank":
        if random.random() < 0.3:
            named["top_k"] = random.choice((1, 0, -1, 2**70, True, 1.0, _thing(random)))
        return method, (_text(random), _batch(random)), named
    return method, (_batch(random),), named


_SETTINGS = (
    *("max_length", "labels", "pooling", "normalize", "truncate_dim", "doc_stride", "top_k"),
    *("null_answer", "prompts", "default_prompt_name", "include_prompt", "subwords", "scores"),
    *("activation", "threshold", "problem_type", "aggregate", "", "x", "none"),
)


def draw_load(random: Random) -> dict[str, Any]:
    """Named arguments of `Engine.load`."""
    named: dict[str, Any] = {}

    def value() -> Any:
        return random.choice(
            (
                *(_thing(random), _thing(random), 0, 1, 3, 8, 12, 13, -1, 2**63, 2**70, 10**30),
                *(0.5, float("nan"), True, False, "cls", "mean", "words", "max", ["no", "yes"]),
                *(["mean", "cls"], {"query": "the "}, {"query": 5}, "query", np.int64(4)),
            )
        )

    kind = random.random()
    if kind < 0.75:
        names = random.choices(_SETTINGS, k=random.choice((1, 1, 2, 3)))
        named["settings"] = {name: value() for name in names}
    elif kind < 0.8:
        named["settings"] = value()
    if random.random() < 0.15:
        named["precision"] = random.choice(("fp32", "bf16", "int8", "fp16", "x", value()))
    if random.random() < 0.1:
        named["threads"] = random.choice((1, 2, 0, -1, 1025, 2**70, True, 1.5, value()))
    if random.random() < 0.1:
        named["device"] = random.choice(("cpu", "cuda", "cuda:0,0", "cuda:99", "x", value()))
    if random.random() < 0.05:
        named["backend"] = random.choice(("native", "x", "bertrt", "os", value()))
    return named
