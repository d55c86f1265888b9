"""A request's body, from what its head says of it to what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request

from bertrt.serve.refusals import Refusal

__all__ = ["check_coding", "decode", "parse"]


def check_coding(request: Request) -> None:
    """Refuse, with 415, a body that is compressed."""
    coding = (request.headers.get("content-encoding") or "identity").strip()
    if coding.lower() != "identity":
        raise Refusal(
            415,
            f"the body is compressed, its Content-Encoding {coding[:50]!r}; send it as it is, "
            "without that header",
        )


def decode(raw: bytes, kind: Any, request: Request) -> Any:
    """A JSON body as a type of msgspec's.

    Raises:
        Refusal: 415 it is said to be something else; 400 it is no JSON, or (422) none of this type.
    """
    content = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if content.lower() != "application/json":
        raise Refusal(415, f"the content type is {content[:50]!r}; expected application/json")
    return parse(raw, kind)


def parse(raw: bytes | memoryview, kind: Any) -> Any:
    """JSON, whatever content type a client says it is, or nothing.

    Raises:
        Refusal: 400 it is no JSON, or (422) none of this type.
    """
    try:
        if isinstance(kind, Mapping):
            kind = _told(msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), kind)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise Refusal(422, f"the body: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from None
    except UnicodeDecodeError:
        raise Refusal(400, "the body is not UTF-8") from None


def _told(fields: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
    told = [name for name in kinds if name in fields]
    if len(told) != 1:
        raise Refusal(
            422,
            f"the body has {' and '.join(map(repr, told)) or 'none of the fields it is known by'}; "
            f"expected one of {', '.join(map(repr, kinds))}",
        )
    return kinds[told[0]]
