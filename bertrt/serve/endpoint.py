"""An endpoint: what every request goes through, whatever its protocol.

A request is named, let in or not, read, decoded, handed to its protocol's function, answered in its
protocol's words, counted and logged; here and nowhere else. A client that goes away cancels it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bertrt.errors import BertrtError
from bertrt.serve import tracing
from bertrt.serve.bodies import check_coding, decode
from bertrt.serve.crowd import Crowd
from bertrt.serve.logs import log
from bertrt.serve.metrics import Metrics
from bertrt.serve.models import Models
from bertrt.serve.refusals import Refusal, refusal_of
from bertrt.serve.served import Answered, Served
from bertrt.serve.settings import Settings
from bertrt.serve.statistics import Recent

__all__ = [
    "CONNECTION",
    "Call",
    "Endpoint",
    "State",
    "json_response",
    "let_in",
    "request_id",
    "tell",
]

# What nginx logs for a client that did not wait; nobody gets it.
_GONE = 499
# Where a scope has the connection, if that tells itself when its client goes; see `_unless_gone`.
CONNECTION = "bertrt.connection"
# Bodies of so many requests of the greatest size may be in memory at a time.
_BODIES = 16
# Of a body that is refused so many bytes are read and dropped, so that its client, which may not
# listen before it has sent all, gets the answer: closing a socket with unread bytes resets it.
_DROPPED = 1 << 30
# An id of a request: when the process began, and a number.
_BEGAN, _NUMBERS = time.time_ns(), itertools.count()


class State:
    """What a server's requests share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics(lambda: self.models.served())
        self.models = Models(settings, self.metrics)
        self.recent = Recent()
        self.draining = False
        self.crowd = Crowd(self.models, settings.wait_seconds)
        self.under_way = 0
        self.body_bytes = 0
        # By connection, those that wait longest first: bytes of answers that nobody has taken yet.
        self.untaken: dict[Any, int] = {}
        self._keys = [key.encode() for key in settings.api_keys]

    @property
    def ready(self) -> bool:
        """Whether requests may be sent here: every model is warm, and the server is to stay."""
        return self.models.ready and not self.draining

    def check_room(self) -> None:
        """Refuse a body where too much of others' is in memory."""
        if self.body_bytes > _BODIES * self.settings.max_body:
            raise Refusal(429, "too many bodies are being read", retry_after=1)

    def lets_in(self, key: bytes) -> bool:
        """Whether a key is one of those that were set; every one is compared, in constant time."""
        same = [hmac.compare_digest(key, own) for own in self._keys]
        return not same or any(same)


