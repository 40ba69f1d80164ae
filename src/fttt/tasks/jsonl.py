"""Questions of the user: one JSON object a line, and a verifier of the user's choice."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from fttt.errors import UsageError
from fttt.tasks.benchmark_data import Row, check_split, read_jsonl
from fttt.tasks.task import TaskOptions, fill_prompt
from fttt.types import Question
from fttt.verifiers.choice import gold_letter
from fttt.verifiers.number import read_number
from fttt.verifiers.verifier import (
    CHOICES,
    Verifier,
    cautions,
    check_choice,
    choose_verifier,
    judge_facts,
    needs_gold,
    reads_answers,
    single_choices,
    split_choice,
)

__all__ = ["JsonlTask"]

NUMBER_CONTRACT = (
    '{question}\n\nEnd your answer with the line "The final answer is" followed by the number.'
)
CONTRACTS = {
    "number": NUMBER_CONTRACT,
    "number-strict": NUMBER_CONTRACT,
    "math": "{question}\n\nEnd your answer with the final result in \\boxed{}.",
    "math-strict": "{question}\n\nEnd your answer with the final result in \\boxed{}.",
    "choice": '{question}\n\nEnd with the line "The answer is (X)", where X is the letter of the '
    "right option.",
    "code": "{question}\n\nGive the whole program in one fenced ```python block.",
}
"""Text added to a ``question`` (never to a ``prompt``): the format that the verifier reads."""

PROBLEM_FIELDS = ("prompt", "test", "entry_point")


class JsonlTask:
    """Your own questions, one JSON object a line; --verifier names the verifier of the answers.

    A line holds these fields:

    - ``question``, to which the verifier's contract is added ('End your answer with …'), or
      ``prompt``, which the model gets as it is;
    - ``answer`` or ``gold``: what the verifier compares with (a regular expression for ``regex``, a
      problem object for ``code``); verifiers that ask a command or a function can do without;
    - ``id``: any text or number, unique; by default the file's name and the line's number;
    - ``solution``: a worked solution, for methods that train on one.
    """

    name: ClassVar[str] = "jsonl"
    splits: ClassVar[tuple[str, ...]] = ("test",)

    def __init__(
        self,
        verifier: str | Callable[[], Verifier] | None = None,
        *,
        file: Path | str | None = None,
        time_limit: float | None = None,
        judge_url: str | None = None,
        judge_prompt: str | None = None,
    ) -> None:
        """Set the verifier of the answers.

        Args:
            verifier: as after ``--verifier`` (see :func:`fttt.verifiers.verifier.choose_verifier`),
                or a function that makes one.
            file: the file, where ``TaskOptions.data_dir`` does not name it.
            time_limit: seconds for one verdict; by default the verifier's own.
            judge_url: where the verifier ``code`` finds its judge.
            judge_prompt: the prompt of a judging model (``llm``), with {question} and {answer}.

        Raises:
            UsageError: there is no such verifier.
        """
        self._kinds: tuple[str, ...] = ()
        if isinstance(verifier, str):
            check_choice(verifier)
            self._kinds = tuple(split_choice(one)[0] for one in single_choices(verifier))
        self._verifier = verifier
        self._file = None if file is None else Path(file)
        self._time_limit = time_limit
        self._judge_url = judge_url
        self._judge_prompt = judge_prompt
        if judge_prompt is not None:
            from fttt.verifiers.llm_judge import check_judge_prompt

            if "llm" not in self._kinds:
                raise UsageError(
                    "The option judge_prompt is of a judging model; leave it away, or judge with "
                    "--verifier llm:NAME@URL."
                )
            check_judge_prompt(judge_prompt)

    @property
    def reads_answers(self) -> bool:
        """Whether the verifier extracts answers, which a vote needs."""
        return not isinstance(self._verifier, str) or reads_answers(self._verifier)

    @property
    def cautions(self) -> tuple[str, ...]:
        """What is to be said of the verifier before a run."""
        return cautions(self._verifier) if isinstance(self._verifier, str) else ()

    @property
    def judges(self) -> list[dict[str, Any]]:
        """The judging models that the verifier asks, with their prompts."""
        if not isinstance(self._verifier, str):
            return []
        return judge_facts(self._verifier, self._judge_prompt)

    def load(self, options: TaskOptions) -> list[Question]:
        """Read the file; its order is the order of the questions."""
        check_split(self.name, options.split, self.splits)
        self._require_verifier()
        path = self._file or options.data_dir
        if path is None:
            raise UsageError("The task 'jsonl' needs a file of questions; name it with --data-dir.")
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder; the task 'jsonl' reads one file.")
        questions: dict[str, Question] = {}
        lines: dict[str, int] = {}
        for number, row in read_jsonl(path):
            where = f"Line {number} of {str(path)!r}"
            question = self._question(where, f"{path.stem}/{number}", row, options.prompt)
            if question.id in questions:
                raise UsageError(
                    f"{where} has the id {question.id!r}, which line {lines[question.id]} has "
                    "too; make ids unique or leave them out."
                )
            questions[question.id], lines[question.id] = question, number
        return list(questions.values())

    def verifier(self) -> Verifier:
        """A fresh verifier of this task's kind."""
        made = self._require_verifier()
        if isinstance(made, str):
            return choose_verifier(
                made,
                time_limit=self._time_limit,
                judge_url=self._judge_url,
                judge_prompt=self._judge_prompt,
            )
        return made()

    def _require_verifier(self) -> str | Callable[[], Verifier]:
        if self._verifier is None:
            raise UsageError(
                f"The task 'jsonl' needs a verifier; choose from {', '.join(CHOICES)} "
                "with --verifier."
            )
        return self._verifier

    def _question(self, where: str, default_id: str, row: Row, template: str | None) -> Question:
        field = next((name for name in ("question", "prompt") if name in row), None)
        if field is None:
            raise UsageError(f"{where} has neither a field 'question' nor 'prompt'; add one.")
        text = row[field]
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{where} has a {field!r} that is no text: {text!r}.")
        identity = row.get("id", default_id)
        if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
            raise UsageError(
                f"{where} has an 'id' that is neither text nor a number: {identity!r}."
            )
        solution = row.get("solution")
        if solution is not None and not isinstance(solution, str):
            raise UsageError(f"{where} has a 'solution' that is no text: {solution!r}.")
        contracts = (CONTRACTS[kind] for kind in self._kinds if kind in CONTRACTS)
        template = template or (next(contracts, None) if field == "question" else None)
        return Question(
            id=str(identity),
            prompt=text if template is None else fill_prompt(template, text),
            gold=self._gold(where, row),
            solution=solution,
        )

    def _gold(self, where: str, row: Row) -> Any:
        gold = row.get("answer", row.get("gold"))
        if not isinstance(self._verifier, str):
            return gold
        for choice in filter(needs_gold, single_choices(self._verifier)):
            kind = split_choice(choice)[0]
            if gold is None:
                raise UsageError(
                    f"{where} has neither a field 'answer' nor 'gold', which the verifier "
                    f"{kind!r} needs."
                )
            _check_gold(where, kind, gold)
        return gold


