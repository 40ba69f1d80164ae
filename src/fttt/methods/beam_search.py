"""The most probable answers that a search of the budget's width finds."""

from __future__ import annotations

from fttt.methods.base import Method, Session
from fttt.types import Completion, Question

__all__ = ["BeamSearch"]


class BeamSearch(Method):
    """N beams, checked best first until one verifies.

    The search is over before the first verdict, so its whole cost is spent by then. A beam without
    an answer may be free, but no other takes its place.
    """

    name = "beam-search"
    summary = "one search of N beams, checked best first until one verifies"
    fixed = {"temperature": 0.0}  # noqa: RUF012 - the protocol's class attribute
    searches = True

    async def solve(self, question: Question, session: Session) -> None:
        beams: tuple[Completion, ...] = ()
        async for trial in session.trials():
            beams = beams or await trial.search(session.budget)
            verdict = await trial.verify(beams[trial.index])
            if verdict.correct or trial.index + 1 == len(beams):
                return