@dataclass(eq=False)
class Call:
    """One request, as a protocol's function has it.

    Attributes:
        state: the server's.
        request: the head: method, path, `path_params`, `query_params`, `headers`.
        body: decoded, where the endpoint has a type for it; else the bytes.
        id: the request's id, the client's own X-Request-Id or a new one.
        headers: what goes with the answer; a function may add to it.
        fields: what the log says of it beside status and time; never texts.
        unread: whether the client may still be sending the body.
        held: bytes of the body that are in memory.
        started: when it came, by `time.perf_counter`.
    """

    state: State
    request: Request
    body: Any = b""
    id: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    unread: bool = False
    held: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        # Of several headers of a name the first one counts.
        self._sent = dict(reversed(self.request.scope["headers"]))

    async def answer(
        self,
        inputs: Sequence[Any],
        *,
        model: str | None = None,
        tasks: Sequence[str] | None = None,
        prompt: str | None = None,
        priority: int | None = None,
        deadline: float | None = None,
        truncate: bool | None = None,
        truncation_side: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Answered:
        """Answer inputs: `Served.answer` of the model that is asked for.

        Args:
            inputs: texts, pairs (tuples), lists of words or `Encoding`.
            model: the model's name; None: the header X-Model, or else the first one that has one of
                the tasks.
            tasks: the tasks that the route answers; None: any.
            prompt: see `Engine.predict`.
            priority, deadline: see `Engine.submit`; None: what the headers X-Priority and X-Timeout
                (seconds) say.
            truncate: whether what is longer than the model is cut, or else refused; None: as the
                server is set up.
            truncation_side: the side that may lose tokens, "left" or "right"; None: the model's own
                one.
            settings: what is to be other than the model's own; see `Engine.with_settings`.

        Raises:
            Refusal: for the request as a whole. What is wrong with an input is in its place.
        """
        self.check_count(inputs)
        with self.use(model, tasks) as served:
            self.fields |= {"model": served.name, "inputs": len(inputs)}
            if settings is not None:
                served = served.with_settings(settings)
            with tracing.span("bertrt.answer", model=served.name, inputs=len(inputs)) as span:
                answered = await served.answer(
                    inputs,
                    prompt=prompt,
                    priority=self._priority() if priority is None else priority,
                    deadline=self._deadline() if deadline is None else deadline,
                )
                tracing.stages(span, answered)
            if reason := self.uncut(served, truncate, truncation_side):
                answered = replace(
                    answered,
                    results=[
                        Refusal(422, f"input[{i}] {reason}")
                        if getattr(result, "truncated", False)
                        else result
                        for i, result in enumerate(answered.results)
                    ],
                )
        self.count(answered)
        return answered

    def count(self, answered: Answered) -> None:
        """Have the log and the page tell what it took; beside what was told before."""
        for name, value in (
            ("tokens", sum(answered.tokens)),
            ("cached", answered.cached),
            ("queue_ms", round(answered.queue * 1e3, 3)),
            ("execute_ms", round(answered.execute * 1e3, 3)),
        ):
            self.fields[name] = self.fields.get(name, 0) + value

    def check_count(self, inputs: Sequence[Any]) -> None:
        """Refuse no input, and too many."""
        if not inputs:
            raise Refusal(400, "there is no input; expected one or more")
        most = self.state.settings.max_inputs
        if len(inputs) > most:
            raise Refusal(413, f"there are {len(inputs)} inputs; at most {most} are taken at once")

    def use(
        self, model: str | None, tasks: Sequence[str] | None = None
    ) -> AbstractContextManager[Served]:
        """A model: `Models.use`, where the header X-Model says which unless `model` does."""
        return self.state.models.use(self.header("x-model") if model is None else model, tasks)

    def header(self, name: str) -> str | None:
        """The value of a header, named in small letters; None where it is not there."""
        found = self._sent.get(name.encode())
        return None if found is None else found.decode("latin-1")

    def uncut(
        self, served: Served, truncate: bool | None, truncation_side: str | None
    ) -> str | None:
        """Why no text may be cut, to go behind "input[0]"; None: it may. For the arguments see
        `answer`."""
        engine = served.engine
        most = f"has more tokens than the {engine.max_length} that the model takes"
        if not (self.state.settings.auto_truncate if truncate is None else truncate):
            return f"{most}: shorten it, or ask for it to be cut (truncate: true)"
        own = "right" if engine.tokenizer is None else engine.tokenizer.truncation_side
        if truncation_side is not None and truncation_side != own:
            return f"{most}, which cuts texts on their {own} side only: shorten it"
        return None

    def _priority(self) -> int:
        said = self.header("x-priority")
        if said is None:
            return 0
        if not re.fullmatch(r"[+-]?\d{1,6}", said, re.ASCII):
            raise Refusal(400, f"the header X-Priority is {said[:50]!r}; expected a whole number")
        return int(said)

    def _deadline(self) -> float | None:
        said = self.header("x-timeout")
        if said is None:
            return None
        if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?", said, re.ASCII):
            raise Refusal(400, f"the header X-Timeout is {said[:50]!r}; expected seconds, as 0.5")
        return float(said)


Handle = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, eq=False)
class Endpoint:
    """An ASGI application for one path.

    Attributes:
        path: as Starlette writes it, "/v2/models/{model}".
        handle: answers it.
        refuse: how the protocol tells a refusal.
        method: GET or POST.
        body: the type that msgspec makes of a JSON body; None: the body as bytes; or types by the
            field that tells which of them a body is of.
        answers: the type of the answer's body, for the API's description; None: not JSON.
        summary: a sentence for the API's description.
        tag: the protocol's name there; "": it is left out there.
        open: whether it is answered without a key, while models load and while the server drains.
        quiet: whether its requests are left out of the log; those of an open one are.
    """

    path: str
    handle: Handle
    refuse: Callable[[Refusal], Response]
    method: str = "POST"
    body: Any = None
    answers: Any = None
    summary: str = ""
    tag: str = ""
    open: bool = False
    quiet: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: State = scope["app"].state.bertrt
        call = Call(state, Request(scope))
        call.id = request_id(call.header("x-request-id"))
        state.under_way += 1
        status = _GONE
        try:
            with tracing.request(call.request, self.path):
                response = await self._answer(call, receive)
                if response is not None:
                    response.raw_headers.append((b"x-request-id", call.id.encode()))
                    if state.draining:
                        # Whoever asks again asks elsewhere, and finds no closed connection.
                        response.headers["connection"] = "close"
                    for name, value in call.headers.items():
                        response.headers[name] = value
                    status = response.status_code
                    tracing.answered(status)
                    if not call.unread:
                        await response(scope, receive, send)
                    else:
                        await response(scope, receive, _without_end(send))
                        await _drop(receive, state.settings.body_seconds)
                        await send({"type": "http.response.body"})
        finally:
            state.under_way -= 1
            tell(call, self.path, status, quiet=self.open or self.quiet)

    async def _answer(self, call: Call, receive: Receive) -> Response | None:
        """The response; None where nobody is left to get it."""
        state = call.state
        try:
            call.unread = self.method != "GET"
            if not self.open:
                let_in(call)
            if self.method != "GET":
                check_coding(call.request)
                raw = await _read(call, receive)
                call.body = raw if self.body is None else decode(raw, self.body, call.request)
                del raw
            return await _unless_gone(self.handle(call), call.request.scope, receive)
        except _GoneError:
            return None
        except BertrtError as error:
            refusal = refusal_of(error)
            call.fields["error"] = type(error.__cause__ or error).__name__
            return self._refuse(refusal)
        except Exception as error:
            # Its message may hold what was sent.
            log("fault", logging.ERROR, id=call.id, route=self.path, error=error)
            return self._refuse(Refusal(500, f"a fault of the server; request {call.id}"))
        finally:
            state.body_bytes -= call.held
            call.held = 0

    def _refuse(self, refusal: Refusal) -> Response:
        response = self.refuse(refusal)
        for name, value in refusal.headers.items():
            response.headers[name] = value
        return response


