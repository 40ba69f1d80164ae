"""Fresh attempts whose prompt lists what has been refuted; nothing is trained."""

from __future__ import annotations

from pydantic import Field

from fttt.methods.base import Method, MethodSettings, Session
from fttt.types import Judged, Question, Text, shortened, user

__all__ = ["Memory", "MemorySettings"]

_ANSWER = 100
"""Characters of the longest answer that is listed as such."""
_FAILURE = 400
"""Characters of a failure that are listed."""
_PER_TOKEN = 2
"""Characters that a token is counted as, of texts with many signs."""


class MemorySettings(MethodSettings):
    """Settings of ``memory``."""

    most: int = Field(4, ge=1, description="refuted attempts that are listed, the last ones")
    answers: str = Field(
        "These answers have been checked and are wrong: {answers}. Find the mistake that leads to "
        "them and give another answer.",
        description="what is said of refuted answers; {answers} stands for them",
    )
    failures: str = Field(
        "Earlier attempts failed. Give an answer that does not fail as was said of them:{failures}",
        description="what is said of failures that are no short answer; {failures} stands for the "
        "list of them",
    )


class Memory(Method):
    """A fresh attempt each time that is told what has been refuted, but not how it was reached."""

    name = "memory"
    summary = "fresh attempts whose prompt lists what has been refuted"
    Settings = MemorySettings
    ablations = ("shuffle", "constant", "random-verdict")

    def __init__(self, settings: MemorySettings) -> None:
        self.settings = settings

    def conversation(self, max_new_tokens: int) -> tuple[str | int, ...]:
        said = self.settings
        listed = said.most * _FAILURE // _PER_TOKEN
        return (said.answers, said.failures, listed, max_new_tokens)

    async def solve(self, question: Question, session: Session) -> None:
        refuted: dict[str, bool] = {}
        async for trial in session.trials():
            completion = await trial.generate(*self.listed(refuted))
            verdict = await trial.verify(completion)
            if verdict.correct or trial.last:
                return
            for text, short in _refuted(await session.evidence(completion, verdict)).items():
                refuted.pop(text, None)  # what is refuted again is the last
                refuted[text] = short

    def listed(self, refuted: dict[str, bool]) -> tuple[Text, ...]:
        """What the question's own turn ends with.

        Args:
            refuted: texts in the order of their attempts, and whether each is a short answer.
        """
        last = list(refuted.items())[-self.settings.most :]
        answers = [text for text, short in last if short]
        failures = [f"\n- {text}" for text, short in last if not short]
        said = []
        if answers:
            said.append(self.settings.answers.replace("{answers}", ", ".join(answers)))
        if failures:
            said.append(self.settings.failures.replace("{failures}", "".join(failures)))
        return tuple(map(user, said))


def _refuted(shown: Judged) -> dict[str, bool]:
    """What a wrong attempt refutes: its answer where that is short, else what was said of it.

    What was found in an answer that was cut off is no answer.
    """
    verdict = shown.verdict
    if verdict.correct or not verdict.answered:
        return {}
    answer = (verdict.extracted or "").strip()
    if answer and len(answer) <= _ANSWER and "\n" not in answer:
        return {} if shown.completion.finish_reason == "length" else {answer: True}
    feedback = shortened(verdict.feedback, _FAILURE)
    return {feedback: False} if feedback else {}
