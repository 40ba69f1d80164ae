"""What one question has spent, and what it may."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field

from fttt.config import BudgetSection
from fttt.types import Usage, Verdict

__all__ = ["Ledger"]


@dataclass
class Ledger:
    """One question's account under the rule of its run; every method's budget is counted here."""

    rule: BudgetSection
    spent: list[Usage] = field(default_factory=list)
    """The cost of each thing that was done."""
    generated_tokens: int = 0
    """Of all of them, as the seconds: these may be limited."""
    seconds: float = 0.0
    handed_out: int = 0
    """Trials that were begun."""
    free: int = 0
    """Of those, the ones that ended without an answer and cost nothing."""
    judged: int = 0
    solved: bool = False

    @property
    def usage(self) -> Usage:
        """What all of it cost."""
        return sum(self.spent, Usage())

    @property
    def trials(self) -> int:
        """The trials that the rule grants."""
        return self.rule.trials if self.rule.trials is not None else sys.maxsize

    @property
    def running(self) -> int:
        """Trials that are not judged yet."""
        return self.handed_out - self.judged

    @property
    def limited_by_trials(self) -> bool:
        """Whether the number of trials is the only limit, so that all may be begun at once."""
        return self.rule.token_budget is None and self.rule.time_budget is None

    def grants(self) -> bool:
        """Whether one more trial may begin, those in progress counted as answered."""
        if self.handed_out - self.free >= self.trials:
            return False
        if self.rule.unanswered == "retry" and self.handed_out >= 2 * self.trials + 1:
            return False
        if self.generated_tokens >= (self.rule.token_budget or math.inf):
            return False
        return self.seconds < (self.rule.time_budget or math.inf)

    def begin(self) -> int:
        """Begin a trial; return its number."""
        self.handed_out += 1
        return self.handed_out - 1

    def withdraw(self) -> None:
        """Take back the last trial, which will not be judged."""
        self.handed_out -= 1

    def judge(self, verdict: Verdict) -> None:
        """Count the verdict that a trial ended with."""
        self.judged += 1
        self.solved = self.solved or verdict.correct
        if self.rule.unanswered == "retry" and not verdict.answered:
            self.free += 1

    def spend(self, usage: Usage) -> None:
        """Add what something cost."""
        self.spent.append(usage)
        self.generated_tokens += usage.generated_tokens
        self.seconds += usage.seconds
