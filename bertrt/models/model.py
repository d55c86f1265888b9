"""What lies at a path: a bundle, a Hugging Face directory or a bare graph, resolved to what an
engine needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertrt.batch import Limits
from bertrt.errors import (
    BertrtWarning,
    MissingFileError,
    ModelFormatError,
    UnsupportedModelError,
)
from bertrt.host.cached import cached
from bertrt.host.files import is_there, reading
from bertrt.host.paths import check_path
from bertrt.models.bundle import Bundle
from bertrt.models.huggingface.model import HuggingFaceModel, is_huggingface
from bertrt.models.manifest import MANIFEST, ONNX, PARAMS, SYMBOL
from bertrt.models.onnx.directory import find_onnx, home_of
from bertrt.models.settings import shown_settings, with_settings
from bertrt.plan.steps import POSITIONS
from bertrt.tasks.modules import Module
from bertrt.tasks.settings import check_settings
from bertrt.text.encoding import Tokenizer
from bertrt.text.load import load_tokenizer

if TYPE_CHECKING:
    from bertrt.compiler.coverage import Coverage
    from bertrt.models.golden import GoldenCase
    from bertrt.plan.plan import Plan

__all__ = ["Model"]

_SYMBOL_SUFFIX = "-symbol.json"


@dataclass(frozen=True)
class Model:
    """A model as it lies on disk; nothing is loaded into a backend yet.

    Attributes:
        path: the directory, or the graph's file; absolute.
        manifest: the bundle's manifest; None where there is no bundle.
        task: what the model is for; None for a bare graph.
        labels: a classifier's or tagger's labels.
        pooling: an embedding model's pooling, ``{"mode": ..., "normalize": ...}`` and what else is
            not the default. See `bertrt.tasks.settings`.
        modules: what comes behind the pooling.
        settings: what is set for the task; empty for a bare graph. See `bertrt.tasks.settings`.
        tokenizer: None for a bare graph, and for a bundle without one.
        symbol_path, params_path, onnx_path: the graphs' files, None where there are none.
        golden: recorded inputs and outputs, read when called; empty where there is no bundle.
    """

    path: Path
    manifest: Mapping[str, Any] | None
    task: str | None
    labels: list[str] | None
    pooling: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    tokenizer: Tokenizer | None
    symbol_path: Path | None
    params_path: Path | None
    onnx_path: Path | None
    golden: Callable[[], list[GoldenCase]]
    _read_plan: Callable[[], Plan]
    modules: Sequence[Module] = ()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Model:
        """Open a bundle's directory, a Hugging Face directory with weights or an ONNX file, a
        ``*-symbol.json`` with its ``-0000.params`` beside it, or an ``.onnx`` file, with the
        configuration and the tokenizer beside it where they are there.

        Raises:
            MissingFileError: there is nothing at `path`, or a file that belongs to it is missing.
            ModelFormatError: what lies there is none of these, or is broken; or, as
                UnsupportedModelError, a Hugging Face model that bertrt does not run.
            OutOfMemoryError: the system does not give the memory.
            InvalidInputError, InvalidTypeError: `path` cannot be a path.
        """
        with cls.opening(path) as model:
            return model

    @classmethod
    @contextmanager
    def opening(cls, path: str | os.PathLike[str]) -> Iterator[Model]:
        """As `open`, while a bundle's weights are still being checked: see `Bundle.opening`."""
        found = check_path("path", path)
        with reading(found):
            if is_there(found / MANIFEST):
                with Bundle.opening(found) as bundle:
                    yield cls._open_bundle(bundle)
            else:
                yield cls._open_other(found)

    @classmethod
    def _open_other(cls, found: Path) -> Model:
        if not found.exists():
            raise MissingFileError(f"{found}: there is no such file or directory")
        if found.is_dir():
            return cls._open_directory(found)
        if found.name.endswith(_SYMBOL_SUFFIX):
            return cls._open_symbol(found)
        if found.suffix == ".onnx":
            return cls._open_onnx_file(found)
        raise ModelFormatError(
            f"{found} is no model: expected a bundle's directory, a Hugging Face directory, a "
            f"*{_SYMBOL_SUFFIX} file or an .onnx file"
        )

    @classmethod
    def _open_directory(cls, directory: Path) -> Model:
        if (file := find_onnx(directory)) is not None:
            return cls.open_onnx(file, directory)
        if is_huggingface(directory):
            return cls._open_huggingface(directory)
        raise ModelFormatError(
            f"{directory} is neither a bundle, which holds a {MANIFEST}, nor a Hugging Face "
            "directory, which holds a config.json, and it has no ONNX file"
        )

    @classmethod
    def _open_bundle(cls, bundle: Bundle) -> Model:
        manifest, directory = bundle.manifest, bundle.directory
        tokenizer = None
        if manifest["tokenizer"] is not None:
            tokenizer = load_tokenizer(
                manifest["tokenizer"],
                directory,
                vocab_size=manifest["architecture"]["vocab_size"],
            )
        return cls(
            path=directory,
            manifest=manifest,
            task=manifest["task"],
            labels=manifest["labels"],
            pooling=manifest["pooling"],
            settings=check_settings(manifest["settings"], manifest["task"], str(directory)),
            tokenizer=tokenizer,
            symbol_path=bundle.file(SYMBOL),
            params_path=bundle.file(PARAMS),
            onnx_path=bundle.file(ONNX),
            golden=bundle.golden,
            _read_plan=bundle.plan,
            modules=bundle.modules(),
        )

    @classmethod
    def _open_huggingface(cls, directory: Path) -> Model:
        return cls._with_texts(directory, HuggingFaceModel.open(directory))

    @classmethod
    def open_onnx(cls, file: Path, home: Path, task: str | None = None) -> Model:
        """Open an ONNX file with the configuration and the tokenizer of a directory.

        Args:
            file: the file.
            home: the directory, one of Hugging Face's; it needs no weights.
            task: see `HuggingFaceModel.open`.

        Raises: what `open` raises, and InvalidInputError where the model is not for `task`.
        """
        return cls._with_texts(home, _find_texts(file, home, _compile_onnx(file)[0], task), file)

    @classmethod
    def open_bare(cls, file: Path) -> Model:
        """An ONNX file's graph alone, whatever lies beside it."""
        return cls._bare(file, lambda: _compile_onnx(file), onnx_path=file)

    @classmethod
    def _open_onnx_file(cls, file: Path) -> Model:
        home = home_of(file)
        if home is None:
            return cls.open_bare(file)
        compiled = _compile_onnx(file)
        try:
            return cls._with_texts(file, _find_texts(file, home, compiled[0]), file)
        except UnsupportedModelError as error:
            warnings.warn(
                f"{file} is a bare graph, without a task and a tokenizer, because of what lies "
                f"beside it: {error}",
                BertrtWarning,
                stacklevel=2,
            )
            return cls._bare(file, lambda: compiled, onnx_path=file)

    @classmethod
    def _with_texts(
        cls, path: Path, found: HuggingFaceModel, onnx_path: Path | None = None
    ) -> Model:
        return cls(
            path=path,
            manifest=None,
            task=found.task,
            labels=found.labels,
            pooling=found.pooling,
            settings=found.settings,
            tokenizer=found.tokenizer,
            symbol_path=None,
            params_path=None,
            onnx_path=onnx_path,
            golden=list,
            _read_plan=lambda: found.plan,
            modules=found.modules,
        )

    @classmethod
    def _open_symbol(cls, symbol: Path) -> Model:
        params = symbol.with_name(symbol.name.removesuffix(_SYMBOL_SUFFIX) + "-0000.params")
        if not params.is_file():
            raise MissingFileError(f"{symbol}: its parameters, {params.name}, are not beside it")
        return cls._bare(
            symbol, lambda: _compile_symbol(symbol, params), symbol_path=symbol, params_path=params
        )

    @classmethod
    def _bare(
        cls,
        path: Path,
        compiled: Callable[[], tuple[Plan, Coverage]],
        *,
        symbol_path: Path | None = None,
        params_path: Path | None = None,
        onnx_path: Path | None = None,
    ) -> Model:
        return cls(
            path=path,
            manifest=None,
            task=None,
            labels=None,
            pooling=None,
            settings={},
            tokenizer=None,
            symbol_path=symbol_path,
            params_path=params_path,
            onnx_path=onnx_path,
            golden=list,
            _read_plan=lambda: compiled()[0],
        )

    @cached
    def _plan(self) -> Plan:
        return self._read_plan()

    def plan(self) -> Plan:
        """The fused plan: a bundle's own, or made of what lies there, the first time asked.

        Raises:
            ModelFormatError: the plan or graph is broken; UnsupportedModelError, a kind of it,
                where the graph holds something that does not fuse.
            MissingDependencyError: an ONNX file needs the `onnx` package.
        """
        return self._plan

    def coverage(self) -> Coverage | None:
        """How the graph of `symbol_path`, or of `onnx_path`, became fused steps, by compiling it
        now; None for a model without a graph. Raises what `plan` raises."""
        if self.symbol_path is not None and self.params_path is not None:
            return _compile_symbol(self.symbol_path, self.params_path)[1]
        if self.onnx_path is not None:
            return _compile_onnx(self.onnx_path)[1]
        return None

    def with_plan(self, plan: Plan) -> Model:
        """The same model, run by another plan."""
        return replace(self, _read_plan=lambda: plan)

    @property
    def architecture(self) -> Mapping[str, Any]:
        """Hidden size, layers and so on, as the plan holds them."""
        return self.plan().architecture

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs in the order of the Gluon block's."""
        return list(self.plan().outputs)

    @property
    def precision(self) -> str:
        """What it runs in unless told otherwise: of a quantised plan, what it was quantised to."""
        return self.plan().precision or "fp32"

    @property
    def rows(self) -> Mapping[str, str]:
        """What each output has a row for, as the plan says."""
        return self.plan().rows

    @property
    def limits(self) -> Limits:
        """What the model can take."""
        return Limits.of(self.architecture)

    def with_settings(self, given: Any) -> Model:
        """The same model with settings of the user's own; see `bertrt.models.settings`."""
        return with_settings(self, given)

    def shown_settings(self) -> dict[str, Any]:
        """All that is set, by the names that the user has for it."""
        return shown_settings(self)

    @property
    def max_length(self) -> int:
        """The tokens of a text at most: the tokenizer's limit, else the model's positions."""
        if self.tokenizer is not None:
            return self.tokenizer.max_length
        return self.limits.max_length


# The compiler is imported when a graph is read: a bundle has its plan.


def _compile_symbol(symbol: Path, params: Path) -> tuple[Plan, Coverage]:
    from bertrt.models.symbol.plan import compile_symbol

    return compile_symbol(symbol, params)


def _find_texts(file: Path, home: Path, plan: Plan, task: str | None = None) -> HuggingFaceModel:
    """What `home` says of the model whose graph, in `file`, became `plan`."""
    found = HuggingFaceModel.open(home, task, graph=plan)
    if found.config.first_position:
        from bertrt.models.onnx.reader import OnnxFile

        if POSITIONS in OnnxFile(file).inputs:
            raise UnsupportedModelError(
                f"{file}: it takes {POSITIONS}, which begin behind the padding token's in a "
                "model of this kind, and at 0 here: export it without that input"
            )
    return found


def _compile_onnx(path: Path) -> tuple[Plan, Coverage]:
    from bertrt.models.onnx.plan import compile_onnx

    return compile_onnx(path)
