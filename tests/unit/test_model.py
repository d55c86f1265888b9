"""What lies at a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertrt.errors import (
    InvalidInputError,
    InvalidTypeError,
    MissingFileError,
    ModelFormatError,
)
from bertrt.models import manifest
from bertrt.models.model import Model


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("nothing", "nothing-symbol.json", "nothing.onnx"):
        with pytest.raises(MissingFileError, match="no such file or directory"):
            Model.open(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (None, InvalidTypeError, "path is a NoneType; expected a str"),
        (3, InvalidTypeError, "path is a int"),
        (b"model", InvalidTypeError, "path is a bytes"),
        ("", InvalidInputError, "path is ''"),
        ("a\0b", InvalidInputError, "cannot be the path of a file"),
        ("a\ud800", InvalidInputError, "cannot be the path of a file"),
    ],
)
def test_what_cannot_be_a_path(path: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Model.open(path)


def test_directory_of_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"neither a bundle, .* bertrt\.json, nor a Hugging"):
        Model.open(tmp_path)


@pytest.mark.parametrize("name", ["model.params", "model.safetensors", "symbol.json", "model"])
def test_file_of_another_kind(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"content")
    with pytest.raises(ModelFormatError, match="is no model: expected a bundle's directory"):
        Model.open(path)


def test_symbol_without_parameters(tmp_path: Path) -> None:
    path = tmp_path / "net-symbol.json"
    path.write_text("{}")
    with pytest.raises(MissingFileError, match=r"net-0000\.params, are not beside it"):
        Model.open(path)


def test_bare_symbol(tmp_path: Path, monkeypatch) -> None:
    """Relative paths are made absolute, for pickles; the graph is not read before it is needed."""
    (tmp_path / "net-symbol.json").write_text("{}")
    (tmp_path / "net-0000.params").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    model = Model.open("net-symbol.json")
    assert model.path == model.symbol_path == tmp_path / "net-symbol.json"
    assert model.params_path == tmp_path / "net-0000.params"
    assert model.onnx_path is None and model.task is None and model.tokenizer is None
    assert model.golden() == []
    with pytest.raises(ModelFormatError, match="net-"):
        model.plan()


def test_bare_onnx(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    model = Model.open(tmp_path / "net.onnx")
    assert model.onnx_path == tmp_path / "net.onnx"
    assert model.symbol_path is None and model.params_path is None


def test_broken_bundle(tmp_path: Path) -> None:
    (tmp_path / manifest.MANIFEST).write_text("{}")
    with pytest.raises(ModelFormatError, match=r"bertrt\.json"):
        Model.open(tmp_path)
