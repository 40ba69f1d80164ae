"""What a test plays: a tiny task, a method on a scripted engine, and a command line."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from fttt.methods.base import Method
from fttt.models.chat import ChatFormat
from fttt.tasks.task import TaskOptions
from fttt.testing.fake_engine import FakeEngine, Script
from fttt.testing.tiny_models import tiny_tokenizer
from fttt.types import Ablation, Question, Trial, Usage, Verdict
from fttt.verifiers.verifier import Verifier, feedback_on

__all__ = ["Scene", "TinyTask", "TinyVerifier", "call", "play"]


class TinyVerifier:
    """Reads the last whole number of a completion; no number is no answer."""

    def __init__(self) -> None:
        self.closed = False

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Compare the last number with the question's gold."""
        answer = self.extract(question, completion)
        if answer is None:
            said = feedback_on("unanswered", None)
            return Verdict("unanswered", None, "no number in the completion", feedback=said)
        if answer == question.gold:
            return Verdict("correct", answer, feedback=feedback_on("correct", answer))
        said = feedback_on("incorrect", answer)
        return Verdict("incorrect", answer, f"expected {question.gold}", feedback=said)

    def extract(self, question: Question, completion: str) -> str | None:
        """The last whole number."""
        numbers = re.findall(r"\d+", completion)
        return numbers[-1] if numbers else None

    async def close(self) -> None:
        """Remember that the verifier was closed."""
        self.closed = True


class TinyTask:
    """Ten questions, each of which asks for a number."""

    name: ClassVar[str] = "tiny"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def load(self, options: TaskOptions) -> list[Question]:
        """The questions ``tiny/0`` to ``tiny/9``."""
        return [Question(f"tiny/{n}", f"Write the number {n}.", str(n)) for n in range(10)]

    def verifier(self) -> Verifier:
        """A verifier of numbers."""
        return TinyVerifier()


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
    ablate: Ablation | None = None,
    temperature: float | tuple[float, ...] | str = 0.6,
    think_tokens: int | None = None,
    template: str = "chatml",
    **budget: Any,
) -> Scene:
    """Let a method try one question on a scripted engine, inside a running event loop too.

    Args:
        method: the method, made with its settings.
        script: what the engine writes; see :class:`FakeEngine`.
        question: by default "Write the number 7.", whose gold is 7.
        verifier: by default a :class:`TinyVerifier`.
        seed: of the run.
        max_new_tokens: longest completion.
        max_length: longest conversation.
        idle: lanes that the engine says stand idle.
        ablate: what the method learns from in place of its attempts; not ``shuffle``, for which
            there is no second question.
        temperature: of sampling.
        think_tokens: the thinking budget.
        template: of the chats, see :func:`tiny_tokenizer`.
        budget: fields of the budget section: ``trials``, ``unanswered``, ``token_budget``,
            ``time_budget``.
    """
    from fttt.config import BudgetSection, SamplingSection, build
    from fttt.experiment.replay import RunContext
    from fttt.experiment.session import AdapterRoom, QuestionSession
    from fttt.methods import MethodSettings
    from fttt.progress import Quiet
    from fttt.store import MemoryJournal

    engine, journal = FakeEngine(script, max_length, idle, template), MemoryJournal()
    sampling = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "think_tokens": think_tokens,
    }
    tokenizer = tiny_tokenizer(template)
    run = RunContext(
        engine=engine,
        chat=ChatFormat(tokenizer),
        stop_ids=(tokenizer.eos_token_id,),
        verifier=verifier or TinyVerifier(),
        journal=journal,
        observer=Quiet(),
        seed=seed,
        sampling=build(SamplingSection, sampling, "play()"),
        budget=build(BudgetSection, budget, "play()"),
        adapter_spec=getattr(method, "settings", MethodSettings()).adapter(),
        method=method,
        ablate=ablate,
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

    with ThreadPoolExecutor(max_workers=1) as thread:  # a notebook runs an event loop in its own
        usage = thread.submit(asyncio.run, solve()).result()
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
