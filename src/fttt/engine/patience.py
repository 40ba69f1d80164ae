"""When requests have waited long enough for company.

A prefill, train or score pass has a part of its cost that does not depend on how many it serves:
kernels are launched, weights are read, running sequences' steps come to an end and begin anew. So
requests wait for company; but while they wait, lanes stand idle. The rule is that of the ski rental
problem: a pass runs as soon as the lane time that was lost by waiting equals what that part costs
all running lanes, which never loses more than twice the best possible. What a pass takes for each
of its tokens is due whenever it runs, and is no reason to wait.
"""

from __future__ import annotations

__all__ = ["Patience"]

KEPT = 0.8
"""Weight of all earlier passes where the cost of one is learned, for each later one."""
LEAST = 0.1
"""Of what a pass takes in the mean, the smallest part that is believed not to depend on its size:
it is told apart by few passes."""


class Patience:
    """Decides when a queue has waited long enough, by what its passes took."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._passes = self._tokens = self._seconds = self._squares = self._products = 0.0
        """Sums over passes, the later the heavier: how many, their tokens and seconds, tokens
        times tokens and times seconds."""

    @property
    def cost(self) -> float | None:
        """Seconds of a pass that do not depend on its size, by a line through those that ran.

        All of them where passes were of one size; ``None`` where there was none.
        """
        if not self._passes:
            return None
        tokens, seconds = self._tokens / self._passes, self._seconds / self._passes
        spread = self._squares / self._passes - tokens * tokens
        together = self._products / self._passes - tokens * seconds
        if spread <= (LEAST * tokens) ** 2 or together <= 0:
            return seconds
        return max(LEAST * seconds, seconds - together / spread * tokens)

    def ready(self, waiting: int, running: int) -> bool:
        """Whether to run the pass now, for so many waiting requests and running lanes."""
        if waiting == 0:
            return False
        cost = self.cost
        return running == 0 or cost is None or self._lost >= cost * running

    def waited(self, waiting: int, seconds: float) -> None:
        """Note that ``waiting`` requests stood by during a decode step."""
        self._lost += waiting * seconds

    def ran(self, tokens: int, seconds: float) -> None:
        """Note the size and duration of a pass."""
        self._lost = 0.0
        self._passes = KEPT * self._passes + 1
        self._tokens = KEPT * self._tokens + tokens
        self._seconds = KEPT * self._seconds + seconds
        self._squares = KEPT * self._squares + tokens * tokens
        self._products = KEPT * self._products + tokens * seconds
