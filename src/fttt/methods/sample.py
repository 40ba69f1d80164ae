"""Independent samples, all of them judged."""

from __future__ import annotations

import asyncio

from fttt.methods.base import Attempt, Method, Session
from fttt.types import Question

__all__ = ["Sample"]


class Sample(Method):
    """Draw the whole budget at once and judge every sample; none stops the others.

    It measures pass@k for every k up to the budget without bias, and gathers attempts, right and
    wrong, to train on.
    """

    name = "sample"
    summary = "N independent samples, all of them judged (pass@k, and attempts to train on)"
    together = True

    async def solve(self, question: Question, session: Session) -> None:
        async def sample(trial: Attempt) -> None:
            await trial.verify(await trial.generate())

        async with asyncio.TaskGroup() as group:
            async for trial in session.trials():
                group.create_task(sample(trial))
