"""How long a run will still take, by what its questions have needed so far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fttt.types import Trial

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

__all__ = ["Forecast", "TimeLeft"]

_LANES = 16
"""Sequences that run at once, where the engine does not say."""
_ALONE = (0.3, 0.9)
"""Seconds of a trial that runs alone, as a share of those among as many as run at once: at least
(a small model on a CPU) and at most (a large one, whose steps take as long whatever the batch)."""
_BEGUN = 0.33
"""Share of a trial in progress that counts as done."""
_DOUBT = 1.15
"""Factor by which a forecast may be wrong for reasons that it does not know."""
_SPREAD = 0.5
"""Where nothing is known yet, questions differ as a beta distribution of this concentration does:
most are solved soon or never, as pass@k curves of language models show."""
_WEIGHT = 8.0
"""Trials that the fitted chance counts for, beside those that were seen at a trial number."""
_SETTLED = 0.1
"""Share of the run's time over which a change of the forecast is taken over."""
_EVERY = 2.0
"""Seconds between two forecasts, at least."""
_NARROW = 1.5
"""Bounds that differ by a smaller factor are told as one number."""


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """Seconds that a run will still take: between ``low`` and ``high`` in four of five cases."""

    low: float
    high: float

    @property
    def narrow(self) -> bool:
        """Whether one number says it."""
        return self.high < _NARROW * max(self.low, 1.0)

    @property
    def middle(self) -> float:
        return math.sqrt(max(self.low, 0.1) * max(self.high, 0.1))


