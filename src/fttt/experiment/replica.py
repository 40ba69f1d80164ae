"""A replica: a model and the coroutines of some questions, in a process that writes no run folder.

What happens there is sent as facts to the driver, which writes them down and says so: until then
no question takes its next step. Facts, questions and acknowledgements travel in one exchange, which
the driver asks for again and again.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch

from fttt.config import RunConfig, build
from fttt.errors import FTTTError
from fttt.experiment.environment import code_fingerprint, package_versions
from fttt.experiment.executor import (
    LocalExecutor,
    MakeEngine,
    OwedQuestion,
    ask_question,
    first_leaf,
    make_engine,
)
from fttt.experiment.garbage import old_objects_left_alone
from fttt.experiment.plan import Plan, load, settle
from fttt.experiment.session import AdapterRoom
from fttt.store import DivergenceEvent, GenerationEvent, History, ScoreEvent
from fttt.types import Completion, Question, Scores, Trial, Usage, Verdict

__all__ = ["About", "Assignment", "Fact", "Orders", "PlannedRun", "Replica", "Report"]

_PULSE = 1.0
"""Seconds after which an exchange is answered though nothing has happened."""
_APART = 0.02
"""Seconds between two answers, at least: each costs about a millisecond of both processes."""


Kind = Literal["generation", "score", "divergence", "verdict", "trial", "done", "ended"]
"""Of a fact: the method of a journal that takes it, or the end of a question."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is to be written down: a call of a journal, or the end of a question."""

    run: int
    question_id: str
    kind: Kind
    content: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """A question for a replica, with what is on disk of it."""

    run: int
    question_id: str
    history: History
    written: frozenset[int]


