"""From a live Gluon net to the symbolic graph and its weights.

`HybridBlock.export` needs a net that was hybridized and then called in just the way in which the
graph is wanted, and leaves that net hybridized. Calling the block on symbols gives the same graph
and leaves no trace in the net, however the caller has used it before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bertrt.errors import InvalidInputError, MissingDependencyError, ModelFormatError
from bertrt.host.writing import write_text
from bertrt.models.manifest import PARAMS, SYMBOL
from bertrt.models.symbol.params import write_params
from bertrt.plan.steps import STACKED

__all__ = [
    "import_gluon",
    "input_names",
    "output_names",
    "run_gluon",
    "set_parameters",
    "structural_parameters",
    "write_symbol_pair",
]


def import_gluon() -> tuple[Any, Any]:
    """The modules mxnet and gluonnlp.

    Raises:
        MissingDependencyError: one of them is not installed, or does not work beside the
            installed numpy.
    """
    try:
        import gluonnlp
        import mxnet
    except (ImportError, AttributeError) as error:  # AttributeError: numpy.bool, from numpy 1.24
        raise MissingDependencyError(
            f"exporting needs MXNet 1.9.1 and GluonNLP 0.10.0, and importing them failed: {error}; "
            "they run on Python up to 3.11 with numpy 1.23.5: pip install 'bertrt[export]' there"
        ) from error
    return mxnet, gluonnlp


def input_names(net: Any) -> list[str]:
    """The names of what `net` takes, in its order: out of `bertrt.plan.steps.INPUTS`.

    A ``RoBERTaModel`` or ``DistilBERTModel``, and a block over one, takes no token types.
    """
    _, gluonnlp = import_gluon()
    models = gluonnlp.model.bert
    blocks: list[Any] = []
    net.apply(blocks.append)
    names = ["token_ids"]
    if not any(isinstance(b, (models.RoBERTaModel, models.DistilBERTModel)) for b in blocks):
        names.append("token_types")
    names.append("valid_length")
    if "masked_lm_outputs" in output_names(net):
        names.append("masked_positions")
    return names


def output_names(net: Any) -> list[str]:
    """The names of what `net` returns, in its order.

    They are those of :meth:`bertrt.Engine.run`: what a net returns for each layer is one array.

    Args:
        net: a GluonNLP ``BERTModel``, ``RoBERTaModel`` or ``DistilBERTModel``, or a block over one
            that returns logits.
    """
    _, gluonnlp = import_gluon()
    if not isinstance(net, gluonnlp.model.BERTModel):
        return ["logits"]
    names = ["sequence_output"]
    # Of a single layer, all encodings are the sequence output.
    if net.encoder._output_all_encodings and len(net.encoder.transformer_cells) > 1:
        names.insert(0, "all_encodings")
    if net.encoder._output_attention:
        names.append("attention_weights")
    if net._use_pooler:
        names.append("pooled_output")
        if net._use_classifier:
            names.append("next_sentence_classifier_output")
    if net._use_decoder:
        names.append("masked_lm_outputs")
    return names


@contextlib.contextmanager
def _imperative(net: Any) -> Iterator[None]:
    """Run `net` and the blocks in it as if they had never been hybridized.

    A hybridized block keeps the graph of its first call and refuses to be called with other
    inputs. Its cache is left alone, so that the caller finds the net as it was.
    """
    mxnet, _ = import_gluon()
    switched: list[Any] = []

    def switch_off(block: Any) -> None:
        if getattr(block, "_active", False):
            block._active = False
            switched.append(block)

    net.apply(switch_off)
    try:
        # Predict mode and no recording, also where the caller is in the middle of training.
        with mxnet.autograd.pause(train_mode=False):
            yield
    finally:
        for block in switched:
            block._active = True


def run_gluon(net: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a live net in predict mode.

    Args:
        net: an initialised net as for :func:`output_names`.
        inputs: integer arrays ``token_ids`` and ``token_types`` (batch, seq), ``valid_length``
            (batch,) and, for a net with a decoder, ``masked_positions`` (batch, masked); those that
            the net does not take are left aside.

    Returns:
        float32 arrays by output name, shaped as the block returns them.

    Raises:
        InvalidInputError: the net is not initialised, cannot be called like this, or returns
            something unexpected.
    """
    mxnet, _ = import_gluon()
    names = output_names(net)
    context = _context(net)
    arguments = [
        mxnet.nd.array(inputs[name], ctx=context, dtype="float32") for name in input_names(net)
    ]
    with _imperative(net):
        arrays = [array.asnumpy() for array in _call(net, arguments)]
    layers = len(net.encoder.transformer_cells) if set(STACKED) & set(names) else 1
    counts = {name: layers if name in STACKED else 1 for name in names}
    if "all_encodings" in names:
        counts["sequence_output"] = 0  # it is the last of them
    if len(arrays) != sum(counts.values()):
        raise InvalidInputError(
            f"{type(net).__name__} should return {', '.join(names)}, "
            f"and it returns {len(arrays)} arrays"
        )
    rest = iter(arrays)
    outputs: dict[str, np.ndarray] = {}
    for name, count in counts.items():
        if name in STACKED:
            outputs[name] = np.stack([next(rest) for _ in range(count)])
        else:
            outputs[name] = next(rest) if count else outputs["all_encodings"][-1]
    return outputs


