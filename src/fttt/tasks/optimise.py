"""Small optimisation problems given as text: every valid answer has a score, and 1 is the optimum.

``--task optimise/tour`` asks for a short round trip, ``--task optimise/packing`` for a valuable
load. Both are made from a seed and small enough that their optimum is known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from math import hypot
from typing import Any, ClassVar

from fttt.errors import UsageError
from fttt.registry import unknown_name
from fttt.tasks.arithmetic import Draws
from fttt.tasks.benchmark_data import check_split
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import JSON, Outcome, Question, Verdict
from fttt.verifiers.answer_extraction import after_thought
from fttt.verifiers.verifier import Verifier

__all__ = ["OptimiseTask", "OptimiseVerifier"]

PROMPT = '{question}\n\nEnd with a line that begins with "Answer:".'
SIZES = {"test": 100, "train": 200}
LETTERS = "ABCDEFGHIJKLMNOPQRST"
_LINE = re.compile(r"^\W*answer\W*:(.*)$", re.IGNORECASE | re.MULTILINE)
_LETTER = re.compile(r"\b[A-T]\b")


class OptimiseTask:
    """Round trips (``optimise/tour``) and loads (``optimise/packing``) to improve.

    The score of a trip is the shortest trip's length over its own, that of a load its value over
    the most valuable one's; an answer that breaks the rules scores 0.
    """

    name: ClassVar[str] = "optimise"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")

    def __init__(self, family: str | None = None, *, items: int = 7) -> None:
        """Choose the problem and its size.

        Args:
            family: ``tour`` or ``packing``, as after ``optimise/``.
            items: places to visit, or things to choose from: 4 to 10.

        Raises:
            UsageError: there is no such family or size.
        """
        if family is None or family not in _FAMILIES:
            raise unknown_name("optimise problem", family or "(none given)", _FAMILIES)
        if not 4 <= items <= 10:
            raise UsageError(f"The option items of optimise cannot be {items}; give 4 to 10.")
        self.family, self.items = family, items

    def load(self, options: TaskOptions) -> list[Question]:
        """Make the split's problems from ``options.seed``."""
        check_split(self.name, options.split, self.splits)
        questions = []
        for index in range(SIZES[options.split]):
            identity = (
                f"optimise/{self.family}-{self.items}/s{options.seed}/{options.split}/{index}"
            )
            problem, text = _FAMILIES[self.family](Draws(identity), self.items)
            gold: dict[str, JSON] = {"family": self.family, **problem}
            prompt = fill_prompt(options.prompt or PROMPT, text)
            questions.append(Question(identity, prompt, gold, _solution(gold)))
        return questions

    def verifier(self) -> Verifier:
        """Score an answer by the problem's own rule."""
        return OptimiseVerifier()


class OptimiseVerifier:
    """Scores the letters on the last line that begins with "Answer:"."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Score an answer; the optimum, with score 1, is correct."""
        letters = self.extract(question, completion)
        if letters is None:
            said = 'No line that begins with "Answer:" and names letters was found.'
            return Verdict("unanswered", detail="no answer", feedback=said, score=0.0)
        problem: Any = question.gold
        score, fault = _score(problem, letters.split(", "))
        outcome: Outcome = "correct" if score >= 1 - 1e-9 else "incorrect"
        detail = fault or f"score {score:.4f}"
        said = f"Your answer {letters} scores {score:.2f} of 1."
        return Verdict(
            outcome,
            extracted=letters,
            detail=detail,
            feedback=f"Your answer {letters} is not allowed: {fault}." if fault else said,
            score=score,
        )

    def extract(self, question: Question, completion: str) -> str | None:
        """The letters of the answer, in their order."""
        text = after_thought(completion)
        lines = _LINE.findall(text) if text is not None else []
        letters = _LETTER.findall(lines[-1].upper()) if lines else []
        return ", ".join(letters) if letters else None

    async def close(self) -> None:
        """Nothing is held."""


def _tour(draw: Draws, items: int) -> tuple[dict[str, JSON], str]:
    places: list[tuple[int, int]] = []
    while len(places) < items:
        place = (draw.between(0, 20), draw.between(0, 20))
        if place not in places:
            places.append(place)
    listed = "\n".join(f"{LETTERS[n]}: ({x}, {y})" for n, (x, y) in enumerate(places))
    text = (
        "Find a short round trip on a map. It begins at the first place, visits every place once "
        f"and returns to the first.\n\n{listed}\n\nGive the letters in the order of the visits, "
        "separated by commas."
    )
    return {"places": [list(place) for place in places]}, text


