"""Generated reasoning problems with graded scorers: the families of ``reasoning-gym``.

``--task gym/word_sorting`` asks problems of one family (Stojanovski et al. 2025, arXiv 2505.24760),
made from a seed and scored by the family's own scorer, from 0 to 1.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar, Literal

from fttt.errors import UsageError
from fttt.registry import unknown_name
from fttt.tasks.benchmark_data import check_split
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question, Verdict
from fttt.verifiers.answer_extraction import after_thought
from fttt.verifiers.verifier import Verifier, feedback_on
from fttt.verifiers.worker_pool import JobError, WorkerPool

__all__ = ["EVALUATING", "GRADED", "LENIENT", "GymTask", "GymVerifier", "score_answer"]

GRADED = (
    "word_sorting",
    "spell_backward",
    "letter_jumble",
    "sentence_reordering",
    "mini_sudoku",
    "sudoku",
    "futoshiki",
    "knights_knaves",
    "game_of_life",
    "boxnet",
    "rubiks_cube",
)
"""Families whose scorers tell how close a wrong answer comes.

Others give a wrong answer 0 or a constant, or ask only which part of the text the gold answer is.
"""

EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Families whose scorers evaluate the answer as Python, which nothing outside the judge's sandbox
may do."""

LENIENT = frozenset(
    {
        "game_of_life_halting",
        "gsm_symbolic",
        "kakurasu",
        "letter_jumble",
        "quantum_lock",
        "sokoban",
        "survo",
    }
)
"""Families whose scorers pass a right answer with anything behind it."""

SIZES = {"test": 100, "train": 200}
_TRAIN_SEED = 1_000_003
"""Added to the seed of the split ``train``."""
CONTRACT = "{question}\n\nWrite your final answer between <answer> and </answer>."
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SHOWN = 200
"""Characters of an answer that its record keeps."""

AnswerForm = Literal["tags", "whole"]


class GymTask:
    """Problems of one family of reasoning-gym, with its own graded score.

    A problem's score is the family's; an answer is correct where it is 1.
    """

    name: ClassVar[str] = "gym"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")

    def __init__(
        self,
        family: str | None = None,
        *,
        level: int | None = None,
        size: int | None = None,
        answer: AnswerForm = "tags",
        **config: Any,
    ) -> None:
        """Choose the family and how hard its problems are.

        Args:
            family: its name, as after ``gym/``.
            level: of the family's curriculum, from 0; without one, the family's own settings.
            size: how many problems a split has; by default 100, and 200 to train on.
            answer: ``tags`` asks for the answer between tags and reads the last of them; ``whole``
                takes the whole completion, and asks for nothing beside the problem.
            config: the family's own settings, as ``max_words=4`` of ``word_sorting``; they outweigh
                ``level``.

        Raises:
            UsageError: the package is not installed, or there is no such family, level or setting.
        """
        families = _families()
        if family is None:
            raise UsageError(
                "The task 'gym' needs a family; write gym/FAMILY with one of "
                f"{', '.join(families)}."
            )
        if family not in families:
            raise unknown_name("gym problem", family, families)
        if family in EVALUATING:
            raise UsageError(
                f"The family {family!r} of gym scores an answer by running it as Python, which "
                f"only the judge's sandbox may do; choose another one, such as {GRADED[0]}."
            )
        if answer not in ("tags", "whole"):
            raise UsageError(f"The option answer of gym cannot be {answer!r}; give tags or whole.")
        self.family = family
        self._size = size
        self._answer = answer
        self._config = _settings(family, level, config)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is to be known of the family's scorer before its scores are trusted."""
        if self.family not in LENIENT:
            return ()
        return (
            f"the scorer of {self.family} passes a right answer whatever follows it, so that some "
            "answers count as correct which say more",
        )

    def load(self, options: TaskOptions) -> list[Question]:
        """Make the split's problems from ``options.seed``."""
        check_split(self.name, options.split, self.splits)
        size = self._size or SIZES[options.split]
        seed = options.seed + (_TRAIN_SEED if options.split == "train" else 0)
        settings = {**self._config, "seed": seed, "size": size}
        problems = _problems(self.family, _frozen(settings))
        return [
            self._question(f"gym/{self.family}/s{options.seed}/{options.split}/{index}", settings,
                           index, problems[index], options.prompt)
            for index in range(size)
        ]  # fmt: skip

    def _question(
        self, identity: str, settings: dict[str, Any], index: int, entry: Any, prompt: str | None
    ) -> Question:
        template = prompt or (CONTRACT if self._answer == "tags" else "{question}")
        gold = entry["answer"]
        if gold is not None and self._answer == "tags":
            gold = f"<answer>{gold}</answer>"
        return Question(
            id=identity,
            prompt=fill_prompt(template, str(entry["question"]).strip()),
            gold={"family": self.family, "settings": settings, "index": index},
            solution=gold,
        )

    def verifier(self) -> Verifier:
        """The family's scorer, in a process of its own under a time limit."""
        return GymVerifier(self._answer)


