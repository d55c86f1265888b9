"""``bertrt serve``: models behind HTTP and gRPC."""

from __future__ import annotations

import argparse
import os
import ssl
from pathlib import Path
from typing import Any

from bertrt.commands.options import add_engine, bound, port_number, positive, size
from bertrt.errors import InvalidInputError, MissingDependencyError, MissingFileError

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to the parser's, which `commands` are (see argparse's add_subparsers)."""
    parser = commands.add_parser("serve", help="models behind HTTP and gRPC; needs the extra serve")
    parser.add_argument(
        "models",
        metavar="[NAME=]MODEL",
        nargs="*",
        help="a bundle or what else predict takes; NAME: what requests call it, default: the "
        "path's last part",
    )
    parser.add_argument(
        "--repository",
        metavar="DIR",
        help="a directory of models, which may be loaded by their names while it serves",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument(
        "--port", type=port_number, default=8000, metavar="N", help="default: 8000; 0: any"
    )
    parser.add_argument(
        "--grpc-port", type=port_number, metavar="N", help="default: no gRPC; 0: any"
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        metavar="N",
        help="of a batch; default: what suits the engine: 4096, or 512 a thread if that is less; "
        "16384 on a GPU",
    )
    parser.add_argument(
        "--queue",
        type=positive,
        default=8192,
        metavar="N",
        help="inputs of a model that may wait; beyond them 429; default: 8192",
    )
    parser.add_argument(
        "--wait-seconds",
        type=bound,
        default=10.0,
        metavar="S",
        help="what a request may wait; where it would be longer, 429 at once; default: 10",
    )
    parser.add_argument(
        "--max-body", type=size, default=16 << 20, metavar="SIZE", help="default: 16M"
    )
    parser.add_argument(
        "--max-inputs", type=positive, default=2048, metavar="N", help="of a request; default: 2048"
    )
    parser.add_argument(
        "--body-seconds",
        type=bound,
        default=30.0,
        metavar="S",
        help="by when a request's body has to be there; default: 30",
    )
    parser.add_argument(
        "--cache-mb",
        type=bound,
        default=64.0,
        metavar="MB",
        help="memory of a model's answers that are kept; 0: none; default: 64",
    )
    parser.add_argument(
        "--no-truncate",
        action="store_true",
        help="refuse a text that is longer than the model, where a request does not say",
    )
    parser.add_argument(
        "--drain-seconds",
        type=bound,
        default=30.0,
        metavar="S",
        help="for requests under way when it is asked to stop; default: 30",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="a key that requests have to bring, one of those given; default: those of "
        "BERTRT_API_KEYS, apart by commas, which other users of the machine cannot see",
    )
    tls = parser.add_argument_group("TLS, as uvicorn has it")
    tls.add_argument("--ssl-certfile", metavar="FILE")
    tls.add_argument("--ssl-keyfile", metavar="FILE")
    tls.add_argument("--ssl-keyfile-password", metavar="TEXT")
    tls.add_argument("--ssl-ca-certs", metavar="FILE", help="clients have to have one of these")
    add_engine(parser, "native")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    try:
        from bertrt.serve.server import serve

        if arguments.grpc_port is not None:
            import bertrt.serve.protocols.inference_grpc  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"bertrt serve needs the package {error.name}, which is not installed: "
            "pip install 'bertrt[serve]'"
        ) from error
    from bertrt.serve.settings import Settings

    settings = Settings(
        models=_named(arguments.models, arguments.repository),
        engine={
            "backend": arguments.backend,
            "device": arguments.device,
            "precision": arguments.precision,
            "threads": arguments.threads,
        },
        repository=None if arguments.repository is None else Path(arguments.repository),
        tokens=arguments.tokens,
        queue=arguments.queue,
        wait_seconds=arguments.wait_seconds,
        max_body=arguments.max_body,
        max_inputs=arguments.max_inputs,
        body_seconds=arguments.body_seconds,
        drain_seconds=arguments.drain_seconds,
        cache_bytes=round(arguments.cache_mb * (1 << 20)),
        api_keys=_keys(arguments.api_key, os.environ.get("BERTRT_API_KEYS")),
        auto_truncate=not arguments.no_truncate,
    )
    tls = {
        name: value
        for name, value in vars(arguments).items()
        if name.startswith("ssl_") and value is not None
    }
    if "ssl_ca_certs" in tls:
        tls["ssl_cert_reqs"] = ssl.CERT_REQUIRED
    if arguments.grpc_port is not None and "ssl_keyfile_password" in tls:
        raise InvalidInputError(
            "gRPC takes no key with a password: give one without, or leave --grpc-port out"
        )
    return serve(settings, arguments.host, arguments.port, grpc_port=arguments.grpc_port, tls=tls)


def _keys(given: list[str] | None, environment: str | None) -> tuple[str, ...]:
    """The keys; none only where nobody has said any."""
    if given is None and environment is None:
        return ()
    if given is None:
        where, found = "BERTRT_API_KEYS", (environment or "").split(",")
    else:
        where, found = "--api-key", given
    keys = tuple(key.strip() for key in found if key.strip())
    # A door would be left open where somebody thinks that it is locked.
    if not keys:
        raise InvalidInputError(f"{where} holds no key; leave it out where none is to be asked for")
    # Clients write headers in ASCII, each its own way beyond.
    if not all(key.isascii() and key.isprintable() for key in keys):
        raise InvalidInputError(f"{where} holds a key with other characters than printable ASCII")
    return keys


def _named(models: list[str], repository: str | None) -> dict[str, Path]:
    """Each model's place by its name."""
    from bertrt.serve.settings import NAME

    found: dict[str, Path] = {}
    for given in models:
        name, equals, path = given.partition("=")
        if not equals or os.path.exists(given):
            name, path = os.path.basename(os.path.abspath(given)), given
        if not NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r} cannot be a model's name, which has letters, digits and . + - _ only; "
                "give it one: NAME=PATH"
            )
        if name in found:
            raise InvalidInputError(
                f"two models have the name {name!r}; give one of them another: NAME=PATH"
            )
        found[name] = Path(path)
    if repository is not None and not os.path.isdir(repository):
        raise MissingFileError(f"{repository}: there is no such directory")
    if not found and repository is None:
        raise InvalidInputError("there is nothing to serve; give a MODEL, or --repository DIR")
    return found
