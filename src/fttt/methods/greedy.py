"""One answer at temperature 0."""

from __future__ import annotations

from fttt.methods.base import Method, Session
from fttt.types import Question

__all__ = ["Greedy"]


class Greedy(Method):
    """The most probable token at each step, once. What it fails are the *hard* questions."""

    name = "greedy"
    summary = "temperature 0, one trial; saves which questions it solved for --skip-cases"
    fixed = {"trials": 1, "temperature": 0.0}  # noqa: RUF012 - the protocol's class attribute

    async def solve(self, question: Question, session: Session) -> None:
        async for trial in session.trials():
            await trial.verify(await trial.generate(temperature=0.0))
