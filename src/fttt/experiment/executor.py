"""Where the questions of runs are asked: by one engine in this process, of weights or a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fttt.config import EngineSection
from fttt.engine import BatchedEngine
from fttt.engine.endpoint import EndpointEngine
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import Engine
from fttt.errors import FTTTError
from fttt.experiment.environment import describe_environment
from fttt.experiment.garbage import old_objects_left_alone
from fttt.experiment.held_sequences import TrialCounts
from fttt.experiment.plan import Plan, Settled, check_fits
from fttt.experiment.replay import Observer, RunContext
from fttt.experiment.session import AdapterRoom, QuestionSession
from fttt.experiment.waves import SharedAdapter
from fttt.models import ReadyModel, ServedModel
from fttt.store import Journal
from fttt.types import Question
from fttt.verifiers.verifier import Verifier

__all__ = [
    "Executor",
    "LocalExecutor",
    "MakeEngine",
    "Owed",
    "OwedQuestion",
    "ask_all",
    "ask_question",
    "first_leaf",
    "make_context",
    "make_engine",
]

_AT_ONCE = {"cpu": 32, "cuda": 1024, "endpoint": 32}
"""Questions in progress at once, where the batch size is left to the engine: twice its batch, so
that some are judged while others are written."""


class CountingEngine(Engine, Protocol):
    """An engine that says how many tokens it has generated so far."""

    @property
    def generated_tokens(self) -> int: ...


MakeEngine = Callable[[Sequence[Plan], ReadyModel], CountingEngine]


def make_engine(plans: Sequence[Plan], loaded: ReadyModel) -> CountingEngine:
    """The engine that all of ``plans``, which agree in their adapters, fit in.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
    """
    max_length = max(check_fits(plan, loaded) for plan in plans)
    if isinstance(loaded, ServedModel):
        at_once = _at_most(loaded, plans[0]) // 2
        return EndpointEngine(loaded, max_length=max_length, concurrency=at_once)
    widths = [_width(plan) for plan in plans]
    sequences = sum(len(p.questions) * width for p, width in zip(plans, widths, strict=True))
    at_once = _at_most(loaded, plans[0])
    learners = [plan for plan in plans if plan.adapter_spec is not None]
    own = [plan for plan in learners if not plan.method.shared]
    copies = _shared_copies(plans)
    shares = [_memory_share(plan.config.engine) for plan in plans]
    return BatchedEngine(
        loaded,
        max_length=max_length,
        batch_size=plans[0].config.engine.batch_size,
        concurrency=min(sequences, at_once),
        adapter=next((plan.adapter_spec for plan in learners), None),
        adapters=copies + sum(min(len(p.questions), at_once) * p.method.adapters for p in own),
        least_adapters=copies + max((p.method.adapters for p in own), default=0),
        beams=max(w if p.method.searches else 0 for p, w in zip(plans, widths, strict=True)),
        memory_share=min((share for share in shares if share is not None), default=None),
    )


def _memory_share(engine: EngineSection) -> float | None:
    """The part of the device's memory that may be held; a replica's part of a GPU is one too."""
    part = engine.gpus_per_replica
    return min(engine.memory_share or 1.0, part) if part < 1 else engine.memory_share


def _shared_copies(plans: Sequence[Plan]) -> int:
    """Adapters that the shared weights of the plans take, beside those of questions."""
    return SharedAdapter.COPIES * sum(plan.method.shared for plan in plans)


def _width(plan: Plan) -> int:
    """Sequences of one question that run at once."""
    method = plan.method
    if method.together or method.searches or method.fresh:
        return plan.config.budget.trials or 1
    return method.at_once


def make_context(
    plan: Plan,
    loaded: ReadyModel,
    engine: Engine,
    verifier: Verifier,
    journal: Journal,
    observer: Observer,
    number: int = 0,
) -> RunContext:
    """What the questions of a plan share; ``number`` is its own among those asked together."""
    config, spec, shared = plan.config, plan.adapter_spec, None
    if plan.method.shared:
        if spec is None or plan.method.together:
            raise TypeError(
                f"the method {plan.method.name!r} shares an adapter; its Settings derive from "
                "LoRASettings, and its trials are not together"
            )
        seed = derive_key("adapter", config.seed, "shared")
        ids = [question.id for question in plan.questions]
        shared = SharedAdapter(engine, spec, seed, ids, plan.method.ahead)
    return RunContext(
        engine=engine,
        chat=plan.chat(loaded),
        stop_ids=loaded.stop_ids,
        verifier=verifier,
        journal=journal,
        observer=observer,
        seed=config.seed,
        sampling=config.sampling,
        budget=config.budget,
        method=plan.method,
        adapter_spec=spec,
        shared=shared,
        ablate=config.ablate,
        questions=plan.questions,
        number=number,
        counts=TrialCounts() if loaded.device.startswith("cuda") else None,
    )


def _at_most(loaded: ReadyModel, plan: Plan) -> int:
    """Questions in progress at once."""
    batch_size = plan.config.engine.batch_size or plan.config.engine.concurrency
    return 2 * batch_size if batch_size else _AT_ONCE[loaded.device.split(":")[0]]


@dataclass(frozen=True, slots=True)
class Owed:
    """A question that is not done, and whose it is."""

    run: int
    """Number of its run among those that are asked together."""
    question: Question


class Executor(Protocol):
    """Where the questions of runs are asked; plans that agree in their adapters are asked at once.

    :meth:`release` follows each :meth:`prepare`, whatever has happened between them.
    """

    @property
    def generated_tokens(self) -> int:
        """How many tokens have been generated since :meth:`prepare`."""

    @property
    def size(self) -> str:
        """What :meth:`prepare` has planned of memory, for people; empty where it is not known."""

    @property
    def lanes(self) -> int:
        """Sequences that run at once; 0 where that is not known."""

    def rendered(
        self, prompts: Sequence[str], arguments: Mapping[str, Any]
    ) -> Sequence[str | None]:
        """What the chat template makes of each prompt now, under arguments of its own.

        ``None`` where a server has the template.
        """

    def check_fits(self, plan: Plan) -> None:
        """Refuse a plan with a question that does not fit the model's context.

        Raises:
            UsageError: one does not.
        """

    def describe(self, settled: Settled) -> dict[str, Any]:
        """The content of ``environment.json``."""

    def prepare(self, plans: Sequence[Plan]) -> None:
        """Make ready to ask the questions of plans.

        Raises:
            UsageError: the memory does not suffice.
        """

    async def ask(
        self,
        owed: Sequence[Owed],
        journals: Sequence[Journal],
        observer: Observer,
        stop: asyncio.Event,
    ) -> bool:
        """Ask every question, until ``stop`` is set; return whether all were asked to their end.

        Args:
            owed: the questions.
            journals: of the prepared plans, in their order.
            observer: is told of trials and questions that end.
            stop: is set to stop early; what has ended is in the journals.

        Raises:
            FTTTError: the first error of any question; the others were stopped.
        """

    async def release(self) -> None:
        """Give back what :meth:`prepare` has taken."""


class LocalExecutor:
    """One model, and one engine in this process at a time. Implements :class:`Executor`."""

    def __init__(
        self,
        loaded: ReadyModel,
        make_engine: MakeEngine = make_engine,
        *,
        keeps_verifiers: bool = False,
    ) -> None:
        """Take a loaded model.

        Args:
            loaded: the model.
            make_engine: makes another engine than the batched one.
            keeps_verifiers: whether the verifiers stay open, as somebody else's.
        """
        self._loaded = loaded
        self._keeps_verifiers = keeps_verifiers
        self._make_engine = make_engine
        self._engine: CountingEngine | None = None
        self._plans: Sequence[Plan] = ()
        self._verifiers: list[Verifier] = []
        self.runs: list[RunContext] = []
        """What the questions of each prepared plan share, once they may be asked."""

    @property
    def generated_tokens(self) -> int:
        return 0 if self._engine is None else self._engine.generated_tokens

    @property
    def size(self) -> str:
        return self._engine.plan.describe() if isinstance(self._engine, BatchedEngine) else ""

    @property
    def lanes(self) -> int:
        if isinstance(self._engine, BatchedEngine):
            return self._engine.plan.batch_size
        return self._engine.concurrency if isinstance(self._engine, EndpointEngine) else 0

    def rendered(
        self, prompts: Sequence[str], arguments: Mapping[str, Any]
    ) -> Sequence[str | None]:
        chat = self._loaded.chat.with_arguments(arguments)
        return [chat.rendered(prompt) for prompt in prompts]

    def check_fits(self, plan: Plan) -> None:
        check_fits(plan, self._loaded)

    def describe(self, settled: Settled) -> dict[str, Any]:
        return describe_environment(self._loaded, settled)

    def prepare(self, plans: Sequence[Plan]) -> None:
        # verifiers first: one that holds a model leaves the engine so much less memory
        self._plans, self._verifiers = plans, [plan.task.verifier() for plan in plans]
        self._engine = self._make_engine(plans, self._loaded)

    async def ask(
        self,
        owed: Sequence[Owed],
        journals: Sequence[Journal],
        observer: Observer,
        stop: asyncio.Event,
    ) -> bool:
        room = self.begin(journals, observer)
        asked = [OwedQuestion(one.question, self.runs[one.run], room) for one in owed]
        with old_objects_left_alone():
            return await ask_all(asked, workers=self.workers(len(owed)), stop=stop)

    def begin(self, journals: Sequence[Journal], observer: Observer) -> AdapterRoom:
        """Make what the questions of each run share, and the room of their adapters."""
        assert self._engine is not None
        sides = zip(self._plans, self._verifiers, journals, strict=True)
        for number, (plan, verifier, journal) in enumerate(sides):
            context = make_context(
                plan, self._loaded, self._engine, verifier, journal, observer, number
            )
            self.runs.append(context)
        return AdapterRoom(self._engine.adapters - _shared_copies(self._plans))

    def workers(self, owed: int) -> int:
        """Questions in progress at once: all of them where they wait for one another's waves."""
        if any(plan.method.shared for plan in self._plans):
            return owed
        return _at_most(self._loaded, self._plans[0])

    async def release(self) -> None:
        for run in self.runs:
            if run.shared is not None:
                await run.shared.close()
        if self._engine is not None:
            await self._engine.close()
        for verifier in () if self._keeps_verifiers else self._verifiers:
            await verifier.close()
        self._engine, self._plans, self._verifiers, self.runs = None, (), [], []


