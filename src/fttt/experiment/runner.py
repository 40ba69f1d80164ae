"""Many questions at once: the runs of one or more plans on one loaded model."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fttt.engine import BatchedEngine
from fttt.engine.ops.sampling import derive_key
from fttt.engine.request import AdapterSpec, Engine
from fttt.errors import FTTTError, RunError
from fttt.experiment.cases import save_cases
from fttt.experiment.environment import describe_environment
from fttt.experiment.plan import Plan, check_fits
from fttt.experiment.replay import Observer, RunContext
from fttt.experiment.session import AdapterRoom, QuestionSession
from fttt.experiment.waves import SharedAdapter
from fttt.models import LoadedModel
from fttt.progress import Progress
from fttt.store import Journal, Run, RunWriter, solved_within
from fttt.types import Question
from fttt.verifiers.verifier import Verifier

__all__ = [
    "Cell",
    "MakeEngine",
    "StoppedError",
    "ask_all",
    "make_context",
    "make_engine",
    "run_cells",
]

_AT_ONCE = {"cpu": 32, "cuda": 1024}
"""Questions in progress at once, where the batch size is left to the engine: twice its batch, so
that some are judged while others are written."""


class StoppedError(RunError):
    """Ctrl-C: the run stopped cleanly and can be resumed."""

    exit_code = 130


class CountingEngine(Engine, Protocol):
    """An engine that says how many tokens it has generated so far."""

    @property
    def generated_tokens(self) -> int: ...


MakeEngine = Callable[[Sequence[Plan], LoadedModel], CountingEngine]


@dataclass(frozen=True)
class Cell:
    """A plan and the folder that it runs in."""

    plan: Plan
    folder: Path
    resume: bool = False

    def open(self, loaded: LoadedModel) -> RunWriter:
        """Begin the folder, or resume it."""
        if self.resume:
            return RunWriter(self.folder)
        return RunWriter.create(
            self.folder,
            config=self.plan.config.to_toml(),
            environment=describe_environment(loaded, self.plan.settled),
            questions=self.plan.questions,
            heading="# fttt run --recipe config.toml\n",
        )


@dataclass(frozen=True)
class OwedQuestion:
    """One question that is owed."""

    question: Question
    run: RunContext
    room: AdapterRoom


def make_engine(plans: Sequence[Plan], loaded: LoadedModel) -> CountingEngine:
    """The engine that all of ``plans``, which agree in their adapters, fit in.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
    """
    widths = [_width(plan) for plan in plans]
    sequences = sum(len(p.questions) * width for p, width in zip(plans, widths, strict=True))
    at_once = _at_most(loaded, plans[0])
    learners = [plan for plan in plans if plan.adapter_spec is not None]
    own = [plan for plan in learners if not plan.method.shared]
    copies = _shared_copies(plans)
    return BatchedEngine(
        loaded,
        max_length=max(check_fits(plan, loaded) for plan in plans),
        batch_size=plans[0].config.engine.batch_size,
        concurrency=min(sequences, at_once),
        adapter=next((plan.adapter_spec for plan in learners), None),
        adapters=copies + sum(min(len(p.questions), at_once) * p.method.adapters for p in own),
        least_adapters=copies + max((p.method.adapters for p in own), default=0),
        beams=max(w if p.method.searches else 0 for p, w in zip(plans, widths, strict=True)),
    )


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
    loaded: LoadedModel,
    engine: Engine,
    verifier: Verifier,
    journal: Journal,
    observer: Observer,
) -> RunContext:
    """What the questions of a plan share."""
    config, spec, shared = plan.config, plan.adapter_spec, None
    if plan.method.shared:
        if spec is None or plan.method.together:
            raise TypeError(
                f"the method {plan.method.name!r} shares an adapter; its Settings derive from "
                "LoRASettings, and its trials are not together"
            )
        seed = derive_key("adapter", config.seed, "shared")
        shared = SharedAdapter(engine, spec, seed, [question.id for question in plan.questions])
    return RunContext(
        engine=engine,
        chat=loaded.chat,
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
    )


def run_cells(
    cells: Sequence[Cell],
    loaded: LoadedModel,
    progress: Progress,
    *,
    make_engine: MakeEngine = make_engine,
) -> list[Run]:
    """Run the questions of all cells in the batches of one engine; return the finished runs.

    Cells whose adapters differ in shape or optimizer take an engine each, one after the other.

    Raises:
        UsageError: a question does not fit the model's context, or the memory does not suffice.
        RunError: a run failed; what was finished is on disk.
        StoppedError: stopped by Ctrl-C.
    """
    cells = _rendered(cells, loaded)
    for cell in cells:
        check_fits(cell.plan, loaded)  # all of them, before the first begins
    runs: dict[int, Run] = {}
    for members in _by_adapter(cells):
        group = [cells[n] for n in members]
        engine = make_engine([cell.plan for cell in group], loaded)
        runs.update(zip(members, _Group(group, loaded, engine, progress).run(), strict=True))
    return [runs[n] for n in range(len(cells))]


def _rendered(cells: Sequence[Cell], loaded: LoadedModel) -> list[Cell]:
    """The cells with each question as the chat template writes it now, where it is not known."""
    known: dict[str, str] = {}

    def rendered(question: Question) -> Question:
        if question.rendered is not None:
            return question
        if question.prompt not in known:
            known[question.prompt] = loaded.chat.rendered(question.prompt)
        return replace(question, rendered=known[question.prompt])

    return [
        replace(cell, plan=replace(cell.plan, questions=tuple(map(rendered, cell.plan.questions))))
        for cell in cells
    ]


class _Group:
    """The cells that share one engine."""

    def __init__(
        self,
        cells: Sequence[Cell],
        loaded: LoadedModel,
        engine: CountingEngine,
        progress: Progress,
    ) -> None:
        self.cells = cells
        self.loaded = loaded
        self.engine = engine
        self.progress = progress
        self.writers: list[RunWriter] = []

    def run(self) -> list[Run]:
        """Ask what is owed and sum up; the engine and the folders are let go in any case."""
        try:
            asyncio.run(self._run())
            return [self._finish(*pair) for pair in zip(self.cells, self.writers, strict=True)]
        finally:
            for writer in self.writers:
                writer.close()

    async def _run(self) -> None:
        runs: list[RunContext] = []
        copies = _shared_copies([cell.plan for cell in self.cells])
        room = AdapterRoom(self.engine.adapters - copies)
        try:
            for cell in self.cells:
                self.writers.append(cell.open(self.loaded))
                verifier = cell.plan.task.verifier()
                runs.append(
                    make_context(
                        cell.plan,
                        self.loaded,
                        self.engine,
                        verifier,
                        self.writers[-1],
                        self.progress,
                    )
                )
            owed = [
                OwedQuestion(question, run, room)
                for cell, run in zip(self.cells, runs, strict=True)
                for question in cell.plan.questions
                # an adapter of all questions is learned again from all of them
                if run.shared is not None or not run.journal.history(question.id).done
            ]
            trials = sum(_owed(one) for one in owed)
            stop = asyncio.Event()
            with _stop_signals(stop.set):
                async with self.progress.watching(self.engine, len(owed), trials):
                    finished = await ask_all(owed, workers=self._workers(owed), stop=stop)
        finally:
            for run in runs:
                if run.shared is not None:
                    await run.shared.close()
            await self.engine.close()
            for run in runs:
                await run.verifier.close()
        if not finished:
            raise StoppedError("The run was stopped; all that had ended is on disk.")

    def _workers(self, owed: Sequence[OwedQuestion]) -> int:
        """Questions in progress at once: all of them where they wait for one another's waves."""
        if any(one.run.shared is not None for one in owed):
            return len(owed)
        return _at_most(self.loaded, self.cells[0].plan)

    def _finish(self, cell: Cell, writer: RunWriter) -> Run:
        run = writer.finish()
        if cell.plan.cases_file is not None:
            solved = [
                record.question.id
                for record in run.records
                if solved_within(
                    record.trials, decided_by=run.decided_by, unanswered=run.unanswered
                )
            ]
            save_cases(cell.plan.cases_file, [q.id for q in run.questions], solved)
        return run