def let_in(call: Call) -> None:
    """Refuse a request without a key, or (503) that comes while the server drains."""
    # TEI's clients and OpenAI's send it so; some proxies leave a header of its own alone.
    scheme, _, key = (call.header("authorization") or "").partition(" ")
    if scheme.lower() != "bearer":
        key = call.header("x-api-key") or call.header("api-key") or ""
    if not call.state.lets_in(key.strip().encode()):
        raise Refusal(401, "the API key is missing or wrong; expected 'Authorization: Bearer KEY'")
    if call.state.draining:
        raise Refusal(503, "the server is about to stop", retry_after=1)


def tell(call: Call, route: str, status: int | str, *, quiet: bool = False) -> None:
    """Count a request and, unless it is a quiet one, log it."""
    seconds = time.perf_counter() - call.started
    call.state.metrics.answered(route, status, seconds)
    # Where inputs were answered, or could not be: then the model is one that there is.
    if "inputs" in call.fields and (model := call.fields.get("model")) is not None:
        call.state.recent.add(model, seconds, status in (200, "OK"), call.fields)
    if not quiet:
        head = call.request
        log(
            "request",
            id=call.id,
            method=head.method,
            route=route,
            status=status,
            ms=round(seconds * 1e3, 3),
            client=head.client.host if head.client else None,
            **call.fields,
        )


class _GoneError(Exception):
    """The client closed the connection."""


if sys.version_info >= (3, 11):

    async def _within(answer: Awaitable[bytes], seconds: float) -> bytes:
        """`asyncio.wait_for`, which makes a task before Python 3.12."""
        async with asyncio.timeout(seconds):
            return await answer

else:
    _within = asyncio.wait_for


async def _read(call: Call, receive: Receive) -> bytes:
    settings, state = call.state.settings, call.state
    most = settings.max_body
    refusal = Refusal(413, f"the body has more than {most} bytes, which are the most that is taken")
    said = call.header("content-length")
    if said is not None and said.isdecimal() and int(said) > most:
        raise refusal
    state.check_room()

    async def parts() -> bytes:
        found: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            found.append(part := message.get("body", b""))
            more = message.get("more_body", False)
            call.held += len(part)
            state.body_bytes += len(part)
            state.check_room()
            if (size := size + len(part)) > most:
                raise refusal
        return b"".join(found)

    try:
        body = await _within(parts(), settings.body_seconds)
        call.unread = False
        return body
    except asyncio.TimeoutError:
        call.unread = False
        raise Refusal(
            408, f"the body did not come within {settings.body_seconds:g} seconds"
        ) from None


def _without_end(send: Send) -> Send:
    """Sends a response, and not that it is its end, where uvicorn closes the connection."""

    async def send_on(message: Message) -> None:
        whole = message["type"] == "http.response.body"
        await send({**message, "more_body": True} if whole else message)

    return send_on


async def _drop(receive: Receive, seconds: float) -> None:
    """Read what is left of a body."""

    async def parts() -> None:
        size, more = 0, True
        while more and size < _DROPPED:
            message = await receive()
            more = message.get("more_body", False)
            size += len(message.get("body", b""))

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(parts(), seconds)


async def _unless_gone(answer: Awaitable[Response], scope: Scope, receive: Receive) -> Response:
    """The answer; cancels it and raises _GoneError when the client goes first."""
    own, under_way, gone = asyncio.current_task(), True, False
    assert own is not None

    def leave() -> None:
        nonlocal gone
        if under_way:
            gone = True
            own.cancel()

    # A task that waits for ASGI's word takes a tenth of all that a request does.
    connection = scope.get(CONNECTION)
    if connection is None:
        waits = asyncio.ensure_future(_disconnected(receive))
        waits.add_done_callback(lambda _: leave())
    else:
        connection.when_gone(leave)
    try:
        return await answer
    except asyncio.CancelledError:
        if gone:
            raise _GoneError from None
        raise
    finally:
        under_way = False
        if connection is None:
            waits.cancel()
        else:
            connection.when_gone(None)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def request_id(said: str | None) -> str:
    """The id that a client gave its request, where it can stand in a log; else a new one."""
    own = f"{_BEGAN:016x}{next(_NUMBERS):016x}"
    return said if said and re.fullmatch(r"[\w.:/+=-]{1,128}", said, re.ASCII) else own


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response of JSON; arrays of numpy's, which have to lie in one piece, are lists there."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS),
        status,
        dict(headers or {}),
        media_type="application/json",
    )
