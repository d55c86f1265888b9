"""Directories with ONNX files, as exporters for Hugging Face models leave them: which file is
meant, and where the configuration and the tokenizer of a file lie."""

from __future__ import annotations

from pathlib import Path

from bertrt.errors import ModelFormatError

__all__ = ["find_onnx", "home_of"]

_FILE = "model.onnx"
# A folder for the ONNX files of a directory that has others beside.
_FOLDER = "onnx"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def find_onnx(directory: Path) -> Path | None:
    """The ONNX file that stands for a directory: ``model.onnx``, else ``onnx/model.onnx``, else the
    only one in the directory, else the only one in ``onnx``. None where there is no ONNX file, and
    where there are weights of another kind, which are the model then.

    Raises ModelFormatError where it could be one of several.
    """
    if any(True for pattern in _WEIGHTS for _ in directory.glob(pattern)):
        return None
    folders = (directory, directory / _FOLDER)
    for folder in folders:
        if (folder / _FILE).is_file():
            return folder / _FILE
    for folder in folders:
        files = sorted(folder.glob("*.onnx"))
        if len(files) > 1:
            raise ModelFormatError(
                f"{folder} holds several ONNX files ({', '.join(f.name for f in files)}) and no "
                f"{_FILE}: give the path of one of them"
            )
        if files:
            return files[0]
    return None


def home_of(file: Path) -> Path | None:
    """Where the ``config.json`` and the tokenizer of an ONNX file lie: beside it, or, of a file in
    a folder ``onnx``, in the directory above. None where that has not both."""
    folders = [file.parent]
    if file.parent.resolve().name == _FOLDER:
        folders.append(file.parent.parent)
    for folder in folders:
        tokenizer = any(True for pattern in _TOKENIZERS for _ in folder.glob(pattern))
        if tokenizer and (folder / "config.json").is_file():
            return folder
    return None