class GymVerifier:
    """Scores an answer by its family's own scorer, in a worker process under a time limit."""

    def __init__(self, answer: AnswerForm = "tags", *, time_limit: float = 30.0) -> None:
        """Choose what of a completion is the answer; see :class:`GymTask`."""
        self._answer = answer
        self._pool = WorkerPool(
            "fttt.tasks.gym:score_answer",
            time_limit=time_limit,
            imports=("reasoning_gym.factory",),  # once, not in each worker
        )

    async def verify(self, question: Question, completion: str) -> Verdict:
        """Score the answer in a completion; 1 is correct, and none scores 0."""
        start = time.perf_counter()
        answer = self.extract(question, completion)
        if answer is None:
            said = feedback_on("unanswered", None)
            return Verdict("unanswered", detail="no answer", feedback=said, score=0.0)
        try:
            score = float(await self._pool.run([question.gold, answer]))
            detail = f"score {score:g}"
        except JobError as failure:  # a scorer may stumble over what it cannot read
            score, detail = 0.0, f"the scorer {failure}"
        correct = score >= 1
        said = feedback_on("correct" if correct else "incorrect", answer)
        return Verdict(
            "correct" if correct else "incorrect",
            extracted=answer[:_SHOWN],
            detail=detail,
            seconds=time.perf_counter() - start,
            feedback=said if correct else f"{said} Its score is {score:.2f} of 1.",
            score=score,
        )

    def extract(self, question: Question, completion: str) -> str | None:
        """The last answer between tags, or the whole completion, outside of any thought."""
        text = after_thought(completion)
        if text is None:
            return None
        if self._answer == "whole":
            return text.strip() or None
        found = _TAGGED.findall(text)
        return found[-1].strip() or None if found else None

    async def close(self) -> None:
        """End the worker processes."""
        await self._pool.close()


def score_answer(request: Any) -> float:
    """The worker's job: the score of ``[gold, answer]``, from 0 to 1."""
    gold, answer = request
    problems = _problems(gold["family"], _frozen(gold["settings"]))
    return float(problems.score_answer(answer, _entry(problems, gold["index"])))


def _families() -> list[str]:
    """All families but ``composite``, which mixes others."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise UsageError(
            "The task 'gym' needs reasoning-gym; install it with pip install 'fttt[gym]'."
        ) from None
    return sorted(set(DATASETS) - {"composite"})


def _settings(family: str, level: int | None, own: dict[str, Any]) -> dict[str, Any]:
    """A family's settings at a level of its curriculum, with the user's own over them."""
    from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum

    settings: dict[str, Any] = {}
    if level is not None:
        curriculum: Any = create_curriculum(family) if family in CURRICULA else None
        attributes = curriculum.attributes.values() if curriculum else ()
        highest = max((len(attribute.levels) - 1 for attribute in attributes), default=-1)
        if not 0 <= level <= highest:
            reach = f"it has 0 to {highest}" if highest >= 0 else "it has no levels"
            raise UsageError(f"The family {family!r} of gym has no level {level}; {reach}.")
        curriculum.set_global_level(level)
        made: Any = curriculum.generate_configuration({})
        names = ("field_name", "lower_field_name", "upper_field_name")
        fields = {getattr(a, n) for a in attributes for n in names if hasattr(a, n)}
        settings = {name: getattr(made, name) for name in sorted(fields)}
    settings |= own
    try:
        config: Any = DATASETS[family][1](**{**settings, "seed": 0, "size": 1})
        getattr(config, "validate", lambda: None)()  # which two families lack
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"The family {family!r} of gym does not take {own or settings!r}: {error}."
        ) from error
    return settings


def _frozen(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (key, tuple(value) if isinstance(value, list) else value)
        for key, value in sorted(settings.items())
    )


@lru_cache(maxsize=128)  # for the families and seeds of a sweep, whose workers score all of them
def _problems(family: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    from reasoning_gym.factory import create_dataset

    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings}
    return create_dataset(family, **plain)


@lru_cache(maxsize=4096)
def _entry(problems: Any, index: int) -> Any:
    return problems[index]