def _check_gold(where: str, kind: str, gold: Any) -> None:
    """Refuse a gold answer that no completion could equal."""
    if kind in ("number", "number-strict") and read_number(gold) is None:
        raise UsageError(f"{where} has the gold answer {gold!r}, which holds no number.")
    if kind in ("math", "math-strict") and not str(gold).strip():
        raise UsageError(f"{where} has an empty gold answer.")
    if kind == "choice" and gold_letter(gold) is None:
        raise UsageError(f"{where} has the gold answer {gold!r}, which is no letter of an option.")
    if kind == "regex":
        try:
            re.compile(str(gold))
        except re.error as error:
            raise UsageError(
                f"{where} has the gold answer {gold!r}, which is no regular expression: {error}."
            ) from None
    if kind == "code":
        _check_problem(where, gold)


def _check_problem(where: str, gold: Any) -> None:
    """Refuse a problem object that the judge would refuse for every program."""
    fields = gold if isinstance(gold, dict) else {}
    if "test" not in fields and ("inputs" in fields or "outputs" in fields):
        for name in ("inputs", "outputs"):
            texts = fields.get(name)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UsageError(f"{where} has a gold answer whose {name!r} is no list of texts.")
        inputs, outputs = fields["inputs"], fields["outputs"]
        if not inputs or len(inputs) != len(outputs):
            raise UsageError(
                f"{where} has a gold answer with {len(inputs)} inputs and {len(outputs)} outputs; "
                "give as many of each, and at least one."
            )
        shown: tuple[type, str] = (int, "the number of tests, from the first,")
    else:
        missing = [field for field in PROBLEM_FIELDS if not isinstance(fields.get(field), str)]
        if missing:
            raise UsageError(
                f"{where} has a gold answer without the text {missing[0]!r}; a problem object has "
                f"{', '.join(PROBLEM_FIELDS)}, or inputs and outputs."
            )
        shown = (str, "the tests, in the form of 'test',")
    visible = fields.get("visible", shown[0]())
    if not isinstance(visible, shown[0]) or isinstance(visible, bool):
        raise UsageError(
            f"{where} has a gold answer whose 'visible' is {visible!r:.80}; "
            f"give {shown[1]} that the model may be shown."
        )
