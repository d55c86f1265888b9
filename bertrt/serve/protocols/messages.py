"""Messages of gRPC, made of a .proto file when it is asked for.

What protoc generates is tied to a range of versions of protobuf; a descriptor that is made here
works with all that can read one. The messages are in a pool of their own: other libraries of a
process may have some of the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["Protocol", "read_protocol"]

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_FIELD, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}
_NAME = re.compile(r"[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Protocol:
    """What a .proto file says.

    Attributes:
        service: the full name of its service.
        calls: the classes of request and response of each of the service's methods.
        messages: the class of each of its messages, by its name.
    """

    service: str
    calls: dict[str, tuple[Any, Any]]
    messages: dict[str, Any]


def read_protocol(path: Path) -> Protocol:
    """Read a file of one package with one service, in the part of proto3 that `_Parser` knows."""
    parser = _Parser(path.read_text(encoding="utf-8"))
    file = parser.file(path.name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    messages = {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for message in file.message_type
    }
    return Protocol(
        f"{file.package}.{parser.service}",
        {name: (messages[one], messages[other]) for name, one, other in parser.calls},
        messages,
    )


class _Parser:
    """Messages within messages, enums, oneofs, maps from strings, and methods without streams."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//.*", "", text)
        self._tokens = re.findall(r'"[^"]*"|[\w.]+|[^\w\s]', text)[::-1]
        self.service = ""
        self.calls: list[tuple[str, str, str]] = []

    def _take(self, expected: str | None = None) -> str:
        token = self._tokens.pop()
        if expected is not None and token != expected:
            raise ValueError(f"expected {expected!r}, found {token!r}")
        return token

    def _skip(self, *expected: str) -> None:
        for token in expected:
            self._take(token)

    def file(self, name: str) -> Any:
        """The file's descriptor."""
        file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3")
        while self._tokens:
            match self._take():
                case "syntax":
                    self._skip("=", '"proto3"', ";")
                case "package":
                    file.package = self._take()
                    self._skip(";")
                case "message":
                    self._message(file.message_type.add())
                case "enum":
                    self._enum(file.enum_type.add())
                case "service":
                    self._service()
                case other:
                    raise ValueError(f"expected a message, an enum or a service, found {other!r}")
        for message in file.message_type:
            _resolve(message, f".{file.package}", file)
        return file

    def _service(self) -> None:
        self.service = self._take()
        self._take("{")
        while self._take() == "rpc":
            name = self._take()
            self._take("(")
            request = self._take()
            self._skip(")", "returns", "(")
            self.calls.append((name, request, self._take()))
            self._skip(")", "{", "}")

    def _enum(self, enum: Any) -> None:
        enum.name = self._take()
        self._take("{")
        while (name := self._take()) != "}":
            self._take("=")
            enum.value.add(name=name, number=int(self._take()))
            self._take(";")

    def _message(self, message: Any) -> None:
        message.name = self._take()
        self._take("{")
        while (token := self._take()) != "}":
            if token == "message":
                self._message(message.nested_type.add())
            elif token == "enum":
                self._enum(message.enum_type.add())
            elif token == "oneof":
                message.oneof_decl.add(name=self._take())
                self._take("{")
                while (token := self._take()) != "}":
                    self._field(message, token).oneof_index = len(message.oneof_decl) - 1
            elif token == "map":
                self._skip("<", "string", ",")
                self._map(message)
            elif token == "repeated":
                self._field(message, self._take()).label = _FIELD.LABEL_REPEATED
            else:
                self._field(message, token)

    def _field(self, message: Any, kind: str) -> Any:
        if not _NAME.fullmatch(kind):
            raise ValueError(f"expected a field of {message.name}, found {kind!r}")
        field = message.field.add(name=self._take(), label=_FIELD.LABEL_OPTIONAL)
        self._take("=")
        field.number = int(self._take())
        self._take(";")
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type_name = kind
        return field

    def _map(self, message: Any) -> None:
        """A map is a list of entries, which are messages of a key and a value."""
        kind = self._take()
        self._take(">")
        name = self._tokens[-1]
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        self._field(message, entry).label = _FIELD.LABEL_REPEATED
        made = message.nested_type.add(name=entry)
        made.options.map_entry = True
        optional = _FIELD.LABEL_OPTIONAL
        made.field.add(name="key", number=1, label=optional, type=_FIELD.TYPE_STRING)
        made.field.add(name="value", number=2, label=optional, type_name=kind)


def _resolve(message: Any, scope: str, file: Any) -> None:
    """Give each field the full name of its type: that of the message, or else that of the file."""
    own = f"{scope}.{message.name}"
    nested = {inner.name for inner in message.nested_type}
    enums = {inner.name for inner in message.enum_type}
    for field in message.field:
        name = field.type_name
        if not name:
            continue
        inside = name in nested | enums
        is_enum = name in enums or (not inside and name in {enum.name for enum in file.enum_type})
        field.type = _FIELD.TYPE_ENUM if is_enum else _FIELD.TYPE_MESSAGE
        field.type_name = f"{own if inside else f'.{file.package}'}.{name}"
    for inner in message.nested_type:
        _resolve(inner, own, file)
