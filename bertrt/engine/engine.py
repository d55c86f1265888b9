"""The engine: a loaded model that answers."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from bertrt.backends.base import Backend, load_backend
from bertrt.batch import PackedBatch
from bertrt.engine.batching import Batching, Statistics, Submission
from bertrt.engine.checks import check_load, check_on_error, check_set, check_threads, check_turn
from bertrt.engine.explained import explained
from bertrt.engine.life import Life
from bertrt.engine.memory import naming_memory
from bertrt.engine.outputs import join_layers, unpack
from bertrt.engine.predictor import Predictor
from bertrt.engine.reranking import pair_up, rank
from bertrt.engine.routes import Routes
from bertrt.errors import BertrtError, InvalidInputError
from bertrt.host.cores import usable_cores
from bertrt.models.model import Model
from bertrt.plan.steps import layer_outputs, output_kind
from bertrt.results import Ranked, Result
from bertrt.tasks.base import Request
from bertrt.text.encoding import Tokenizer

__all__ = ["Engine"]


class Engine:
    """A model, loaded into a backend and ready to answer.

    Made by `Engine.load`. An engine may be shared by threads, pickled (it loads again from its
    path), used after a fork (where the backend's threads do not survive it, the child loads the
    backend again at its first use), and used as a context manager::

        with Engine.load("model.bundle") as engine:
            engine.predict(["a text", "another"])
    """

    def __init__(
        self, model: Model, load: Callable[[], Backend], arguments: dict[str, Any]
    ) -> None:
        self._limits = model.limits
        self._outputs = tuple(model.outputs)
        self._unmasked = tuple(name for name in self._outputs if name != "masked_lm_outputs")
        self._layered = any(output_kind(name) != name for name in self._outputs)
        path, backend = arguments["path"], arguments["backend"]
        self._life = Life(load, f"Engine({path!r}, task={model.task!r}, backend={backend!r}")
        self._suits = self._life.use("load").backend.batch_tokens
        self._set(model, arguments)
        model.plan().let_go()

    def _set(self, model: Model, arguments: dict[str, Any]) -> None:
        self._model, self._arguments = model, arguments
        batching = arguments.get("batching") or Batching()
        self._predictor = Predictor(model, batching.tokens or self._suits)
        beside = getattr(self, "_routes", None)
        self._routes = Routes(self._life, self._predictor, batching, beside)

    @classmethod
    @naming_memory
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: str = "native",
        device: str = "cpu",
        precision: str | None = None,
        threads: int | None = None,
        settings: Mapping[str, Any] | None = None,
        batching: Batching | None = None,
    ) -> Engine:
        """Load a model.

        Args:
            path: a bundle's directory; a Hugging Face directory of one of the classes that
                docs/huggingface.md lists, or of sentence-transformers, which only the native
                backend runs where its weights are no ONNX file; an ``.onnx`` file with its
                ``config.json`` and tokenizer beside it; or a bare graph (an ``.onnx`` file alone,
                or a ``*-symbol.json`` file with its parameters beside it), which has no
                tokenizer: `run` works, `predict` does not.
            backend: "native", "onnxruntime" or "mxnet".
            device: "cpu", "cuda" or "cuda:N"; "cuda:0,1" shares each batch among several GPUs.
            precision: "fp32", "bf16", "fp16", "int8" or, on GPUs, "fp8"; None: the model's own,
                which of a quantised bundle is the one it was quantised to, and of others fp32.
            threads: the threads to use, 1 to 1024; None: the cores that this process may really
                use.
            settings: what goes before the model's own settings, by name: ``max_length``, and for
                its task ``labels``, ``pooling``, ``normalize``, ``truncate_dim``, ``doc_stride``,
                ``null_answer``, ``top_k`` and so on, as docs/tasks.md lists them and `explain`
                shows them.
            batching: how much runs at once, and may wait; None: `Batching()`.

        Raises:
            MissingFileError: there is nothing at `path`, or a file of the model is missing.
            ModelFormatError: the model is broken, or (UnsupportedModelError) holds something that
                bertrt does not run.
            MissingDependencyError: the backend is not installed; the message names the extra.
            DeviceError: the device or precision cannot be used; the message says what is missing.
            OutOfMemoryError: this machine has not the memory for the model.
            InvalidInputError, InvalidTypeError: an argument that means nothing.
        """
        check_load(backend, device, precision, batching)
        threads = usable_cores() if threads is None else check_threads(threads)
        # Other libraries get no file before it is known to be whole.
        opened = Model.opening(path) if backend == "native" else nullcontext(Model.open(path))
        with opened as model:
            model = model.with_settings(settings)
            precision = precision or model.precision
            load = functools.partial(
                load_backend, model, backend, device=device, precision=precision, threads=threads
            )
            arguments = {
                "path": str(model.path),
                "backend": backend,
                "device": device,
                "precision": precision,
                "threads": threads,
                "settings": None if settings is None else copy.deepcopy(dict(settings)),
                "batching": batching,
            }
            return cls(model, load, arguments)

    def with_settings(self, settings: Mapping[str, Any]) -> Engine:
        """The same weights with other settings, all but ``max_length``. Closing the one engine or
        the other closes both. Raises what `load` raises for settings."""
        check_set(settings)
        made = object.__new__(Engine)
        made.__dict__.update(self.__dict__)
        given = {"settings": (self._arguments["settings"] or {}) | copy.deepcopy(dict(settings))}
        made._set(self._model.with_settings(settings), self._arguments | given)
        return made

    # --- what it is ---------------------------------------------------------------------------

    @property
    def task(self) -> str | None:
        """The model's task, one of `bertrt.tasks.settings.TASKS`; None for a bare graph."""
        return self._model.task

    @property
    def labels(self) -> list[str] | None:
        """The labels of a classifier or tagger, in the order of its logits; else None."""
        return None if (labels := self._model.labels) is None else list(labels)

    @property
    def max_length(self) -> int:
        """The tokens of a text, special ones included, at most; `predict` cuts what is longer."""
        return self._model.max_length

    @property
    def batch_tokens(self) -> int:
        """The tokens of a batch, at most: `Batching.tokens`, or what suits the backend.

        On a GPU that is 16,384, or fewer where its memory is small; else 4,096, or with the native
        engine 512 a thread, if that is less.
        """
        return self._predictor.tokens

    @property
    def settings(self) -> dict[str, Any]:
        """All that is set, by the names that `load` has for it; empty for a bare graph."""
        return copy.deepcopy(self._model.shown_settings())

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What makes ids of texts in `predict`; None where the model has none."""
        return self._model.tokenizer

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `run` returns, `masked_lm_outputs` included."""
        joined = {"encoding": "all_encodings"}
        kinds = [output_kind(name) or name for name in self._outputs]
        return tuple(dict.fromkeys(joined.get(kind, kind) for kind in kinds))

    @property
    def backend(self) -> str:
        """The backend's name."""
        with self._life.use("backend") as call:
            return call.backend.name

    @property
    def device(self) -> str:
        """The device that the model really runs on."""
        with self._life.use("device") as call:
            return call.backend.device

    @property
    def precision(self) -> str:
        """The precision of the arithmetic."""
        with self._life.use("precision") as call:
            return call.backend.precision

    @property
    def provider(self) -> str:
        """What executes the kernels: an instruction set, an execution provider, a library."""
        with self._life.use("provider") as call:
            return call.backend.provider

    @property
    def threads(self) -> int:
        """The threads that the backend really uses."""
        with self._life.use("threads") as call:
            return call.backend.threads

    def explain(self) -> str:
        """How the model runs, as text: backend, device, instruction set, and the steps."""
        with self._life.use("explain") as call:
            return explained(self._model, call.backend)

    def __repr__(self) -> str:
        return str(self._life)

    # --- what it does -------------------------------------------------------------------------

    @naming_memory
    def predict(self, batch: Any, *, prompt: str | None = None, on_error: str = "raise") -> Any:
        """Tokenize, run and post-process.

        Args:
            batch: a list of str, a list of (str, str) tuples, or one str or (str, str) tuple.
                For question answering (question, context) tuples; for tagging texts, each a str
                or a list of words.
            prompt: what goes before every text, or the first of a pair, of embeddings and
                classifiers: the name of one of the model's prompts, or a text, which is taken for
                one by what no name has, such as a blank or a colon ("query: "); "": nothing. None:
                the prompt of the setting ``default_prompt_name``, if there is one.
            on_error: what becomes of an input that cannot be answered. "raise": one error names
                them all. "return": its error stands in its place among the results, or is the one.

        Returns:
            A list of results as long as the batch and in its order; for a single input, the one
            result. The class of a result is that of the model's task: see `bertrt.results`. Its
            `truncated` says that something was longer than `max_length` allows, and was cut.

        Raises:
            InvalidInputError: an input with a NUL character or a lone surrogate, a single text
                where the task takes pairs or the other way round, a text that lacks the mask to
                fill, that is too long to be tagged by GluonNLP's rule, or that is empty where the
                task cannot do without: a question, its context, a second sentence, a word. The
                message names the index of each. Also an empty batch, an unknown prompt or on_error.
            InvalidTypeError: anything that is no text, texts and pairs together.
            OutOfMemoryError: this machine has not the memory for the batch; the engine lives on.
            BertrtError: the model has no tokenizer or task, or the engine is closed.
        """
        check_on_error(on_error)
        return self._routes.predict(batch, prompt, on_error)

    def submit(
        self,
        batch: Any,
        *,
        prompt: str | None = None,
        on_error: str = "raise",
        priority: int = 0,
        deadline: float | None = None,
    ) -> Submission:
        """As `predict`, without waiting: the scheduler tokenizes and runs it, among what others
        have submitted. See docs/batching.md.

        Args:
            batch, prompt, on_error: as for `predict`.
            priority: -10 to 10; the higher goes first. Each step counts as one second of waiting,
                so that nobody waits for ever.
            deadline: the seconds from now by which it has to begin to run; else it is dropped.
                0 is over when it comes: it is dropped always. None: none.

        Returns:
            A `concurrent.futures.Future` of what `predict` returns or raises, which can be
            cancelled until all of it has begun to run, with a `report` of what it took. Where its
            deadline is over, `DeadlineExceeded`; where the engine is closed before, a BertrtError.

        Raises:
            QueueFull: so many inputs wait that there is no place for these.
            InvalidInputError, InvalidTypeError: an argument that means nothing; of inputs by
                themselves the future tells.
            BertrtError: the model has no tokenizer or task, or the engine is closed.
        """
        check_on_error(on_error)
        priority = check_turn(priority, deadline)
        return self._routes.submit(batch, prompt, on_error, priority, deadline)

    async def apredict(
        self,
        batch: Any,
        *,
        prompt: str | None = None,
        on_error: str = "raise",
        priority: int = 0,
        deadline: float | None = None,
    ) -> Any:
        """As `predict`, for asyncio: `submit`, and wait without blocking the event loop.

        Arguments, result and errors are those of `submit`. A task that is cancelled here cancels
        what has not run.
        """
        turn: dict[str, Any] = {"priority": priority, "deadline": deadline}
        return await self.submit(batch, prompt=prompt, on_error=on_error, **turn)

    def statistics(self) -> Statistics:
        """What the scheduler has done and has to do: how much waits, and how large its batches
        were. What `predict` runs by itself, since nobody else is inside, is not among it."""
        return self._routes.statistics()

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        prompt: str | None = None,
    ) -> list[Ranked]:
        """Order documents by what a model of pairs, such as a CrossEncoder, gives for each of them
        with a query.

        Args:
            query: the first text of every pair.
            documents: a list of the second ones.
            top_k: how many of the best to return; None: all.
            prompt: as for `predict`; it goes before the query.

        Returns:
            A `Ranked` for each document, the highest score first; equal ones in the order of
            `documents`. The scores are those of `predict`.

        Raises:
            InvalidInputError: the model's task is not to give a score (regression), `top_k` is
                below 1, there is no document; and what `predict` raises for the pairs.
            InvalidTypeError: `query` is no str, or `documents` no list of them.
        """
        pairs = pair_up(self.task, query, documents, top_k)
        return rank(self.predict(pairs, prompt=prompt))[:top_k]

    @naming_memory
    def predict_with_outputs(
        self, batch: Any, *, prompt: str | None = None
    ) -> tuple[list[Result], list[list[np.ndarray]]]:
        """As `predict`, with the numbers that the results are made of.

        Args:
            batch, prompt: as for `predict`; a single input counts as a list of it.

        Returns:
            The results, as a list. And for each input a list with an array, float32, for each of
            its sequences (one, but for the windows of question answering and tagging): the rows of
            the output that the task reads. That are a classifier's logits (classes,), a
            regression's (1,), those of tagging and question answering (tokens, tags) and
            (tokens, 2).

        Raises:
            What `predict` raises.
        """
        with self._life.use("predict_with_outputs") as call:
            found, _ = self._predictor.encode(batch, prompt)
            requests = [own for own in found if isinstance(own, Request)]
            return self._predictor.with_outputs(call.backend, requests)

    @naming_memory
    def tokenize(self, batch: Any, *, prompt: str | None = None) -> Any:
        """The ids that `predict` would use.

        Args:
            batch, prompt: as for `predict`.

        Returns:
            A list of `Encoding` (ids, types, truncated), or one for a single input. For question
            answering every input has a list of them, one for each window of its context; for
            tagging so has a text that is longer than the model.

        Raises:
            What `predict` raises for its input.
        """
        with self._life.use("tokenize") as call:  # noqa: F841
            requests, single = self._predictor.encode(batch, prompt)
        found: list[Any] = [list(own.sequences) for own in requests if isinstance(own, Request)]
        if self.task != "question-answering":
            found = [own[0] if len(own) == 1 else own for own in found]
        return found[0] if single else found

    @naming_memory
    def run(
        self,
        token_ids: Any,
        token_types: Any = None,
        valid_length: Any = None,
        *,
        masked_positions: Any = None,
    ) -> dict[str, Any]:
        """Run token ids.

        Args:
            token_ids: integers, shape (batch, sequence); or a list of 1-D arrays.
            token_types: integers of the same shape, or a list likewise; None: all 0.
            valid_length: integers, shape (batch,), each from 0 to sequence; or a mask, shape
                (batch, sequence), of ones, at least one a row, and zeros behind them; None: no
                padding. What lies beyond a sequence's length is ignored. Not for lists.
            masked_positions: integers, shape (batch, num_masked), for a model with a masked
                language model decoder; None leaves `masked_lm_outputs` out.

        Returns:
            Arrays of float32 by name, as far as the model has them:

            - `sequence_output` (batch, sequence, hidden), exactly 0 at padding;
            - `embedding_output` (batch, sequence, hidden), what the first layer reads, likewise,
              of an ONNX file that returns it;
            - `all_encodings` (layers, batch, sequence, hidden), likewise, of a net that was built
              to return every layer's; the last is `sequence_output`;
            - `attention_weights` (layers, batch, heads, sequence, sequence), of a net that was
              built to return them: rows are queries, those of padding too, as in Gluon, for which
              its token ids are read, and clipped to the vocabulary; columns of padding are 0;
            - `pooled_output` (batch, hidden);
            - `logits` (batch, classes), or (batch, sequence, classes) of a head over tokens, at
              padding what it gives for zeros;
            - `next_sentence_classifier_output` (batch, 2);
            - `masked_lm_outputs` (batch, num_masked, vocabulary).

            For lists what has a sequence axis is a list of arrays, without its batch axis.

        Raises:
            InvalidInputError: shapes that do not match, ids, types, lengths or positions out of
                range, more tokens than the model has positions.
            InvalidTypeError: no integers.
            OutOfMemoryError: this machine has not the memory for the batch; the engine lives on.
            BertrtError: the engine is closed.
        """
        outputs = self._unmasked if masked_positions is None else self._outputs
        if masked_positions is not None and "masked_lm_outputs" not in outputs:
            raise InvalidInputError(
                "masked_positions is given, and the model has no masked language model decoder; "
                f"its outputs are {', '.join(outputs)}"
            )
        if not outputs:
            raise InvalidInputError(
                "masked_positions is None, and masked_lm_outputs is all that the model gives"
            )
        ragged = isinstance(token_ids, list | tuple)
        if ragged:
            if valid_length is not None:
                raise InvalidInputError(
                    "valid_length goes with a padded array; a list of arrays has its lengths "
                    "already (use numpy.array(token_ids) for a padded list)"
                )
            packed = PackedBatch.from_ragged(token_ids, token_types, masked_positions, self._limits)
        else:
            packed = PackedBatch.from_padded(
                token_ids, token_types, valid_length, masked_positions, self._limits
            )
        if self._layered and not ragged and layer_outputs(outputs, "attention_weights"):
            packed = packed.with_padding(token_ids, token_types, self._limits)
        with self._life.use("run") as call:
            found = call.backend.run(packed, outputs)
        sequence = None if ragged else np.shape(token_ids)[1]
        shaped = unpack(found, packed, self._model.plan(), sequence)
        return join_layers(shaped, ragged) if self._layered else shaped

    # --- its life -----------------------------------------------------------------------------

    def close(self, timeout: float | None = 60.0) -> None:
        """Let go of threads and memory, after the calls under way. Closing twice is fine; using a
        closed engine is an error.

        It waits for calls of other threads. Inside a call of its own thread (in a signal handler,
        say) it closes the engine to new calls; that call goes on to its result, and what the
        engine holds is let go of when it is over.

        Args:
            timeout: the seconds to wait for other threads; None: for as long as it takes.

        Raises:
            BusyError: they were not through by then; the message says which threads are inside,
                and in what. The engine is closed, and what it holds is let go of when the last of
                these calls is over. Closing again waits again.
            InvalidInputError, InvalidTypeError: `timeout` is no number of seconds.
        """
        self._routes.close(timeout)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Engine], tuple[()]]:
        if self._life.closed:
            raise BertrtError(f"{self!r} cannot be pickled")
        return functools.partial(Engine.load, **self._arguments), ()
