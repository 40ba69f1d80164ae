"""Short word problems made from a seed: the embedded default, without data files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import check_split
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question
from fttt.verifiers.number import NumberVerifier
from fttt.verifiers.verifier import Verifier

__all__ = ["ArithmeticTask", "Draws"]

PROMPT = '{question}\n\nAnswer in one short sentence that ends with "The final answer is N".'

SIZES = {"test": 200, "train": 400}

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ivy", "Jack")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pencils", "shells", "stickers")
BOXES = ("bags", "boxes", "jars", "packs", "baskets")

T = TypeVar("T")


class Draws:
    """Pseudo-random numbers from a text: the same on every machine and Python version."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._count = 0

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        digest = hashlib.sha256(f"{self._key}/{self._count}".encode()).digest()
        self._count += 1
        return low + int.from_bytes(digest[:8], "big") % (high - low + 1)

    def choice(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.between(0, len(values) - 1)]


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    answer: int
    working: str


def _add(draw: Draws, most: int) -> _Problem:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    a, b = draw.between(most // 4, most), draw.between(2, most)
    return _Problem(
        f"{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
        a + b,
        f"{name} has {a} + {b} = {a + b} {thing}.",
    )


def _subtract(draw: Draws, most: int) -> _Problem:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    b = draw.between(2, most)
    a = b + draw.between(2, most)
    return _Problem(
        f"{name} has {a} {thing} and gives {b} of them away. How many {thing} are left?",
        a - b,
        f"{a} - {b} = {a - b} {thing} are left.",
    )


def _multiply(draw: Draws, most: int) -> _Problem:
    name, thing, box = draw.choice(NAMES), draw.choice(THINGS), draw.choice(BOXES)
    a, b = draw.between(2, 4 + most // 8), draw.between(3, 4 + most // 4)
    return _Problem(
        f"{name} has {a} {box} with {b} {thing} in each. How many {thing} does {name} have?",
        a * b,
        f"{a} * {b} = {a * b} {thing}.",
    )


def _add_then_subtract(draw: Draws, most: int) -> _Problem:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    a, b = draw.between(3, most), draw.between(2, most)
    c = draw.between(2, a + b - 2)
    return _Problem(
        f"{name} has {a} {thing}, buys {b} more and then gives {c} away. "
        f"How many {thing} are left?",
        a + b - c,
        f"{a} + {b} = {a + b}, and {a + b} - {c} = {a + b - c}.",
    )


def _multiply_then_add(draw: Draws, most: int) -> _Problem:
    name, thing, box = draw.choice(NAMES), draw.choice(THINGS), draw.choice(BOXES)
    a, b, c = draw.between(2, 5), draw.between(2, 4 + most // 4), draw.between(2, most)
    return _Problem(
        f"{name} has {a} {box} with {b} {thing} in each, and {c} more {thing}. "
        f"How many {thing} does {name} have in all?",
        a * b + c,
        f"{a} * {b} = {a * b}, and {a * b} + {c} = {a * b + c}.",
    )


LEVELS: dict[int, tuple[tuple[Callable[[Draws, int], _Problem], ...], int]] = {
    1: ((_add, _subtract, _multiply), 9),
    2: ((_add, _subtract, _multiply), 30),
    3: ((_add_then_subtract, _multiply_then_add), 9),
}
"""The kinds of problem of each level, and about the largest number in them."""


class ArithmeticTask:
    """Word problems of one or two steps; the levels take turns, so any prefix is a fair mix."""

    name: ClassVar[str] = "arithmetic"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")

    def __init__(self, levels: Sequence[int] = (1, 2, 3)) -> None:
        """Set the levels that take turns: 1 and 2 have one step, 3 has two.

        Raises:
            UsageError: a level that does not exist, or none at all.
        """
        unknown = [level for level in levels if level not in LEVELS]
        if unknown or not levels:
            raise UsageError(
                f"The arithmetic task has no level {unknown[0] if unknown else '(none given)'}; "
                f"choose from {', '.join(map(str, LEVELS))}."
            )
        self.levels = tuple(levels)

    def load(self, options: TaskOptions) -> list[Question]:
        """Make the split's questions from ``options.seed``."""
        check_split(self.name, options.split, self.splits)
        return [self._question(options, index) for index in range(SIZES[options.split])]

    def _question(self, options: TaskOptions, index: int) -> Question:
        level = self.levels[index % len(self.levels)]
        identity = f"arithmetic/s{options.seed}/{options.split}/{level}-{index}"
        draw = Draws(identity)
        kinds, most = LEVELS[level]
        problem = draw.choice(kinds)(draw, most)
        return Question(
            id=identity,
            prompt=fill_prompt(options.prompt or PROMPT, problem.text),
            gold=str(problem.answer),
            solution=f"{problem.working} The final answer is {problem.answer}.",
        )

    def verifier(self) -> Verifier:
        """Compare numbers by value."""
        return NumberVerifier()
