"""Steps of an adapter that is all questions': their members and order, whoever is faster."""

from __future__ import annotations

import asyncio
import random

import pytest

from fttt.engine.request import Lesson, LoRASpec, Target
from fttt.experiment.waves import SharedAdapter
from fttt.testing import FakeEngine, FakeSlot

QUESTIONS = ["a", "b", "c"]
ROUNDS = {"a": 5, "b": 2, "c": 4}
"""How many rounds each question has before it leaves."""


def lesson(question: str, number: int) -> Lesson:
    return Lesson((1, 2), (Target((ord(question), number), (1.0, 1.0)),))


def play(
    seed: int, ahead: int = 1
) -> tuple[list[list[tuple[int, ...]]], dict[tuple[str, int], int], FakeEngine]:
    """Steps by what they learned, and the updates of the weights that each round was given."""
    engine, wait = FakeEngine([]), random.Random(seed)
    updates: dict[tuple[str, int], int] = {}

    async def solve(question: str, shared: SharedAdapter) -> None:
        for number in range(ROUNDS[question]):
            slot = await shared.weights(number)
            assert isinstance(slot, FakeSlot)
            await asyncio.sleep(wait.random() / 200)
            assert not slot.closed, "weights are kept while a round is written under them"
            updates[question, number] = slot.updates
            if number != 1 or question != "b":
                shared.hand_in(question, number, [lesson(question, number)])
            shared.ended(question, number)
        shared.left(question)

    async def main() -> None:
        shared = SharedAdapter(engine, LoRASpec(), 7, QUESTIONS, ahead)
        order = QUESTIONS[:]
        wait.shuffle(order)
        await asyncio.gather(*(solve(question, shared) for question in order))
        await shared.close()

    asyncio.run(main())
    steps = [[x.targets[0].token_ids for x in r.lessons] for r in engine.trainings]
    return steps, updates, engine


def test_a_wave_is_all_that_was_handed_in_of_its_round_in_the_order_of_the_questions() -> None:
    steps, _, engine = play(0)
    a, b, c = (ord(q) for q in QUESTIONS)
    assert steps[:3] == [[(a, 0), (b, 0), (c, 0)], [(a, 1), (c, 1)], [(a, 2), (c, 2)]]
    shares = [[t.weights[0] for x in r.lessons for t in x.targets] for r in engine.trainings]
    assert shares[0] == pytest.approx([1 / 3] * 3), "each question counts the same"
    assert shares[1] == pytest.approx([1 / 2] * 2)


def test_a_round_is_written_under_the_wave_before_the_last_and_nobody_waits_for_long() -> None:
    _, updates, engine = play(1)
    assert all(steps == max(0, number - 1) for (_, number), steps in updates.items())
    assert {question for question, number in updates if number == 1} == set(QUESTIONS)
    assert all(slot.closed for slot in engine.slots)


def test_where_none_is_ahead_each_round_is_written_under_the_last_wave() -> None:
    _, updates, engine = play(1, ahead=0)
    assert all(steps == number for (_, number), steps in updates.items())
    assert all(slot.closed for slot in engine.slots)


def test_who_is_faster_changes_nothing() -> None:
    known = play(2)[0]
    for seed in range(3, 12):
        steps = play(seed)[0]
        shorter = min(len(steps), len(known))  # the last wave may find nobody left to learn for
        assert steps[:shorter] == known[:shorter]


def test_a_step_that_fails_is_everybodys_error() -> None:
    engine = FakeEngine([])

    async def fail(_: object) -> None:
        raise RuntimeError("out of memory")

    engine.train = fail  # type: ignore[method-assign, assignment]

    async def solve(question: str, shared: SharedAdapter) -> None:
        for number in range(4):
            await shared.weights(number)
            shared.hand_in(question, number, [lesson(question, number)])
            shared.ended(question, number)

    async def main() -> list[object]:
        shared = SharedAdapter(engine, LoRASpec(), 7, QUESTIONS)
        found = await asyncio.gather(
            *(solve(question, shared) for question in QUESTIONS), return_exceptions=True
        )
        await shared.close()
        return list(found)

    assert [str(error) for error in asyncio.run(main())] == ["out of memory"] * 3