async def ask_all(owed: Sequence[OwedQuestion], *, workers: int, stop: asyncio.Event) -> bool:
    """Ask every question, ``workers`` of them at once, until ``stop`` is set.

    Returns whether every question was asked to its end.

    Raises:
        FTTTError: the first error of any question; the others were stopped.
    """
    queue = iter(owed)

    async def work() -> None:
        for one in queue:
            await _ask(one)

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
        raise _first_leaf(group) from group
    finally:
        for task in (*tasks, stopper):
            task.cancel()
        await asyncio.gather(*tasks, stopper, everything, return_exceptions=True)


async def _ask(one: OwedQuestion) -> None:
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


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show of several: one that was raised on purpose, if there is one."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(_first_leaf(error) if isinstance(error, BaseExceptionGroup) else error)
    return next((error for error in leaves if isinstance(error, FTTTError)), leaves[0])


def _owed(one: OwedQuestion) -> int:
    """Trials that a question may still need; 0 where tokens or seconds are its budget."""
    written = len(one.run.journal.written(one.question.id))
    return max(0, (one.run.budget.trials or 0) - written)


def _by_adapter(cells: Sequence[Cell]) -> list[list[int]]:
    """Cells that can share an engine; those without an adapter go with the first others."""
    groups: dict[AdapterSpec, list[int]] = {}
    plain: list[int] = []
    for number, cell in enumerate(cells):
        if cell.plan.adapter_spec is None:
            plain.append(number)
        else:
            groups.setdefault(cell.plan.adapter_spec, []).append(number)
    if not groups:
        return [plain]
    first = next(iter(groups))
    groups[first] = sorted([*groups[first], *plain])
    return list(groups.values())


def _at_most(loaded: LoadedModel, plan: Plan) -> int:
    """Questions in progress at once."""
    batch_size = plan.config.engine.batch_size
    return 2 * batch_size if batch_size else _AT_ONCE[loaded.device.split(":")[0]]


@contextmanager
def _stop_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into ``stop()``; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    loop = asyncio.get_running_loop()
    asked = False

    def handle() -> None:
        nonlocal asked
        if asked:
            os._exit(StoppedError.exit_code)
        asked = True
        stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
