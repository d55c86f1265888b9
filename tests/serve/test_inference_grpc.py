"""The Open Inference Protocol over gRPC, by grpc alone."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
Code = grpc.StatusCode


def request(stub, model: str, *texts: str, raw: bool = True, **fields):
    made = stub.messages["ModelInferRequest"](model_name=model, **fields)
    own = made.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    values = [text.encode() for text in texts]
    if raw:
        made.raw_input_contents.append(b"".join(struct.pack("<I", len(v)) + v for v in values))
    else:
        own.contents.bytes_contents.extend(values)
    return made


def refused(stub, message, *, method: str = "ModelInfer", **more):
    with pytest.raises(grpc.RpcError) as caught:
        stub.method(method)(message, timeout=600, **more)
    return caught.value


def vectors(answer) -> np.ndarray:
    own = answer.outputs[0]
    assert (own.name, own.datatype) == ("embedding", "FP32")
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(tuple(own.shape))


def test_health_and_what_there_is(server, stub) -> None:
    call = stub(server)
    assert call("ServerLive").live and call("ServerReady").ready
    assert (
        call("Check").status == call("Check", service="inference.GRPCInferenceService").status == 1
    )
    assert call("ServerMetadata").name == "bertrt"
    assert call("ModelReady", name="reader").ready
    told = call("ModelMetadata", name="reader", version="1")
    assert [own.name for own in told.outputs][:2] == ["answer", "score"]
    config = call("ModelConfig", name="reader").config
    assert (config.input[0].data_type, list(config.input[0].dims)) == (13, [-1])
    assert call("RepositoryIndex").models[0].name == "embedder"
    assert len(call("ModelStatistics").model_stats) == 5
    for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
        message = call.messages[f"{method}Request"]
        error = refused(call, message(name="nobody"), method=method)
        assert (error.code(), "nobody" in error.details()) == (Code.NOT_FOUND, True)
        assert refused(call, message(name="reader", version="2"), method=method).code() == (
            Code.NOT_FOUND
        )
    check = call.messages["HealthCheckRequest"](service="x")
    assert refused(call, check, method="Check").code() == Code.NOT_FOUND


@pytest.mark.parametrize("raw", [True, False])
def test_texts(server, engines, stub, raw: bool) -> None:
    call = stub(server)
    texts = ["a text", "ünother one"]
    answer = call.method("ModelInfer")(request(call, "embedder", *texts, raw=raw, id="7"))
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "embedder", "1")
    for text, row in zip(texts, vectors(answer), strict=True):
        np.testing.assert_array_equal(row, engines["embedder"].predict(text).vector)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("kind", ["INT32", "INT64"])
def test_ids(server, engines, stub, kind: str, raw: bool) -> None:
    call = stub(server)
    ids = engines["embedder"].tokenize("the sea").ids
    message = call.messages["ModelInferRequest"](model_name="embedder")
    own = message.inputs.add(name="input_ids", datatype=kind, shape=[1, len(ids)])
    if raw:
        message.raw_input_contents.append(ids.astype(kind.lower()).tobytes())
    else:
        field = "int_contents" if kind == "INT32" else "int64_contents"
        getattr(own.contents, field).extend(ids.tolist())
    message.outputs.add(name="embedding")
    message.outputs.add(name="pooled_output")
    answer = call.method("ModelInfer")(message)
    np.testing.assert_array_equal(vectors(answer)[0], engines["embedder"].predict("the sea").vector)
    np.testing.assert_array_equal(
        np.frombuffer(answer.raw_output_contents[1], np.float32),
        engines["embedder"].run(ids[None])["pooled_output"][0],
    )


def test_what_is_refused(server, stub) -> None:
    call = stub(server)
    fine = request(call, "embedder", "a")

    def changed(change) -> bytes:
        message = type(fine)()
        message.CopyFrom(fine)
        change(message)
        return message

    bad = {
        "no name": lambda m: m.ClearField("model_name"),
        "another": lambda m: setattr(m, "model_name", "x"),
        "version": lambda m: setattr(m, "model_version", "x"),
    }
    for change in bad.values():
        assert refused(call, changed(change)).code() == Code.NOT_FOUND
    bad = {
        "raw_input_contents": lambda m: m.raw_input_contents.append(b""),
        "contents": lambda m: m.inputs[0].contents.bytes_contents.append(b"a"),
        "elements": lambda m: m.ClearField("raw_input_contents"),
        "shape": lambda m: m.inputs[0].shape.append(-1),
        "FP8": lambda m: setattr(m.inputs[0], "datatype", "FP8"),
        "bytes": lambda m: setattr(m.inputs[0], "datatype", "INT64"),
        "twice": lambda m: (m.inputs.append(m.inputs[0]), m.raw_input_contents.append(b"")),
        "outputs": lambda m: m.outputs.add(name="x"),
        "shared": lambda m: setattr(
            m.inputs[0].parameters["shared_memory_region"], "string_param", "x"
        ),
        "timeout": lambda m: setattr(m.parameters["timeout"], "string_param", "x"),
        "priority": lambda m: setattr(m.parameters["priority"], "int64_param", -1),
    }
    for name, change in bad.items():
        error = refused(call, changed(change))
        assert error.code() == Code.INVALID_ARGUMENT, (name, error)
    for raw in (b"\xff", b"\x0a\x01\xff"):
        assert refused(call, raw).code() == Code.INVALID_ARGUMENT
    assert refused(call, b"\0" * (17 << 20)).code() == Code.RESOURCE_EXHAUSTED
    bomb = refused(call, b"\0" * (100 << 20), compression=grpc.Compression.Gzip)
    assert bomb.code() == Code.RESOURCE_EXHAUSTED
    stream = call.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        next(stream(iter([b""])))
    assert caught.value.code() == Code.UNIMPLEMENTED


def test_deadlines_and_cancelling(server, stub) -> None:
    call = stub(server)
    late = request(call, "embedder", "too late")
    late.parameters["timeout"].uint64_param = 1
    assert refused(call, late).code() == Code.DEADLINE_EXCEEDED
    many = request(call, "embedder", *(f"text {i} {'sea ' * 200}" for i in range(300)))
    with pytest.raises(grpc.RpcError) as caught:
        call.method("ModelInfer")(many, timeout=0.05)
    assert caught.value.code() == Code.DEADLINE_EXCEEDED


def sample(server, name: str) -> float:
    told = server.get("/metrics")[1].decode()
    return float(next(line.split()[-1] for line in told.splitlines() if line.startswith(name)))


def test_what_is_cancelled_does_not_run(server, stub) -> None:
    call = stub(server)
    before = sample(server, 'bertrt_batch_tokens_sum{model="embedder"}')
    many = request(call, "embedder", *(f"cancel {i} {'sea ' * 230}" for i in range(1000)))
    future = call.method("ModelInfer").future(many)
    while not sample(server, 'bertrt_queue_inputs{model="embedder"}'):
        assert not future.done()
    future.cancel()
    while sample(server, 'bertrt_queue_inputs{model="embedder"}'):
        pass
    # What was left does not stand in the way of others.
    assert call.method("ModelInfer")(request(call, "embedder", "a"), timeout=600).outputs
    assert sample(server, 'bertrt_batch_tokens_sum{model="embedder"}') - before < 200_000


def test_keys_ids_and_lines(start, models, stub) -> None:
    server = start(f"it={models['ranker']}", "--grpc-port", "0", "--api-key", "secret")
    call = stub(server)
    assert call("ServerReady").ready and call("Check").status == 1
    message = request(call, "it", "the boat")
    error = refused(call, message)
    assert error.code() == Code.UNAUTHENTICATED
    head = (("authorization", "Bearer secret"), ("x-request-id", "mine"))
    answer, rpc = call.method("ModelInfer").with_call(message, metadata=head)
    assert answer.outputs
    assert ("x-request-id", "mine") in [(m.key, m.value) for m in rpc.trailing_metadata()]
    assert server.stop() == 0
    route = "/inference.GRPCInferenceService/ModelInfer"
    lines = [own for own in server.log if own.get("route") == route]
    assert [own["status"] for own in lines] == ["UNAUTHENTICATED", "OK"]
    assert (lines[1]["id"], lines[1]["model"], lines[1]["inputs"]) == ("mine", "it", 1)
    assert "the boat" not in str(server.log)


def test_a_message_that_does_not_come(start, models, stub) -> None:
    server = start(
        f"it={models['ranker']}",
        *("--grpc-port", "0", "--body-seconds", "0.3", "--api-key", "secret"),
    )
    call = stub(server)
    slow = call.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    over = threading.Event()

    def nothing():
        over.wait(600)
        yield b""

    for metadata, code in (
        ((("authorization", "Bearer secret"),), Code.INVALID_ARGUMENT),
        # Without a key nothing is waited for.
        ((), Code.UNAUTHENTICATED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            slow(nothing(), timeout=60, metadata=metadata)
        assert caught.value.code() == code
    over.set()
    with pytest.raises(grpc.RpcError) as caught:
        slow(iter(()), timeout=60, metadata=(("authorization", "Bearer secret"),))
    assert caught.value.code() == Code.INVALID_ARGUMENT
    assert server.stop() == 0
    assert not [own for own in server.log if own["event"] == "fault"]


def test_metrics(server, stub) -> None:
    call = stub(server)
    call("ServerMetadata")
    told = server.get("/metrics")[1].decode()
    assert 'route="/inference.GRPCInferenceService/ServerMetadata"' in told


def test_calls_under_way_end(start, models, stub) -> None:
    server = start(f"embedder={models['embedder']}", "--grpc-port", "0", "--drain-seconds", "600")
    call = stub(server)
    many = request(call, "embedder", *(f"text {i} {'sea ' * 50}" for i in range(100)))
    future = call.method("ModelInfer").future(many)
    # The call, and the one for the metrics.
    while not future.done() and b"bertrt_requests_under_way 2.0" not in server.get("/metrics")[1]:
        pass
    server.process.terminate()
    while server.process.poll() is None and "draining" not in [own["event"] for own in server.log]:
        time.sleep(0.001)
    assert refused(call, request(call, "embedder", "a")).code() == Code.UNAVAILABLE
    assert len(vectors(future.result())) == 100
    assert server.process.wait(600) == 0


def never_sent(call, over: threading.Event, count: int) -> list[Any]:
    """Calls whose messages do not come, until it is over."""

    def nothing():
        over.wait()
        yield from ()

    stream = call.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
    return [stream.future(nothing(), timeout=1000) for _ in range(count)]


def test_messages_that_do_not_come_are_few(start, models, stub) -> None:
    """Of others nothing is read until there is a turn, and health has turns of its own."""
    from bertrt.serve.protocols.inference_grpc import _READS

    server = start(f"it={models['ranker']}", "--grpc-port", "0", "--body-seconds", "1000")
    call, over = stub(server), threading.Event()
    idle = never_sent(call, over, _READS)
    message = request(call, "it", "the boat")
    while b"bertrt_requests_under_way 17.0" not in server.get("/metrics")[1]:
        time.sleep(0.01)
    assert call("ServerLive").live
    with pytest.raises(grpc.RpcError) as caught:
        call.method("ModelInfer")(message, timeout=1)
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    for one in idle:
        one.cancel()
    over.set()
    assert call.method("ModelInfer")(message, timeout=600).outputs


def test_a_message_that_has_no_turn(start, models, stub) -> None:
    server = start(f"it={models['ranker']}", "--grpc-port", "0", "--body-seconds", "0.5")
    call, over = stub(server), threading.Event()
    found = never_sent(call, over, 40)
    codes = {one.code() for one in found}
    over.set()
    assert Code.INVALID_ARGUMENT in codes <= {Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED}
    assert call.method("ModelInfer")(request(call, "it", "the boat"), timeout=600).outputs


def test_a_port_that_is_taken(server, models) -> None:
    run = subprocess.run(
        [
            *(sys.executable, "-m", "bertrt", "serve", f"it={models['ranker']}"),
            *("--port", "0", "--grpc-port", str(server.grpc)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and "no port" in run.stderr, run.stderr


@pytest.mark.parametrize("clients", [False, True])
def test_tls(start, models, stub, tmp_path, clients: bool) -> None:
    files = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", files[0], "-out", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    more = ("--ssl-ca-certs", str(files[1])) if clients else ()
    server = start(
        f"it={models['ranker']}",
        *("--grpc-port", "0", "--ssl-keyfile", str(files[0]), "--ssl-certfile", str(files[1])),
        *more,
        ready=False,
    )

    def asked(credentials: object) -> object:
        call = stub(server, grpc.secure_channel(f"localhost:{server.grpc}", credentials))
        return call.method("ServerLive")(b"", timeout=10)

    key, certificate = (path.read_bytes() for path in files)
    unknown = grpc.ssl_channel_credentials(certificate)
    known = grpc.ssl_channel_credentials(certificate, key, certificate)
    assert asked(known).live
    if clients:
        with pytest.raises(grpc.RpcError):
            asked(unknown)
    else:
        assert asked(unknown).live
    with pytest.raises(grpc.RpcError):
        stub(server).method("ServerLive")(b"", timeout=10)


def test_many_at_once_have_the_bits_of_one_alone(server, engines, stub) -> None:
    call = stub(server)
    found: dict[str, np.ndarray] = {}

    def work(number: int) -> None:
        for i in range(5):
            text = f"{number} " * (1 + 7 * number % 40) + str(i % 3)
            answer = call.method("ModelInfer")(request(call, "embedder", text), timeout=600)
            found[text] = vectors(answer)[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32 * 3
    for text, vector in found.items():
        np.testing.assert_array_equal(vector, engines["embedder"].predict(text).vector)