def _call(net: Any, arguments: list[Any]) -> list[Any]:
    """The arrays, or symbols, that the net returns, in their order."""
    try:
        result = net(*arguments)
    except Exception as error:  # Gluon raises whatever the block's own code runs into
        raise InvalidInputError(
            f"{type(net).__name__} cannot be called with {', '.join(input_names(net))} "
            f"as GluonNLP's own models are: {error}"
        ) from error
    return list(_flat(result))


def _flat(result: Any) -> Iterator[Any]:
    """What is there for each layer comes in a list of its own."""
    if isinstance(result, (list, tuple)):
        for part in result:
            yield from _flat(part)
    else:
        yield result


def _context(net: Any) -> Any:
    """The device of the net's parameters; an error when they are not initialised."""
    mxnet, _ = import_gluon()
    contexts: list[Any] = []
    for name, parameter in structural_parameters(net).items():
        try:
            contexts = parameter.list_ctx()
        except RuntimeError:
            raise InvalidInputError(
                f"the net's parameter {name} is not initialised; call net.initialize() and load "
                "or train its weights before exporting"
            ) from None
        if np.dtype(parameter.dtype) != np.float32:
            raise InvalidInputError(
                f"the net's parameter {name} is {np.dtype(parameter.dtype)}; "
                "call net.cast('float32') before exporting"
            )
    return contexts[0] if contexts else mxnet.cpu()


def structural_parameters(net: Any) -> dict[str, Any]:
    """The net's parameters by the names that ``save_parameters`` gives them."""
    return dict(net._collect_params_with_prefix())


def set_parameters(net: Any, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Initialise `net` with `arrays`, all of them and nothing else.

    Args:
        net: a GluonNLP net, initialised or not.
        arrays: arrays by the names of :func:`structural_parameters`, of any float type.
        source: where they come from, for error messages.

    Raises:
        ModelFormatError: parameters are missing, unexpected, of the wrong shape (all are named) or
            not finite.
    """
    mxnet, _ = import_gluon()
    parameters = structural_parameters(net)
    # The decoder's last layer shares the word embedding; its name stands in the net and may or
    # may not stand in a file, depending on who wrote it.
    by_identity: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        by_identity.setdefault(id(parameter), []).append(name)
    missing = [
        names[0] for names in by_identity.values() if not any(name in arrays for name in names)
    ]
    unexpected = [name for name in arrays if name not in parameters]
    wrong = [
        f"{name} is {tuple(arrays[name].shape)} and should be {_describe(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in arrays and not _fits(parameter.shape, arrays[name].shape)
    ]
    problems = [
        f"{title}: {', '.join(items[:8])}{f' and {len(items) - 8} more' if len(items) > 8 else ''}"
        for title, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of the wrong shape", wrong),
        )
        if items
    ]
    if problems:
        raise ModelFormatError(
            f"{source} does not fit the {type(net).__name__}: parameters {'; '.join(problems)}"
        )
    net.initialize(mxnet.init.Zero(), force_reinit=True)
    for names in by_identity.values():
        name = next(name for name in names if name in arrays)
        array = np.ascontiguousarray(arrays[name], dtype=np.float32)
        if not np.isfinite(array).all():
            raise ModelFormatError(
                f"{source}: the parameter {name} holds numbers that are not finite"
            )
        parameters[name].set_data(mxnet.nd.array(array, dtype="float32"))


def _fits(expected: tuple[int, ...], found: tuple[int, ...]) -> bool:
    # 0 is MXNet's word for a size that the first call will tell.
    return len(expected) == len(found) and all(
        e in (0, f) for e, f in zip(expected, found, strict=True)
    )


def _describe(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join("any" if size == 0 else str(size) for size in shape) + ")"


def write_symbol_pair(net: Any, directory: Path) -> tuple[Path, Path]:
    """Write the symbolic graph of `net` and its weights, as ``net.export`` would.

    The graph takes ``data0``, ``data1``, ...: what :func:`input_names` says, in its order.

    Args:
        net: a net that has run once, so that every shape is known.
        directory: where ``model-symbol.json`` and ``model-0000.params`` go.

    Returns:
        The paths of the two files.

    Raises:
        InvalidInputError: the net is not initialised, not float32, or cannot be called on symbols.
        WriteError: the system refuses a file.
    """
    mxnet, _ = import_gluon()
    _context(net)
    count = len(input_names(net))
    symbol = mxnet.sym.Group(_call(net, [mxnet.sym.var(f"data{index}") for index in range(count)]))
    wanted = set(symbol.list_arguments()) | set(symbol.list_auxiliary_states())
    arrays = {
        parameter.name: parameter.list_data()[0].asnumpy()
        for parameter in net.collect_params().values()
        if parameter.name in wanted
    }
    symbol_path, params_path = directory / SYMBOL, directory / PARAMS
    # What MXNet writes itself, it takes for written when the disk is full.
    write_text(symbol_path, symbol.tojson())
    write_params(params_path, arrays)
    return symbol_path, params_path
