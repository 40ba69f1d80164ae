"""When to run which pass.

Prefill and train passes cost about the same for one sequence as for many, so requests wait for
company; but while they wait, lanes stand idle. The rule is that of the ski rental problem: a pass
runs as soon as the lane time that was lost by waiting equals what the pass costs all running
lanes, which never loses more than twice the best possible.
"""

from __future__ import annotations

__all__ = ["Patience"]


class Patience:
    """Decides when a queue has waited long enough."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._cost: float | None = None

    def ready(self, waiting: int, running: int) -> bool:
        """Whether to run the pass now, for so many waiting requests and running lanes."""
        if waiting == 0:
            return False
        if running == 0 or self._cost is None:
            return True
        return self._lost >= self._cost * running

    def waited(self, waiting: int, seconds: float) -> None:
        """Note that ``waiting`` requests stood by during a decode step."""
        self._lost += waiting * seconds

    def ran(self, seconds: float) -> None:
        """Note what a pass took."""
        self._lost = 0.0
        self._cost = seconds if self._cost is None else 0.7 * self._cost + 0.3 * seconds
