"""The models of a server: loaded, replaced and let go of while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bertrt.engine import Engine
from bertrt.errors import BertrtError, InvalidInputError
from bertrt.serve.backlog import Backlog
from bertrt.serve.logs import log
from bertrt.serve.metrics import Metrics
from bertrt.serve.refusals import Refusal
from bertrt.serve.served import Served
from bertrt.serve.settings import NAME, Settings

__all__ = ["Entry", "Models"]


@dataclass(frozen=True)
class Entry:
    """A model that is known.

    Attributes:
        name: its name.
        state: "READY", "LOADING" (for the first time) or "UNAVAILABLE".
        reason: why it is unavailable; "" where there is nothing to say.
    """

    name: str
    state: str
    reason: str = ""


class Models:
    """Models by their names. Of one event loop: its methods are called there."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._served: dict[str, Served] = {}
        self._reasons: dict[str, str] = {}
        # One load or unload of a name at a time.
        self._locks: dict[str, asyncio.Lock] = {}
        self._loading: set[asyncio.Future[None]] = set()
        # Of each name a load that has not begun yet: who asks for another is answered with it.
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._closing = False
        self._retiring: set[asyncio.Task[None]] = set()

    # --- what there is ------------------------------------------------------------------------

    def index(self) -> list[Entry]:
        """Those that are known, loaded or not."""
        return [self.entry(name) for name in self._places()]

    def entry(self, name: str) -> Entry:
        """One of them; Refusal 404 where the name is not known."""
        if name in self._served:
            return Entry(name, "READY")
        if name in self._places():
            lock = self._locks.get(name)
            state = "LOADING" if lock is not None and lock.locked() else "UNAVAILABLE"
            return Entry(name, state, self._reasons.get(name, ""))
        raise Refusal(404, self._unknown(name))

    def served(self) -> list[Served]:
        """Those that answer, in the order in which they came."""
        return list(self._served.values())

    @property
    def ready(self) -> bool:
        """Whether every model that the server was started with answers, or was unloaded since."""
        return all(name in self._served or name in self._reasons for name in self._settings.models)

    @property
    def full(self) -> bool:
        """Whether a request would wait too long for any of those that answer."""
        return bool(self._served) and all(served.full for served in self._served.values())

    @contextmanager
    def use(self, name: str | None, tasks: Sequence[str] | None = None) -> Iterator[Served]:
        """A model, which stays as it is until the block is left, whatever comes in its place.

        Args:
            name: its name; None: the first one with one of the tasks.
            tasks: the tasks that are answered; None: any.

        Raises:
            Refusal: 400 the name is blank; 404 no model has it, or (424) it has none of the tasks;
                503 it is known, and not loaded now.
        """
        served = self._fitting(tasks) if name is None else self._named(name)
        if tasks is not None and served.engine.task not in tasks:
            raise Refusal(
                424,
                f"the model {served.name!r} is for {served.engine.task or 'no task'}; "
                f"this takes one for {' or '.join(tasks)}",
            )
        served.users += 1
        try:
            yield served
        finally:
            served.users -= 1

    def _named(self, name: str) -> Served:
        if not name.strip():
            raise Refusal(
                400,
                "the model's name is empty; expected one of "
                f"{', '.join(map(repr, self._places()))}, or none at all",
            )
        served = self._served.get(name)
        if served is None:
            entry = self.entry(name)
            again = 1 if entry.state == "LOADING" else None
            raise Refusal(
                503,
                f"the model {name!r} is not loaded{f': {entry.reason}' if entry.reason else ''}",
                retry_after=again,
            )
        return served

    def _fitting(self, tasks: Sequence[str] | None) -> Served:
        for served in self._served.values():
            if tasks is None or served.engine.task in tasks:
                return served
        if not self.ready:
            raise Refusal(503, "the models are still being loaded", retry_after=1)
        wanted = "no model is loaded" if tasks is None else f"no model is for {' or '.join(tasks)}"
        raise Refusal(424 if self._served else 404, wanted)

    def _unknown(self, name: str) -> str:
        return f"there is no model {name!r}; the models are {', '.join(map(repr, self._places()))}"

    def _places(self) -> dict[str, Path]:
        """Where each model that may be loaded lies, by its name."""
        places: dict[str, Path] = {}
        if (repository := self._settings.repository) is not None:
            try:
                found = sorted(repository.iterdir())
            except OSError:  # it was taken away; what is loaded answers on
                found = []
            places = {
                path.name: path
                for path in found
                if NAME.fullmatch(path.name) and path.name[0] != "." and path.is_dir()
            }
        return {**places, **self._settings.models}

    # --- loading ------------------------------------------------------------------------------

    async def load(self, name: str) -> None:
        """Load a model, warm it up, and put it in the place of the one that has its name; requests
        under way end with the one that they began with. Where that fails, the old one stays.

        Raises:
            Refusal: 404 the name is not known; 400 it cannot be loaded, with the reason.
        """
        place = self._places().get(name)
        if place is None:
            raise Refusal(404, self._unknown(name))
        # Whoever asked may not wait for it; what a thread loads has to find its place all the same.
        loading = self._waiting.get(name)
        if loading is None:
            loading = self._waiting[name] = asyncio.ensure_future(self._replace(name, place))
        self._loading.add(loading)
        loading.add_done_callback(self._loading.discard)
        loading.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(loading)

    async def _replace(self, name: str, place: Path) -> None:
        async with self._locks.setdefault(name, asyncio.Lock()):
            if self._waiting.get(name) is asyncio.current_task():
                del self._waiting[name]
            if self._closing:
                raise Refusal(503, "the server is about to stop", retry_after=1)
            log("loading", model=name)
            try:
                engine = await asyncio.to_thread(self._load, place)
            except (BertrtError, ImportError, OSError) as error:
                reason = " ".join(str(error).split())
                log("load failed", level=40, model=name, reason=reason)
                if name not in self._served:
                    self._reasons[name] = reason
                raise Refusal(400, f"the model {name!r} cannot be loaded: {reason}") from error
            before = self._served.get(name)
            self._served[name] = Served(
                name,
                engine,
                self._settings.cache_bytes,
                self._metrics,
                Backlog(self._settings.wait_seconds),
            )
            self._reasons.pop(name, None)
            log("loaded", model=name, task=engine.task, precision=engine.precision)
            if before is not None:
                self._retire(before)

    def _load(self, place: Path) -> Engine:
        settings = self._settings
        engine = Engine.load(place, **settings.engine, batching=settings.batching)
        try:
            warm_up(engine)
        except BaseException:
            engine.close()
            raise
        return engine

    async def unload(self, name: str) -> None:
        """Take a model away, after the requests that it is answering; fine where it is not there.

        Raises:
            Refusal: 404 the name is not known.
        """
        self.entry(name)
        self._waiting.pop(name, None)
        async with self._locks.setdefault(name, asyncio.Lock()):
            served = self._served.pop(name, None)
            self._reasons[name] = "it was unloaded"
            if served is not None:
                log("unloaded", model=name)
                self._retire(served)

    def _retire(self, served: Served) -> None:
        task = asyncio.ensure_future(self._close(served))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self, served: Served) -> None:
        while served.users:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(served.engine.close)

    async def close(self) -> None:
        """Let go of all of them, once what is being loaded is there."""
        self._closing = True
        if self._loading:
            await asyncio.wait(self._loading)
        while self._served:
            self._retire(self._served.popitem()[1])
        if self._retiring:
            await asyncio.wait(self._retiring)


def warm_up(engine: Engine) -> None:
    """Run a short and a full batch, so that the first requests find memory and threads in place."""
    tokens = engine.batch_tokens
    longest = min(engine.max_length, tokens)
    for count, length in ((1, min(8, longest)), (max(1, tokens // longest), longest)):
        # Id 1 is in every vocabulary; in that of RoBERTa's family it is the padding, whose row is
        # read like others.
        ids = np.ones((count, length), np.int32)
        try:
            engine.run(ids)
        except InvalidInputError:
            # All that it gives is what a mask stands for.
            engine.run(ids, masked_positions=np.zeros((count, 1), np.int32))
