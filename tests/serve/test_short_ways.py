"""What a request is spared on its way: layers, writes, waits. Nothing else may come of it."""

from __future__ import annotations

import re
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
from starlette.requests import Request

from bertrt.serve.cache import Cache
from bertrt.serve.endpoint import Call, request_id
from bertrt.serve.http import _Answer


def test_head_and_body_are_one_write() -> None:
    transport = Mock(is_closing=lambda: False)
    answer = _Answer(transport)
    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.method_calls == [call.write(b"HTTP/1.1 100 Continue\r\n\r\n")]
    transport.reset_mock()
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert not transport.method_calls
    answer.write(b"a body")
    answer.write(b"and more of it")
    assert transport.method_calls == [
        call.writelines([b"HTTP/1.1 200 OK\r\n\r\n", b"a body"]),
        call.write(b"and more of it"),
    ]


def test_a_head_that_nothing_follows() -> None:
    """An answer that fails behind its head closes the connection, and the client sees the head."""
    transport = Mock(is_closing=lambda: False)
    answer = _Answer(transport)
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    answer.close()
    answer.close()
    assert transport.method_calls == [
        call.writelines([b"HTTP/1.1 200 OK\r\n\r\n", b""]),
        call.close(),
        call.close(),
    ]


def test_an_answer_to_a_client_that_has_gone() -> None:
    """uvicorn tells only the last of several requests of a connection that it is closed."""
    transport = Mock(is_closing=lambda: True)
    answer = _Answer(transport)
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    answer.write(b"{}")
    assert transport.method_calls == []


def exchange(server: Any, sent: bytes) -> bytes:
    """What comes for these bytes, until the connection is closed."""
    found = b""
    with server.socket() as connection:
        connection.sendall(sent)
        while data := connection.recv(1 << 16):
            found += data
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        (b"GET", b"/health/live", b"200"),
        (b"HEAD", b"/health/live", b"200"),
        (b"GET", b"/health/live?a=b", b"200"),
        (b"PUT", b"/health/live", b"405"),
        (b"GET", b"/nowhere", b"404"),
        (b"GET", b"/v1/models/embedder", b"200"),
        (b"GET", b"/v1/models/none", b"404"),
    ],
)
def test_paths_with_and_without_a_name(server: Any, method: bytes, path: bytes, status: bytes):
    found = exchange(
        server, b"%s %s HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % (method, path)
    )
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %s " % status)
    (length,) = re.findall(rb"\r\ncontent-length: (\d+)", head)
    assert len(body) == (0 if method == b"HEAD" else int(length))


def test_requests_in_a_row_on_one_connection(server: Any) -> None:
    """Sent at once, before any is answered."""
    one = b"%s /health/live HTTP/1.1\r\nhost: a\r\n%s\r\n"
    sent = one % (b"GET", b"") + one % (b"HEAD", b"") + one % (b"GET", b"connection: close\r\n")
    found = exchange(server, sent)
    assert found.count(b"HTTP/1.1 200 ") == 3
    assert found.count(b"content-length: ") == 3
    *_, last = found.split(b"\r\n\r\n")
    # An answer to HEAD has no body.
    assert last and found.count(last) == 2


def test_of_equal_headers_the_first_counts() -> None:
    headers = [(b"x-model", b"one"), (b"x-priority", b"1\xe9"), (b"x-model", b"two")]
    head = Call(Mock(), Request({"type": "http", "headers": headers}))
    assert head.header("x-model") == "one"
    assert head.header("x-priority") == "1é"
    assert head.header("x-timeout") is None


def test_ids_of_requests() -> None:
    made = {request_id(None) for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert request_id("mine-1") == "mine-1"
    assert request_id("not mine") not in ("not mine", *made)


def test_a_cache_that_keeps_nothing() -> None:
    cache = Cache(0)
    cache.put("key", np.zeros(3))
    assert cache.get("key") is None
    assert cache.bytes == len(cache) == 0


def test_a_vector_whose_length_is_beyond_float32_is_no_zeros() -> None:
    from bertrt.serve.protocols.vectors import normalize, shorten
    from bertrt.serve.refusals import Refusal

    np.testing.assert_allclose(normalize(np.float32([3e18, 4e18])), [0.6, 0.8], rtol=1e-6)
    for found in (lambda v: normalize(v), lambda v: shorten(v, 2)):
        with pytest.raises(Refusal, match="not finite") as told:
            found(np.float32([1e20, 1e20, 1]))
        assert told.value.status == 500
