"""The driver of replicas: hands questions to them, writes what they send, and survives their death.

Each replica has a seat. Where one dies, its questions go back to the queue, in front, with all that
is on disk of them, and another replica is started in its seat; the others go on meanwhile.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fttt.config import RunConfig
from fttt.errors import FTTTError, RunError
from fttt.experiment.executor import Owed
from fttt.experiment.garbage import old_objects_left_alone
from fttt.experiment.plan import Plan, Settled
from fttt.experiment.replay import Observer
from fttt.experiment.replica import About, Assignment, Fact, Orders, PlannedRun, Report
from fttt.store import History, Journal

__all__ = ["Asking", "LostError", "ReplicaHandle", "ReplicatedExecutor"]

_LIVES = 3
"""Replicas that may die in a seat one after the other without having sent a fact."""
_RELEASE_SECONDS = 10.0
"""For a replica to stop what it does; it is let go of after that."""


class LostError(Exception):
    """A replica has died, or its machine is out of reach; the message is the reason."""


class ReplicaHandle(Protocol):
    """A replica as the driver holds it."""

    @property
    def about(self) -> About:
        """Where it runs."""

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of :class:`fttt.experiment.replica.Replica`.

        Raises:
            LostError: it has died.
        """

    def kill(self) -> None:
        """End its process, if it has not ended."""


StartReplica = Callable[[], Awaitable[ReplicaHandle]]
"""Starts a replica and waits until it answers.

Raises:
    LostError: it has died.
    FTTTError: it cannot be started.
"""


@dataclass(eq=False)
class Seat:
    """The place of one replica at a time."""

    replica: ReplicaHandle | None = None
    config: Mapping[str, Any] | None = None
    """Whose model it holds."""
    prepared: bool = False
    fruitless: int = 0
    """Replicas that have died here one after the other without having sent a fact."""
    held: dict[tuple[int, str], Owed] = field(default_factory=dict)
    """The questions that it is asking."""
    generated_tokens: int = 0
    """By the replica that it has; those of its predecessors are in ``before``."""
    before: int = 0