class Forecast:
    """Estimates the time left of a run from its trials.

    The questions that have ended are the easy ones, so the trials that they did not need say little
    of the others. The chances of the questions are taken as a beta distribution, so that the chance
    of trial ``n``, among those that failed before, is ``m s / (s + n - 1)``: mean ``m``, and the
    smaller ``s``, the faster it falls. Both are weighed on a grid by all trials that ended; seen
    trial numbers are corrected by what was seen. What that chance leaves of each question's budget
    is divided by the trials a second so far, those in progress counted by half; and the last
    questions, whose trials come one after the other, are followed to their end round by round.
    """

    def __init__(
        self,
        questions: int,
        longest: int,
        *,
        lanes: int = 0,
        abreast: int = 1,
        begun: Mapping[int, int] | None = None,
    ) -> None:
        """Begin without a trial.

        Args:
            questions: that are owed.
            longest: trials that one question may need, one after the other; 0 where all of its
                trials come at once.
            lanes: sequences that run at once; 0 where that is not known.
            abreast: trials of one question that run at once.
            begun: how many questions have made so many trials before, where a run is resumed.
        """
        self.stops = False
        """Whether a solved question is seen to need no further trial."""
        self.questions, self._longest = questions, longest
        self._lanes = max(1, min(lanes or _LANES, questions * abreast))
        self._abreast = abreast
        self._start = Counter(begun) if begun else Counter({0: questions})
        self._reached: Counter[int] = Counter()
        """Questions that have made so many trials."""
        self._solved: Counter[int] = Counter()
        """Of these, those that the last of them solved."""
        self._told: tuple[float, float, float] | None = None
        """When the last forecast was made, and the bounds of the run's end in it."""

    @property
    def enough(self) -> int:
        """Trials that a forecast is made from: a round of all lanes and some more."""
        least = self._lanes + 16 if self._longest > 1 else -(-self._lanes // 2)
        return max(1, min(least, self.questions))

    def trial_ended(self, trial: Trial) -> None:
        """Count a trial."""
        self._reached[trial.trial + 1] += 1
        self._solved[trial.trial + 1] += trial.verdict == "correct"

    def time_left(self, elapsed: float, most: int) -> TimeLeft | None:
        """How long the run will still take; ``None`` before enough trials have ended.

        Args:
            elapsed: seconds since it began.
            most: trials that are left, were none spared.
        """
        made = self._reached.total()
        if made < self.enough or elapsed <= 0:
            return None
        if not self._longest:
            seconds = elapsed / made * most
            return TimeLeft(seconds, seconds)
        if self._told is None or elapsed - self._told[0] >= _EVERY:
            low, high = self._bounds(elapsed)
            self._settle(elapsed, elapsed + low, elapsed + high)
        assert self._told is not None
        _, low, high = self._told
        return TimeLeft(max(0.0, low - elapsed), max(0.0, high - elapsed))

    def _settle(self, now: float, low: float, high: float) -> None:
        """Take over a new forecast of the run's end by and by, so that it does not jump."""
        if self._told is not None:
            before, old_low, old_high = self._told
            keep = math.exp((before - now) / (_SETTLED * now))
            low, high = low + keep * (old_low - low), high + keep * (old_high - high)
        self._told = (now, low, high)

    def _bounds(self, elapsed: float) -> tuple[float, float]:
        """Seconds that are left at least and at most, by the bounds of the needed trials."""
        import numpy as np

        counts_N = np.array([self._at(n) for n in range(self._longest)], dtype=np.float64)
        active = float(counts_N.sum())
        if active == 0:
            return 0.0, 0.0
        chance_N, spread = self._chances(counts_N)
        busy = min(active * self._abreast, self._lanes)
        rate = (self._reached.total() + _BEGUN * busy) / elapsed
        low, high = (self._seconds(counts_N, chance_N, rate, alone) for alone in _ALONE)
        return low / spread, high * spread

    def _chances(self, counts_N: Array) -> tuple[Array, float]:
        """The chance of each trial, and the factor by which the needed trials are uncertain."""
        import numpy as np

        if not self.stops and self._solved.total():
            return np.zeros_like(counts_N), _DOUBT
        number_N = range(1, self._longest + 1)
        later_N = np.arange(self._longest, dtype=np.float64)
        reached_N = np.array([self._reached[n] for n in number_N], dtype=np.float64)
        solved_N = np.array([self._solved[n] for n in number_N], dtype=np.float64)
        mean_M11 = np.linspace(0.02, 0.98, 25)[:, None, None]
        spread_1S1 = np.geomspace(0.1, 30.0, 13)[None, :, None]
        chance_MSN = np.clip(mean_M11 * spread_1S1 / (spread_1S1 + later_N), 1e-6, 1 - 1e-6)
        log_MS = (solved_N * np.log(chance_MSN)).sum(-1)
        log_MS += ((reached_N - solved_N) * np.log1p(-chance_MSN)).sum(-1)
        log_MS -= np.log(spread_1S1[..., 0] / _SPREAD) ** 2 / 2
        weight_MS = np.exp(log_MS - log_MS.max())
        weight_MS /= weight_MS.sum()

        corrected_MSN = (solved_N + _WEIGHT * chance_MSN) / (reached_N + _WEIGHT)
        needed_MS = (_trials_left(corrected_MSN) * counts_N).sum(-1).ravel()
        order = np.argsort(needed_MS)
        share = np.cumsum(weight_MS.ravel()[order])
        low, high = needed_MS[order][np.searchsorted(share, [0.1, 0.9]).clip(max=len(share) - 1)]

        stays_MSN = np.cumprod(1 - chance_MSN, axis=-1)
        stays_N = (stays_MSN * weight_MS[..., None]).sum((0, 1))
        fitted_N = 1 - stays_N / np.concatenate([[1.0], stays_N[:-1]])
        chance_N = (solved_N + _WEIGHT * fitted_N) / (reached_N + _WEIGHT)
        return chance_N, _DOUBT * math.sqrt(max(1.0, high / low))

    def _seconds(self, counts_N: Array, chance_N: Array, rate: float, alone: float) -> float:
        """Seconds that are left, if each trial solves by its chance.

        Args:
            counts_N: questions in progress by the trials that they have made.
            chance_N: of each trial number.
            rate: trials a second with all lanes busy.
            alone: as in :data:`_ALONE`.
        """
        import numpy as np

        at_once = self._lanes / self._abreast
        waiting = max(0.0, counts_N[0] - max(0.0, at_once - counts_N[1:].sum()))
        last_N = counts_N.copy()
        last_N[0] -= waiting
        if waiting:  # the last ones to be in progress are of all ages, some of them young
            stays_N = np.concatenate([[1.0], np.cumprod(1 - chance_N)[:-1]])
            steady_N = stays_N / stays_N.sum() * at_once
            share = min(1.0, waiting / at_once)
            last_N = share * steady_N + (1 - share) * last_N
        seconds, trials = self._followed(last_N, chance_N, rate, alone)
        if waiting:
            done = _BEGUN * self._lanes
            needed = float((_trials_left(chance_N) * counts_N).sum()) - done
            seconds += max(0.0, needed - trials) / rate
        return seconds

    def _followed(
        self, counts_N: Array, chance_N: Array, rate: float, alone: float
    ) -> tuple[float, float]:
        """Seconds and trials until all questions in progress have ended, round by round."""
        import numpy as np

        stays_N, step = 1 - chance_N, self._abreast
        seconds = trials = 0.0
        for _ in range(-(-self._longest // step)):
            active = float(counts_N.sum())
            if active < 0.05:
                break
            share = max(active, 1.0) * step / self._lanes
            a_round = (self._lanes / rate) * max(share, alone + (1 - alone) * min(share, 1.0))
            seconds += min(1.0, 1 - math.exp(-active)) * a_round  # whether any is left at all
            trials += active * step
            for _ in range(step):
                counts_N = np.concatenate([[0.0], (counts_N * stays_N)[:-1]])
        return seconds, trials

    def _at(self, count: int) -> int:
        """Questions in progress that have made so many trials."""
        ended = self._solved[count] if self.stops else 0
        arrived = self._start[count] + self._reached[count]
        return max(0, arrived - self._reached[count + 1] - ended)


def _trials_left(chance_N: Any) -> Any:
    """Trials that a question needs after so many, by the chance of each; leading axes are kept."""
    import numpy as np

    left_N, left = np.empty_like(chance_N), 0.0
    for n in reversed(range(chance_N.shape[-1])):
        left = 1 + (1 - chance_N[..., n]) * left
        left_N[..., n] = left
    return left_N