@dataclass(frozen=True)
class OwedQuestion:
    """One question that is owed."""

    question: Question
    run: RunContext
    room: AdapterRoom


async def ask_all(owed: Sequence[OwedQuestion], *, workers: int, stop: asyncio.Event) -> bool:
    """Ask every question, ``workers`` of them at once, until ``stop`` is set.

    Returns whether every question was asked to its end.

    Raises:
        FTTTError: the first error of any question; the others were stopped.
    """
    queue = iter(owed)

    async def work() -> None:
        for one in queue:
            await ask_question(one)

    tasks = [asyncio.create_task(work()) for _ in range(min(workers, len(owed)))]
    everything = asyncio.gather(*tasks)
    stopper = asyncio.create_task(stop.wait())
    first: set[asyncio.Future[Any]] = {everything, stopper}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if everything.done():
            everything.result()
        return everything.done()
    except BaseExceptionGroup as group:  # from a method with a task group of its own
        raise first_leaf(group) from group
    finally:
        for task in (*tasks, stopper):
            task.cancel()
        await asyncio.gather(*tasks, stopper, everything, return_exceptions=True)


async def ask_question(one: OwedQuestion) -> None:
    """Ask a question to its end."""
    session = QuestionSession(one.question, one.run, one.room)
    try:
        await one.run.method.solve(one.question, session)
        session.leave()
    finally:
        session.close()
    if not one.run.journal.history(one.question.id).done:
        one.run.journal.done(one.question.id)
    ledger = session.ledger
    spared = max(0, (one.run.budget.trials or 0) - ledger.handed_out)
    one.run.observer.question_ended(solved=ledger.solved, spared=spared)


def first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of several: one that was raised on purpose, if there is one."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(first_leaf(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, FTTTError)), leaves[0])
