"""What a test plays: a method on an engine that follows a script, and a command line."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from fttt.methods.base import Method
from fttt.models.chat import ChatFormat
from fttt.tasks.task import TaskOptions
from fttt.testing.fake_engine import FakeEngine, Script
from fttt.testing.tiny_models import tiny_tokenizer
from fttt.testing.tiny_task import TinyTask, TinyVerifier
from fttt.types import Question, Trial, Usage
from fttt.verifiers.verifier import Verifier

__all__ = ["Scene", "call", "play"]


@dataclass(frozen=True)
class Scene:
    """What a method did when it was played."""

    engine: FakeEngine
    trials: tuple[Trial, ...]
    usage: Usage
    """All that was spent, in the ledger's own count."""


def play(
    method: Method,
    script: Script,
    *,
    question: Question | None = None,
    verifier: Verifier | None = None,
    seed: int = 42,
    max_new_tokens: int = 256,
    max_length: int = 8192,
    idle: int = 0,
    **budget: Any,
) -> Scene:
    """Let a method try one question on a scripted engine.

    Args:
        method: the method, made with its settings.
        script: what the engine writes; see :class:`FakeEngine`.
        question: by default "Write the number 7.", whose gold is 7.
        verifier: by default a :class:`TinyVerifier`.
        seed: of the run.
        max_new_tokens: longest completion.
        max_length: longest conversation.
        idle: lanes that the engine says stand idle.
        budget: fields of the budget section: ``trials``, ``unanswered``, ``token_budget``,
            ``time_budget``.
    """
    from fttt.config import BudgetSection, SamplingSection, build
    from fttt.experiment.replay import RunContext
    from fttt.experiment.session import AdapterRoom, QuestionSession
    from fttt.methods import MethodSettings
    from fttt.progress import Quiet
    from fttt.store import MemoryJournal

    engine, journal = FakeEngine(script, max_length, idle), MemoryJournal()
    sampling = {"max_new_tokens": max_new_tokens}
    run = RunContext(
        engine=engine,
        chat=ChatFormat(tiny_tokenizer()),
        stop_ids=(2,),
        verifier=verifier or TinyVerifier(),
        journal=journal,
        observer=Quiet(),
        seed=seed,
        sampling=build(SamplingSection, sampling, "play()"),
        budget=build(BudgetSection, budget, "play()"),
        adapter_spec=getattr(method, "settings", MethodSettings()).adapter(),
        method=method,
    )
    asked = question or TinyTask().load(TaskOptions())[7]

    async def solve() -> Usage:
        session = QuestionSession(asked, run, AdapterRoom(engine.adapters))
        try:
            await method.solve(asked, session)
            session.leave()
        finally:
            session.close()
        return session.ledger.usage

    usage = asyncio.run(solve())
    return Scene(engine, tuple(journal.trials), usage)


def call(*words: str) -> int:
    """Run ``fttt`` with these words, in a process that has loaded torch already.

    Returns:
        Its exit status: 0 done, 2 a usage error, 1 a failed run.
    """
    from fttt.cli import main

    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    raise AssertionError("a command line ends with an exit status")
