"""Answers written ahead: the same trials in fewer rounds, and never twice as many as needed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fttt.config import resolve
from fttt.engine.request import GenerateRequest, Generation
from fttt.experiment.executor import make_engine
from fttt.experiment.held_sequences import Lookahead, TrialCounts
from fttt.experiment.plan import plan_run, settle
from fttt.methods.base import MethodSettings
from fttt.methods.best_of_n import BestOfN
from fttt.testing import Scene, play, save_tiny_model, tiny_model
from fttt.types import Trial

METHOD = BestOfN(MethodSettings())


def by_noise(_: str, request: GenerateRequest) -> str:
    """An answer that depends on the request's noise alone; one in eleven is right."""
    draw = request.noise_key % 11
    return "none" if draw == 1 else str(7 + draw)


def timeless(scene: Scene) -> list[Trial]:
    return [replace(t, usage=replace(t.usage, seconds=0.0)) for t in scene.trials]


RULES = st.sampled_from(["count", "retry"])


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 99), RULES)
def test_a_run_is_the_same_with_lanes_that_stand_idle(
    idle: int, trials: int, seed: int, rule: str
) -> None:
    alone = play(METHOD, by_noise, trials=trials, seed=seed, unanswered=rule)
    ahead = play(METHOD, by_noise, trials=trials, seed=seed, unanswered=rule, idle=idle)
    assert timeless(ahead) == timeless(alone)
    made = len(ahead.engine.generations)
    assert len(alone.engine.generations) <= made <= max(2 * len(alone.trials) - 1, 1)
    assert made <= max(trials, len(alone.trials))


class Rounds:
    """An engine that takes as long for many answers as for one: each round has its end."""

    def __init__(self, fails: int | None = None) -> None:
        self.fails, self.running = fails, 0
        self.asked: list[int] = []
        self.ended: set[int] = set()
        self.going_on = True
        """Whether a round ever ends."""
        self._end: asyncio.Future[None] | None = None

    async def generate(self, request: GenerateRequest, *, alone: bool = True) -> Generation:
        loop = asyncio.get_running_loop()
        if self._end is None or self._end.done():
            self._end = loop.create_future()
            if self.going_on:
                loop.call_later(0.01, self._end.set_result, None)
        self.asked.append(request.noise_key)
        self.running += 1
        try:
            await asyncio.shield(self._end)
        finally:
            self.running -= 1
        self.ended.add(request.noise_key)
        if request.noise_key == self.fails:
            raise RuntimeError("broken")
        return Generation((request.noise_key,), "stop", 0.01)


def request(n: int) -> GenerateRequest:
    return GenerateRequest((1,), 1, noise_key=n)


def test_thirty_two_answers_take_six_rounds() -> None:
    async def main() -> tuple[list[int], list[int]]:
        engine = Rounds()
        ahead = Lookahead(lambda: 100, engine.generate, TrialCounts())
        rounds = []
        for n in range(32):
            if n not in engine.ended:
                rounds.append(n)
            assert (await ahead.take(n, request, 31)).token_ids == (n,)
        return engine.asked, rounds

    asked, rounds = asyncio.run(main())
    assert sorted(asked) == list(range(32))
    assert len(rounds) <= 7


@pytest.mark.parametrize(
    ("failed", "solved", "idle", "begun"),
    [(0, 0, 100, 1), (40, 50, 100, 1), (40, 3, 100, 11), (40, 3, 4, 4), (40, 0, 100, 32)],
)
def test_the_runs_other_questions_say_how_many_answers_to_begin(
    failed: int, solved: int, idle: int, begun: int
) -> None:
    async def main() -> None:
        engine = Rounds()
        counts = TrialCounts(failed, solved)
        ahead = Lookahead(lambda: idle, engine.generate, counts)
        await ahead.take(0, request, 31)
        assert engine.asked == list(range(begun))
        ahead.close()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_what_nobody_asks_for_is_stopped_and_errors_are_raised_once() -> None:
    async def main() -> None:
        engine = Rounds(fails=5)
        ahead = Lookahead(lambda: 100, engine.generate, TrialCounts())
        for n in range(4):
            await ahead.take(n, request, 31)
        # it has failed, and nobody has asked for it
        while 5 not in engine.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        engine.going_on = False
        await ahead.take(4, request, 31)
        with pytest.raises(RuntimeError, match="broken"):
            await ahead.take(5, request, 31)
        await asyncio.sleep(0)
        assert engine.running > 0
        ahead.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.running == 0

    asyncio.run(main())


def test_the_engine_has_room_for_a_questions_next_answers(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    settings = {"model": str(folder), "data": {"limit": 1}, "sampling": {"max_new_tokens": 8}}
    for method, lanes in (("best-of-n", 8), ("revision", 1)):
        plan = plan_run(settle(resolve({**settings, "method": method, "budget": {"trials": 8}})))
        engine = make_engine([plan], tiny_model())
        asyncio.run(engine.close())
        assert engine.idle == lanes