@dataclass(frozen=True, slots=True)
class Orders:
    """What the driver says in an exchange."""

    kept: int
    """How many facts of this replica are on disk, of all that it has sent."""
    questions: tuple[Assignment, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica answers in an exchange."""

    packed: bytes
    generated_tokens: int
    error: BaseException | None = None
    """The first error of a question, with which the run ends."""

    @classmethod
    def of(
        cls,
        facts: Sequence[Fact],
        generated_tokens: int = 0,
        error: BaseException | None = None,
    ) -> Report:
        """Pack what is said; Ray's own pickler asks Python about each object of each fact."""
        buffer = BytesIO()
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _BY_FIELDS
        pickler.dump(tuple(facts))
        return cls(buffer.getvalue(), generated_tokens, error)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """What has happened, in its order."""
        found: tuple[Fact, ...] = pickle.loads(self.packed)
        return found


def _by_fields(kind: Any) -> Callable[[Any], tuple[Any, tuple[Any, ...]]]:
    """How an object of a dataclass is packed, a third of the work of its own way."""
    values = attrgetter(*(field.name for field in fields(kind)))
    return lambda thing: (kind, values(thing))


_BY_FIELDS: dict[type, Callable[[Any], Any]] = {
    kind: _by_fields(kind)
    for kind in (
        *(Fact, GenerationEvent, ScoreEvent, DivergenceEvent),
        *(Completion, Scores, Verdict, Trial, Usage),
    )
}
"""Of all that a fact holds."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A plan as it travels: by names, so that a replica refuses what its machine does not have."""

    config: Mapping[str, Any]
    questions: tuple[Question, ...]
    objects: Mapping[str, Any]
    """A method and a task that have no names."""

    @classmethod
    def of(cls, plan: Plan) -> PlannedRun:
        """The run of a plan."""
        return cls(plan.config.to_toml(), plan.questions, plan.settled.objects)

    def plan(self) -> Plan:
        """The plan in this process.

        Raises:
            UsageError: something that it names is not here.
        """
        config = build(RunConfig, self.config, "the settings")
        return Plan(settle(config, **self.objects), self.questions)


@dataclass(frozen=True, slots=True)
class About:
    """Where a replica runs, and by what."""

    host: str
    pid: int
    versions: Mapping[str, str]
    unseen: tuple[str, ...]
    """Of the files and folders that the driver named: those that are not here."""


class Outbox:
    """Facts on their way to the driver, in their order."""

    def __init__(self) -> None:
        self._facts: list[Fact] = []
        self._put = self._kept = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.stirred = asyncio.Event()
        """Something is to be reported."""

    def put(self, fact: Fact) -> int:
        """Send a fact with the next exchange; return its number, from 1."""
        self._facts.append(fact)
        self._put += 1
        self.stirred.set()
        return self._put

    def take(self) -> tuple[Fact, ...]:
        """The facts that are not sent yet."""
        facts, self._facts = tuple(self._facts), []
        self.stirred.clear()
        return facts

    def keep(self, count: int) -> None:
        """Note that the first ``count`` facts are on disk."""
        self._kept = count
        due = [future for number, future in self._waiting if number <= count]
        self._waiting = [(number, future) for number, future in self._waiting if number > count]
        for future in due:
            if not future.done():
                future.set_result(None)

    async def kept(self, number: int) -> None:
        """Wait until the fact of a number is on disk, and so all before it."""
        if number > self._kept:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((number, future))
            await future


class SentJournal:
    """The journal of a run whose writer is elsewhere, for the questions that are assigned here."""

    def __init__(self, run: int, outbox: Outbox) -> None:
        self._run, self._outbox = run, outbox
        self.assigned: dict[str, Assignment] = {}
        self._latest: dict[str, int] = {}
        """The last fact of a question that its next step waits for."""

    def history(self, question_id: str) -> History:
        return self.assigned[question_id].history

    def written(self, question_id: str) -> frozenset[int]:
        return self.assigned[question_id].written

    def generation(self, event: GenerationEvent) -> None:
        self._put(event.question_id, "generation", event)

    def score(self, event: ScoreEvent) -> None:
        self._put(event.question_id, "score", event)

    def divergence(self, event: DivergenceEvent) -> None:
        self._put(event.question_id, "divergence", event)

    def verdict(self, question_id: str, generation: int, verdict: Verdict) -> None:
        self._put(question_id, "verdict", question_id, generation, verdict)

    def trial(self, trial: Trial) -> None:
        self._outbox.put(Fact(self._run, trial.question_id, "trial", (trial,)))

    def done(self, question_id: str) -> None:
        self._outbox.put(Fact(self._run, question_id, "done", (question_id,)))

    async def kept(self, question_id: str) -> None:
        await self._outbox.kept(self._latest.get(question_id, 0))

    def end(self, question_id: str, *, solved: bool, spared: int) -> None:
        """Send that a question has ended, and forget it."""
        del self.assigned[question_id]
        self._latest.pop(question_id, None)
        self._outbox.put(Fact(self._run, question_id, "ended", (solved, spared)))

    def _put(self, question_id: str, kind: Kind, *content: Any) -> None:
        """Send a fact that the question's next step waits for."""
        self._latest[question_id] = self._outbox.put(Fact(self._run, question_id, kind, content))


class _Ending:
    """Observes how one question ends; the driver counts trials as it writes them."""

    def __init__(self) -> None:
        self.solved, self.spared = False, 0

    def trial_ended(self, trial: Trial, run: int = 0) -> None:
        pass

    def question_ended(self, *, solved: bool, spared: int) -> None:
        self.solved, self.spared = solved, spared


class Replica:
    """Asks questions with a model of its own; the driver calls its methods.

    :meth:`prepare` and :meth:`release` enclose the exchanges about some runs.
    """

    def __init__(
        self,
        folder: str,
        environ: Mapping[str, str],
        make_engine: MakeEngine = make_engine,
        threads: int | None = None,
    ) -> None:
        """Work in the driver's folder, where there is one, with its variables of the environment.

        Args:
            folder: the driver's working directory.
            environ: variables to set.
            make_engine: as for :class:`LocalExecutor`.
            threads: most that an operation on the CPU has, whatever ``OMP_NUM_THREADS`` says of the
                whole machine: replicas whose threads share cores wait for each other.
        """
        os.environ.update(environ)
        if threads is not None:
            torch.set_num_threads(min(threads, torch.get_num_threads()))
        if Path(folder).is_dir():
            os.chdir(folder)
        if "" not in sys.path:
            sys.path.insert(0, "")  # where the driver finds a user's own methods
        self._make_engine = make_engine
        self._executor: LocalExecutor | None = None
        self._outbox = Outbox()
        self._journals: list[SentJournal] = []
        self._questions: list[dict[str, Question]] = []
        self._room: AdapterRoom | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._while_asking = ExitStack()
        self._error: BaseException | None = None
        self._answered = 0.0
        """When the last exchange was answered, by the loop's clock."""

    def about(self, needed: Sequence[str] = ()) -> About:
        """Say where this is, and which of the ``needed`` paths are not here."""
        unseen = tuple(path for path in needed if not Path(path).exists())
        return About(platform.node(), os.getpid(), self.versions(), unseen)

    @staticmethod
    def versions() -> dict[str, str]:
        """What must be the same in all processes of a run."""
        found = {name: text.partition("+")[0] for name, text in package_versions().items()}
        python = platform.python_version()
        return {"Python": python, **found, "the code of fttt": code_fingerprint()}

    def load(self, config: Mapping[str, Any]) -> None:
        """Load the model of a config, in the place of the one before.

        Raises:
            UsageError: there is none, or its device or dtype does not exist here.
            RunError: it does not fit.
        """
        self._executor = None
        loaded = load(build(RunConfig, config, "the settings"))
        self._executor = LocalExecutor(loaded, self._make_engine)

    def rendered(
        self, prompts: Sequence[str], arguments: Mapping[str, Any]
    ) -> Sequence[str | None]:
        """What the chat template makes of each prompt now, under arguments of its own."""
        return self._local.rendered(prompts, arguments)

    def check_fits(self, run: PlannedRun) -> None:
        """As :meth:`fttt.experiment.executor.Executor.check_fits`."""
        self._local.check_fits(run.plan())

    def describe(self, run: PlannedRun) -> dict[str, Any]:
        """The content of ``environment.json`` but for the replicas."""
        return self._local.describe(run.plan().settled)

    async def prepare(self, runs: Sequence[PlannedRun]) -> int:
        """Make ready to ask the questions of runs; return how many at once.

        Raises:
            UsageError: the memory does not suffice.
        """
        await self.release()
        self._local.prepare([run.plan() for run in runs])
        self._outbox = Outbox()
        self._journals = [SentJournal(number, self._outbox) for number in range(len(runs))]
        self._questions = [{question.id: question for question in run.questions} for run in runs]
        self._room = self._local.begin(self._journals, _Ending())
        self._while_asking.enter_context(old_objects_left_alone())
        return self._local.workers(sum(map(len, self._questions)))

    async def exchange(self, orders: Orders) -> Report:
        """Take orders; report what has happened as soon as something has."""
        outbox = self._outbox
        outbox.keep(orders.kept)
        for assignment in orders.questions:
            self._journals[assignment.run].assigned[assignment.question_id] = assignment
            task = asyncio.create_task(self._ask(assignment))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(_PULSE):
                await outbox.stirred.wait()
        except TimeoutError:
            pass
        loop = asyncio.get_running_loop()
        if (left := self._answered + _APART - loop.time()) > 0:
            await asyncio.sleep(left)
        self._answered = loop.time()
        return Report.of(outbox.take(), self._local.generated_tokens, self._error)

    async def release(self) -> None:
        """Stop what is asked, and give back what :meth:`prepare` has taken."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._error = self._room = None
        self._while_asking.close()
        if self._executor is not None:
            await self._executor.release()

    @property
    def _local(self) -> LocalExecutor:
        assert self._executor is not None
        return self._executor

    async def _ask(self, assignment: Assignment) -> None:
        """Ask one question; its first error is the run's."""
        number, question_id = assignment.run, assignment.question_id
        ending = _Ending()
        try:
            assert self._room is not None
            run = replace(self._local.runs[number], observer=ending)
            await ask_question(OwedQuestion(self._questions[number][question_id], run, self._room))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._error = self._error or _sendable(error)
            self._outbox.stirred.set()
            return
        self._journals[number].end(question_id, solved=ending.solved, spared=ending.spared)


def _sendable(error: BaseException) -> BaseException:
    """The error as it can travel: those raised on purpose as they are."""
    if isinstance(error, BaseExceptionGroup):  # from a method with a task group of its own
        error = first_leaf(error)
    if isinstance(error, FTTTError):
        return error
    text = "".join(traceback.format_exception(error))
    return RuntimeError(f"{type(error).__name__}: {error}\nOn the replica:\n{text}")
