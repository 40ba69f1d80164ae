"""The time left of simulated runs: near the truth, and not growing as the easy questions go."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from fttt.forecast import Forecast
from fttt.types import Trial, Usage

TRIAL = Trial("q", 0, 0, "", (), "stop", None, "incorrect", "", None, Usage())


@dataclass(frozen=True)
class Simulated:
    """A run whose questions differ: some are never solved, the others have chances of their own."""

    questions: int
    lanes: int
    trials: int = 32
    never: float = 0.3
    alone: float = 0.3
    """Seconds of a sequence alone, as a share of those among as many as run at once."""
    stops: bool = True

    def ended(self, seed: int) -> Iterator[tuple[float, Trial, bool]]:
        """The trials in the order in which they end: when, which, and whether its question is over.

        Answers have log-normal lengths; twice as many questions are in progress as have a lane.
        """
        dice = random.Random(seed)
        chances = [
            0.0 if dice.random() < self.never else dice.betavariate(0.5, 1.0)
            for _ in range(self.questions)
        ]
        waiting = deque((q, 0) for q in range(self.questions))
        queue = deque(waiting.popleft() for _ in range(min(2 * self.lanes, len(waiting))))
        now = work = 0.0
        busy: list[tuple[float, int, int]] = []
        while queue or busy:
            while queue and len(busy) < self.lanes:
                length = min(3.0, math.exp(dice.gauss(-0.1, 0.5)))
                heapq.heappush(busy, (work + length, *queue.popleft()))
            share = len(busy) / self.lanes
            end, question, number = heapq.heappop(busy)
            now += (end - work) * (self.alone + (1 - self.alone) * share)
            work = end
            solved = dice.random() < chances[question]
            over = (solved and self.stops) or number + 1 == self.trials
            verdict = "correct" if solved else "incorrect"
            yield now, replace(TRIAL, trial=number, verdict=verdict), over
            if not over:
                queue.append((question, number + 1))
            elif waiting:
                queue.append(waiting.popleft())

    def told(self, seed: int) -> list[tuple[float, float, float]]:
        """What was told on the way: when, and how long at least and at most, by the run's time."""
        forecast = Forecast(self.questions, self.trials, lanes=self.lanes)
        events, told, most = list(self.ended(seed)), [], self.questions * self.trials
        end = events[-1][0]
        scale = 600 / end  # a run of ten minutes
        looked = 0.0
        for now, trial, over in events:
            forecast.trial_ended(trial)
            most -= self.trials - trial.trial if over else 0
            if over and trial.trial + 1 < self.trials:
                forecast.stops = True
            if now - looked > end / 100:
                looked = now
                left = forecast.time_left(scale * now, most)
                if left is not None:
                    told.append((now / end, left.low / 600, left.high / 600))
        return told


RUNS = {
    "a processor": Simulated(200, 16),
    "few questions": Simulated(20, 16),
    "all at once": Simulated(600, 600),
    "hard": Simulated(200, 32, never=0.7),
    "easy": Simulated(300, 32, never=0.1),
    "large model": Simulated(200, 32, alone=0.9),
    "every trial": Simulated(200, 32, trials=8, stops=False),
    "one trial": Simulated(200, 16, trials=1),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_time_left_is_near_and_does_not_climb(name: str) -> None:
    for seed in (1, 2):
        told = RUNS[name].told(seed)
        assert told[0][0] < 0.3  # of the run's time
        climb = reached = 0.0
        lowest = math.inf
        for now, low, high in told:
            middle = math.sqrt(low * high)
            climb, lowest = max(climb, middle - lowest), min(lowest, middle)
            reached += low - 0.05 <= 1 - now <= high + 0.05
            if now < 0.9:
                assert 0.55 < now + middle < 1.8
        assert climb < 0.3
        assert reached > 0.75 * len(told)


def test_a_resumed_run_counts_what_its_questions_have_made() -> None:
    """Ten questions of which nine have made 30 of 32 trials: little is left."""
    forecasts = [Forecast(10, 32, lanes=1, begun=begun) for begun in (None, {30: 9, 0: 1})]
    seconds = []
    for forecast in forecasts:
        for number in range(10):
            forecast.trial_ended(replace(TRIAL, trial=number))
        left = forecast.time_left(10.0, 310)
        assert left is not None
        seconds.append(left.middle)
    assert seconds[1] < 0.3 * seconds[0]


def test_trials_that_come_at_once_are_told_by_their_rate() -> None:
    forecast = Forecast(8, 0, lanes=4)
    for number in range(16):
        forecast.trial_ended(replace(TRIAL, trial=number))
    left = forecast.time_left(8.0, 48)
    assert left is not None
    assert left.low == left.high == 24.0