def _packing(draw: Draws, items: int) -> tuple[dict[str, JSON], str]:
    weights = [draw.between(1, 12) for _ in range(items)]
    values = [draw.between(1, 12) for _ in range(items)]
    most = max(max(weights), sum(weights) // 2)
    listed = "\n".join(
        f"{LETTERS[n]}: weight {w}, value {v}"
        for n, (w, v) in enumerate(zip(weights, values, strict=True))
    )
    text = (
        f"Choose things to pack. Together they may weigh at most {most}, and their values should "
        f"add up to as much as possible.\n\n{listed}\n\nGive the letters of the things that you "
        "take, separated by commas."
    )
    return {"weights": weights, "values": values, "most": most}, text


_FAMILIES: dict[str, Callable[[Draws, int], tuple[dict[str, JSON], str]]] = {
    "tour": _tour,
    "packing": _packing,
}


def _score(problem: Mapping[str, Any], letters: Sequence[str]) -> tuple[float, str]:
    """The score of an answer, and what is wrong with it, if anything is."""
    chosen = [LETTERS.index(letter) for letter in letters]
    if problem["family"] == "tour":
        places = tuple(map(tuple, problem["places"]))
        if len(chosen) == len(places) + 1 and chosen[0] == chosen[-1]:
            chosen = chosen[:-1]  # the return may be written down
        if sorted(chosen) != list(range(len(places))) or chosen[0] != 0:
            return 0.0, f"it is to begin with A and name each of the {len(places)} places once"
        return min(1.0, _shortest(places) / _length(places, chosen)), ""
    weights, values = tuple(problem["weights"]), tuple(problem["values"])
    if len(set(chosen)) < len(chosen) or max(chosen) >= len(weights):
        return 0.0, "it names a thing twice, or one that is not there"
    weight = sum(weights[n] for n in chosen)
    if weight > problem["most"]:
        return 0.0, f"it weighs {weight}, more than {problem['most']}"
    best, _ = _most_valuable(weights, values, problem["most"])
    return sum(values[n] for n in chosen) / best, ""


def _solution(problem: Mapping[str, Any]) -> str:
    """An optimal answer, as an answer is written."""
    if problem["family"] == "tour":
        chosen = _shortest_trip(tuple(map(tuple, problem["places"])))
    else:
        weights, values = tuple(problem["weights"]), tuple(problem["values"])
        chosen = _most_valuable(weights, values, problem["most"])[1]
    return f"Answer: {', '.join(LETTERS[n] for n in chosen)}"


def _length(places: Sequence[tuple[int, ...]], trip: Sequence[int]) -> float:
    steps = pairwise([*trip, trip[0]])
    return sum(hypot(places[a][0] - places[b][0], places[a][1] - places[b][1]) for a, b in steps)


def _shortest(places: tuple[tuple[int, ...], ...]) -> float:
    return _length(places, _shortest_trip(places))


@cache
def _shortest_trip(places: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """By the dynamic programme over sets of places (Held and Karp 1962)."""
    ends: dict[tuple[frozenset[int], int], tuple[float, tuple[int, ...]]] = {
        (frozenset(), 0): (0.0, (0,))
    }
    others = range(1, len(places))
    for _ in others:
        longer: dict[tuple[frozenset[int], int], tuple[float, tuple[int, ...]]] = {}
        for (seen, last), (length, trip) in ends.items():
            for n in others:
                if n not in seen:
                    step = hypot(places[last][0] - places[n][0], places[last][1] - places[n][1])
                    key, found = (seen | {n}, n), (length + step, (*trip, n))
                    longer[key] = min(longer.get(key, found), found)
        ends = longer
    return min((trip for _, trip in ends.values()), key=lambda trip: _length(places, trip))


@cache
def _most_valuable(
    weights: tuple[int, ...], values: tuple[int, ...], most: int
) -> tuple[int, tuple[int, ...]]:
    """The best load's value and things, by the dynamic programme over weights."""
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())] * (most + 1)
    for n, (weight, value) in enumerate(zip(weights, values, strict=True)):
        for room in range(most, weight - 1, -1):
            before, things = best[room - weight]
            best[room] = max(best[room], (before + value, (*things, n)), key=lambda x: x[0])
    return best[most]
