"""Words to sort: the embedded graded task, on which a small model can be watched as it learns."""

from __future__ import annotations

from typing import ClassVar

from fttt.errors import UsageError
from fttt.tasks.arithmetic import Draws
from fttt.tasks.benchmark_data import check_split
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Outcome, Question, Verdict
from fttt.verifiers.answer_extraction import after_thought
from fttt.verifiers.verifier import Verifier, feedback_on

__all__ = ["SortingTask", "SortingVerifier"]

PROMPT = "{question} Answer with the sorted words only, separated by commas."
SIZES = {"test": 200, "train": 400}
WORDS = (
    "apple", "barley", "basil", "bean", "beet", "berry", "carrot", "celery", "chard", "cherry",
    "chive", "clove", "corn", "cress", "cumin", "date", "dill", "fennel", "fig", "ginger",
    "grape", "kale", "kiwi", "leek", "lemon", "lime", "maize", "mango", "melon", "millet",
    "mint", "mustard", "nettle", "nutmeg", "oat", "olive", "onion", "parsley", "pea", "peach",
    "pear", "pecan", "plum", "quince", "radish", "rice", "rye", "sage", "sorrel", "spinach",
    "thyme", "turnip", "vanilla", "walnut", "wheat", "yam",
)  # fmt: skip


class SortingTask:
    """Words to sort alphabetically; the score is the share of places that hold the right word."""

    name: ClassVar[str] = "sorting"
    splits: ClassVar[tuple[str, ...]] = ("test", "train")

    def __init__(self, words: int = 4) -> None:
        """Choose how many words a question has: 2 to 10.

        Raises:
            UsageError: another number.
        """
        if not 2 <= words <= 10:
            raise UsageError(f"The option words of sorting cannot be {words}; give 2 to 10.")
        self.words = words

    def load(self, options: TaskOptions) -> list[Question]:
        """Make the split's questions from ``options.seed``."""
        check_split(self.name, options.split, self.splits)
        return [self._question(options, index) for index in range(SIZES[options.split])]

    def _question(self, options: TaskOptions, index: int) -> Question:
        identity = f"sorting-{self.words}/s{options.seed}/{options.split}/{index}"
        draw, chosen = Draws(identity), list[str]()
        while len(chosen) < self.words or chosen == sorted(chosen):
            if len(chosen) == self.words:
                chosen = []  # they are never in order already
            word = draw.choice(WORDS)
            if word not in chosen:
                chosen.append(word)
        text = f"Sort these words alphabetically: {', '.join(chosen)}."
        gold = ", ".join(sorted(chosen))
        return Question(identity, fill_prompt(options.prompt or PROMPT, text), gold, gold)

    def verifier(self) -> Verifier:
        """Compare place by place."""
        return SortingVerifier()


class SortingVerifier:
    """Scores the first line of an answer, as words between commas."""

    async def verify(self, question: Question, completion: str) -> Verdict:
        """The share of places that hold the right word, of the longer of gold and answer."""
        answer, gold = self.extract(question, completion), str(question.gold).split(", ")
        if answer is None:
            said = feedback_on("unanswered", None)
            return Verdict("unanswered", detail="no answer", feedback=said, score=0.0)
        given = answer.split(", ")
        right = sum(a == b for a, b in zip(given, gold, strict=False))
        score = right / max(len(gold), len(given))
        outcome: Outcome = "correct" if score == 1 else "incorrect"
        said = feedback_on(outcome, answer)
        if outcome == "incorrect":
            said += f" {right} of {len(gold)} words are in their place."
        return Verdict(outcome, answer, f"score {score:.2f}", feedback=said, score=score)

    def extract(self, question: Question, completion: str) -> str | None:
        """The words of the first line, in lower case."""
        text = after_thought(completion)
        lines = text.strip().splitlines() if text is not None else []
        words = [word.strip(" .'\"*`").lower() for word in lines[0].split(",")] if lines else []
        return ", ".join(word for word in words if word)[:500] or None

    async def close(self) -> None:
        """Nothing is held."""
