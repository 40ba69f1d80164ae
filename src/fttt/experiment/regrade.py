"""Verdicts again from stored completions, without a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from fttt.config import RunConfig, build
from fttt.experiment.plan import task_of
from fttt.store import Run, RunWriter, check_free
from fttt.types import Question, Trial, Verdict
from fttt.verifiers.verifier import Verifier, extract_answer, verify_completion

__all__ = ["Change", "regrade"]

_AT_ONCE = 64


@dataclass(frozen=True)
class Change:
    """A trial whose verdict is another one now."""

    before: Trial
    after: Trial


def regrade(run: Run, out: Path) -> tuple[Run, list[Change]]:
    """Judge every stored completion again and write a copy of the run with the new verdicts.

    Which trials were made stays as it was: a question that was solved too early by a wrong verdict
    has no more of them, and one that continued after a right answer keeps the later ones. The copy
    of an unfinished run is unfinished.

    Raises:
        UsageError: the folder is broken or ``out`` is not empty.
        RunError: nothing can be judged (the judge is down), or ``out`` cannot be written.
    """
    check_free(out)
    config = build(RunConfig, run.config, f"{run.path}/config.toml")
    verifier = task_of(config).verifier()
    graded = asyncio.run(_judge(run, verifier, config.budget.until))
    environment = {**run.environment, "regraded_from": str(run.path)}
    writer = RunWriter.create(
        out,
        config=run.config,
        environment=environment,
        questions=run.questions,
        heading=f"# regraded from {run.path}\n",
    )
    try:
        writer.copy_journal(run)
        for trial, verdict in graded:
            writer.verdict(trial.question_id, trial.generation, verdict)
            writer.trial(trial)
        if not run.owed and not run.lost:
            writer.finish()
    finally:
        writer.close()
    regraded = Run.open(out)
    pairs = zip(run.trials, graded, strict=True)
    return regraded, [Change(old, new) for old, (new, _) in pairs if old.verdict != new.verdict]


async def _judge(run: Run, verifier: Verifier, until: float | None) -> list[tuple[Trial, Verdict]]:
    """Each trial with its new verdict, and that verdict."""
    questions = {question.id: question for question in run.questions}
    room = asyncio.Semaphore(_AT_ONCE)

    async def again(trial: Trial) -> tuple[Trial, Verdict]:
        async with room:
            return await _again(run, trial, questions[trial.question_id], verifier, until)

    try:
        return list(await asyncio.gather(*(again(trial) for trial in run.trials)))
    finally:
        await verifier.close()


async def _again(
    run: Run, trial: Trial, question: Question, verifier: Verifier, until: float | None
) -> tuple[Trial, Verdict]:
    cut, thought = trial.finish_reason == "length", trial.thought
    verdict = await verify_completion(
        verifier, question, trial.completion, cut=cut, thought=thought
    )
    verdict = verdict.reaching(until)
    extracted = verdict.extracted
    if run.decided_by == "vote":
        # the normal form, which is voted on
        extracted = extract_answer(verifier, question, trial.completion, cut=cut, thought=thought)
    again = replace(
        trial,
        verdict=verdict.outcome,
        extracted=extracted,
        detail=verdict.detail,
        score=verdict.score,
        tests_passed=verdict.tests_passed,
        tests_total=verdict.tests_total,
        failed=verdict.failed,
    )
    return again, verdict
