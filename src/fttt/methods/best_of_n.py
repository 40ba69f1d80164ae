"""Independent samples until one verifies."""

from __future__ import annotations

from fttt.methods.base import Method, Session
from fttt.types import Question

__all__ = ["BestOfN"]


class BestOfN(Method):
    """Sample anew after each wrong answer.

    The verifier knows the right answer, so this is pass@N with an oracle, not a way to choose among
    N answers without one.
    """

    name = "best-of-n"
    summary = "independent samples until one verifies (pass@N with an oracle)"
    fresh = True

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            verdict = await trial.verify(await trial.generate())
            if verdict.correct:
                return
