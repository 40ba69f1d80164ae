"""What a learner is given in place of an attempt and its verdict, to see whether it uses them.

Each is the same again on resume: it depends on the seed, the question and the attempt's number, and
what had to be generated and judged for it is in the journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fttt.types import Completion, Judged, Outcome, Question, Verdict
from fttt.verifiers.verifier import feedback_on

__all__ = ["CONSTANT_ANSWER", "constant", "partner", "random_verdict", "shuffled"]

CONSTANT_ANSWER = "I do not know."
"""What every attempt says under ``constant``."""
_BITS = 32


def constant(answer: Completion) -> Judged:
    """The same wrong answer each time."""
    return Judged(answer, Verdict("incorrect", feedback=feedback_on("incorrect", None)))


def random_verdict(completion: Completion, verdict: Verdict, key: int) -> Judged:
    """The attempt and the verdict of a coin; a score becomes a uniform one from 0 to 1."""
    outcome: Outcome = "correct" if key & 1 else "incorrect"
    score = None if verdict.score is None else (key >> 1) % 2**_BITS / 2**_BITS
    said = replace(
        verdict,
        outcome=outcome,
        score=score,
        feedback=feedback_on(outcome, verdict.extracted),
        detail="",
        tests_passed=None,
        tests_total=None,
    )
    return Judged(completion, said)


def partner(question: Question, questions: Sequence[Question], key: int) -> Question:
    """Another question of the run, a different one for each."""
    own = next(n for n, one in enumerate(questions) if one.id == question.id)
    return questions[(own + 1 + key % (len(questions) - 1)) % len(questions)]


def shuffled(foreign: Completion, verdict: Verdict) -> Judged:
    """An attempt at another question; where it is right there, it is still wrong here."""
    if verdict.correct:
        said = feedback_on("incorrect", verdict.extracted)
        verdict = replace(verdict, outcome="incorrect", feedback=said)
    return Judged(foreign, verdict)