class ReplicatedExecutor:
    """Replicas, each with a model of its own; an :class:`fttt.experiment.executor.Executor`.

    Whoever makes it starts the replicas and ends them; see :mod:`fttt.experiment.cluster`.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        start: StartReplica,
        config: RunConfig,
        note: Callable[[str], None],
    ) -> None:
        """Let the replicas of all seats load a model.

        Args:
            seats: the places of replicas, which another executor may have used before.
            start: starts a replica for an empty seat.
            config: whose model is loaded.
            note: prints a line.

        Raises:
            UsageError: the model, device or dtype does not exist where a replica runs.
            RunError: it does not fit, or replicas die again and again.
        """
        self.seats = seats
        self.note = note
        self.at_once = 1
        """Questions that a replica asks at once, at most."""
        self.deaths = 0
        self._start = start
        self._config = config.to_toml()
        self._runs: list[PlannedRun] = []
        asyncio.run(self._all_ready())

    @property
    def generated_tokens(self) -> int:
        return sum(seat.before + seat.generated_tokens for seat in self.seats)

    @property
    def size(self) -> str:
        return ""  # each replica has its own

    @property
    def lanes(self) -> int:
        return self.at_once * len(self.seats)

    def rendered(
        self, prompts: Sequence[str], arguments: Mapping[str, Any]
    ) -> Sequence[str | None]:
        found: Sequence[str | None] = asyncio.run(self._any("rendered", prompts, arguments))
        return found

    def check_fits(self, plan: Plan) -> None:
        asyncio.run(self._any("check_fits", PlannedRun.of(plan)))

    def describe(self, settled: Settled) -> dict[str, Any]:
        run = PlannedRun.of(Plan(settled, ()))
        described: dict[str, Any] = asyncio.run(self._any("describe", run))
        hosts = [seat.replica.about.host for seat in self.seats if seat.replica is not None]
        return {**described, "replicas": hosts}

    def prepare(self, plans: Sequence[Plan]) -> None:
        self._runs, self.deaths = [PlannedRun.of(plan) for plan in plans], 0
        for seat in self.seats:
            seat.prepared, seat.fruitless = False, 0
            seat.generated_tokens, seat.before = 0, 0
        asyncio.run(self._all_ready())

    async def ask(
        self,
        owed: Sequence[Owed],
        journals: Sequence[Journal],
        observer: Observer,
        stop: asyncio.Event,
    ) -> bool:
        with old_objects_left_alone():
            finished = await Asking(self, owed, journals, observer).until(stop)
        if finished and self.deaths:
            self.note(
                f"Replicas died during the run ({self.deaths}); what they asked was resumed, and "
                "no trial is missing."
            )
        return finished

    async def release(self) -> None:
        self._runs = []
        await asyncio.gather(*map(self._release, self.seats))

    async def ready(self, seat: Seat) -> ReplicaHandle:
        """The replica of a seat, with the model loaded and the runs prepared.

        Raises:
            FTTTError: there can be none, or replicas die in this seat again and again.
        """
        reason: LostError | None = None
        while seat.fruitless < _LIVES:
            try:
                if seat.replica is None:
                    seat.replica = await self._start()
                if seat.config != self._config:
                    seat.config = None
                    await seat.replica.call("load", self._config)
                    seat.config = self._config
                if self._runs and not seat.prepared:
                    self.at_once = await seat.replica.call("prepare", self._runs)
                    seat.prepared = True
                return seat.replica
            except LostError as error:
                self.lost(seat, error)
                reason = error
        raise RunError(
            f"{_LIVES} replicas died one after the other before they had sent anything (the last "
            f"one: {reason}); look for what ends them, such as too little memory."
        ) from reason

    def lost(self, seat: Seat, error: LostError) -> None:
        """Let go of a replica that has died."""
        self.deaths += 1
        seat.fruitless += 1
        if seat.replica is not None:
            about, held = seat.replica.about, len(seat.held)
            left = f"; the {held} questions that it asked are resumed" if held else ""
            self.note(f"The replica on {about.host} (process {about.pid}) died: {error}{left}.")
            seat.replica.kill()
        else:
            self.note(f"A replica died as it started: {error}.")
        seat.replica, seat.config, seat.prepared = None, None, False
        seat.before, seat.generated_tokens = seat.before + seat.generated_tokens, 0

    async def _all_ready(self) -> None:
        await asyncio.gather(*map(self.ready, self.seats))

    async def _any(self, name: str, *arguments: Any) -> Any:
        """Call one replica, whichever."""
        seat = self.seats[0]
        while True:
            replica = await self.ready(seat)
            try:
                return await replica.call(name, *arguments)
            except LostError as error:
                self.lost(seat, error)

    async def _release(self, seat: Seat) -> None:
        replica, prepared = seat.replica, seat.prepared
        seat.prepared = False
        if replica is None or not prepared:
            return
        try:
            async with asyncio.timeout(_RELEASE_SECONDS):
                await replica.call("release")
        except (LostError, TimeoutError):
            replica.kill()
            seat.replica = seat.config = None


@dataclass
class _Known:
    """What is on disk of a question."""

    history: History
    written: set[int]

    def add(self, fact: Fact) -> None:
        """Add what a replica has sent."""
        thing = fact.content[-1]
        match fact.kind:
            case "generation":
                self.history.generations[thing.completion.generation] = thing
            case "verdict":
                self.history.verdicts[fact.content[1]] = thing
            case "score":
                self.history.scores[thing.number] = thing.scores
            case "divergence":
                self.history.divergences[thing.number] = thing
            case "trial":
                self.written.add(thing.trial)
            case "done":
                self.history.done = True


class Asking:
    """The questions of some runs while they are asked."""

    def __init__(
        self,
        executor: ReplicatedExecutor,
        owed: Sequence[Owed],
        journals: Sequence[Journal],
        observer: Observer,
    ) -> None:
        self._executor = executor
        self._journals = journals
        self._observer = observer
        self._queue = deque(owed)
        self._left = {(one.run, one.question.id) for one in owed}
        self._known: dict[tuple[int, str], _Known] = {}
        self._tried = set(executor.seats)
        """Seats that have a replica, or may have one again."""
        self._serving = set(executor.seats)
        """Seats whose replicas are asking."""
        self._ended = asyncio.Event()

    async def until(self, stop: asyncio.Event) -> bool:
        """Ask until all is asked or ``stop`` is set; return whether all is."""
        if not self._left:
            return True
        ended, stopped = (asyncio.create_task(event.wait()) for event in (self._ended, stop))
        seats = {asyncio.create_task(self._serve(seat)) for seat in self._executor.seats}
        tasks: set[asyncio.Task[Any]] = {ended, stopped, *seats}
        pending = tasks
        try:
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                if ended in done or stopped in done:
                    return ended in done
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for seat in self._executor.seats:
                seat.held.clear()

    async def _serve(self, seat: Seat) -> None:
        """Serve one replica after the other in a seat."""
        while True:
            try:
                replica = await self._executor.ready(seat)
            except FTTTError as error:
                self._tried.discard(seat)
                if not self._tried:
                    raise
                self._executor.note(f"The other replicas go on without another one: {error}")
                return
            self._serving.add(seat)
            try:
                await self._exchange(seat, replica)
                return
            except LostError as error:
                self._serving.discard(seat)
                self._queue.extendleft(reversed(seat.held.values()))
                self._executor.lost(seat, error)
                seat.held.clear()

    async def _exchange(self, seat: Seat, replica: ReplicaHandle) -> None:
        """Hand out questions and write facts until nothing is left."""
        kept = 0
        while self._left:
            orders = Orders(kept, tuple(map(self.assignment, self._hand_out(seat))))
            report: Report = await replica.call("exchange", orders)
            facts = report.facts
            for fact in facts:
                self.write(fact, seat)
            for run, question_id in {(fact.run, fact.question_id) for fact in facts}:
                await self._journals[run].kept(question_id)
            kept += len(facts)
            seat.generated_tokens = report.generated_tokens
            seat.fruitless = 0 if kept else seat.fruitless
            if report.error is not None:
                raise report.error
        self._ended.set()

    def _hand_out(self, seat: Seat) -> list[Owed]:
        """Questions for a replica that has fewer than its share of what is left."""
        share = math.ceil(len(self._left) / len(self._serving))
        room = min(self._executor.at_once, share) - len(seat.held)
        given = [self._queue.popleft() for _ in range(min(room, len(self._queue)))]
        seat.held.update({(one.run, one.question.id): one for one in given})
        return given

    def assignment(self, one: Owed) -> Assignment:
        """A question with what is on disk of it."""
        place = (one.run, one.question.id)
        if place not in self._known:
            journal = self._journals[one.run]
            history = journal.history(one.question.id)
            self._known[place] = _Known(history, set(journal.written(one.question.id)))
        known = self._known[place]
        return Assignment(one.run, one.question.id, known.history, frozenset(known.written))

    def write(self, fact: Fact, seat: Seat) -> None:
        """Write down what a replica has sent."""
        place = (fact.run, fact.question_id)
        if fact.kind == "ended":
            solved, spared = fact.content
            self._observer.question_ended(solved=solved, spared=spared)
            self._left.discard(place)
            seat.held.pop(place, None)
            self._known.pop(place, None)
            return
        getattr(self._journals[fact.run], fact.kind)(*fact.content)
        self._known[place].add(fact)
        if fact.kind == "trial":
            (trial,) = fact.content
            self._observer.trial_ended(trial, fact.run)
