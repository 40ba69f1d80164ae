"""Which questions are asked: by id, and without those that greedy decoding solves."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fttt.errors import UsageError
from fttt.files import cannot_write, file_name, model_label, write_whole
from fttt.tasks import TASKS, Task, task_name
from fttt.types import Question

__all__ = ["cases_file", "chosen", "found_cases", "in_order", "save_cases", "without_cases"]

FOLDER = Path("metadata")
_NAMED = re.compile(r".+_([^_]+)_correct_cases\.json")

PUBLISHED_TASKS = {"gsm8k": "GSM8K", "math500": "MATH500", "mbpp": "MBPP", "humaneval": "HumanEval"}
PUBLISHED_MODELS = {
    "llama-3.1-8b-instruct": "llama",
    "meta-llama-3.1-8b-instruct": "llama",
    "mistral-7b-instruct-v0.3": "mistral",
}
"""What the paper's code calls tasks and models in the names of its index files."""


def cases_file(model: str, task: str) -> Path:
    """Where the correct cases of a model on a task are kept."""
    return FOLDER / file_name(f"{model}_{task}_correct_cases.json")


def found_cases(label: str, model: str, task: str) -> Path | None:
    """The file of correct cases under ``./metadata``, as ``greedy`` or the paper's code names it.

    Args:
        label: the name of the weights: the model's, with that of a checkpoint.
        model: the model, as the run's settings have it.
        task: the task's name.
    """
    places = [cases_file(label, task)]
    published = PUBLISHED_MODELS.get(model_label(model).lower())
    if label == model_label(model) and published is not None and task in PUBLISHED_TASKS:
        places.append(cases_file(published, PUBLISHED_TASKS[task]))
    return next((place for place in places if place.is_file()), None)


def chosen(
    questions: Sequence[Question], ids: Sequence[str] | None, task: Task | None = None
) -> list[Question]:
    """The questions of these ids, in the task's order; all of them without ids.

    A number stands for the question that the paper's index files call by it.

    Raises:
        UsageError: an id that no question has.
    """
    if ids is None:
        return list(questions)
    known = {question.id: question for question in questions}
    ids = [
        identity
        if identity in known or not identity.isdecimal()
        else _numbered(int(identity), questions, task) or identity
        for identity in ids
    ]
    for identity in ids:
        if identity not in known:
            near = difflib.get_close_matches(identity, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the first is {questions[0].id!r}."
            raise UsageError(f"No question has the id {identity!r}; {hint}")
    wanted = set(ids)
    return [question for question in questions if question.id in wanted]


def in_order(questions: Sequence[Question], ids: Sequence[str]) -> list[Question]:
    """The questions of these ids in the order of the ids.

    Raises:
        UsageError: an id that no question has.
    """
    by_id = {question.id: question for question in chosen(questions, ids)}
    return [by_id[identity] for identity in ids]


def without_cases(
    questions: Sequence[Question],
    left: Sequence[Question],
    path: Path,
    task: Task | None = None,
) -> list[Question]:
    """``left`` without the questions that a file of correct cases lists.

    The file is a JSON list of ids, as ``greedy`` writes it, or of numbers, as the paper's index
    files are: rows from 0, and for ``mbpp`` its task ids.

    Raises:
        UsageError: the file is missing, is no such list, or names what the task does not have.
    """
    skipped = _listed(path, questions, task)
    if skipped and not skipped & {question.id for question in questions}:
        raise UsageError(
            f"The file of correct cases {str(path)!r} names none of the {len(questions)} "
            f"questions (one that it names is {min(skipped)!r}); it belongs to another task, "
            "split or seed; name another file, or ask all questions by --skip-cases none."
        )
    return [question for question in left if question.id not in skipped]


def _listed(path: Path, questions: Sequence[Question], task: Task | None) -> set[str]:
    """The ids that a file of correct cases names."""
    named = _NAMED.fullmatch(path.name)
    other = None if named is None else task_name(named[1])
    if task is not None and other in TASKS and task.name in TASKS and other != task.name:
        raise UsageError(
            f"The file of correct cases {str(path)!r} is named after the task {other!r}, not "
            f"{task.name!r}; name that of {task.name!r}, or ask all questions by --skip-cases none."
        )
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"There is no file of correct cases {str(path)!r}; `fttt run greedy` on the same model "
            "and task writes it."
        ) from None
    except OSError as error:
        raise UsageError(f"Cannot read {str(path)!r}: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(
            f"The file of correct cases {str(path)!r} is no JSON list: {error}."
        ) from None
    if not isinstance(cases, list):
        raise UsageError(f"The file of correct cases {str(path)!r} holds no JSON list.")
    return {_case(case, path, questions, task) for case in cases}


def save_cases(path: Path, asked: Iterable[str], solved: Iterable[str]) -> None:
    """Write the ids of solved questions.

    What the file says of questions that were not asked this time stays.

    Raises:
        RunError: the file cannot be written.
    """
    asked = set(asked)
    solved = list(solved)
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except (OSError, ValueError):
        old = []  # a broken file is replaced: what it should say is not known
    kept = [case for case in old if isinstance(case, str) and case not in asked]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(kept + solved, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(path, error, "the run itself is complete") from error


def _case(case: object, path: Path, questions: Sequence[Question], task: Task | None) -> str:
    """The id that one entry of a file of correct cases means."""
    if isinstance(case, str):
        return case
    found = None
    if isinstance(case, int) and not isinstance(case, bool):
        found = _numbered(case, questions, task)
    if found is None:
        what = f"index of one of the {len(questions)} questions"
        if hasattr(task, "numbered"):
            what = f"number in an id from {questions[0].id} to {questions[-1].id}"
        raise UsageError(
            f"The file of correct cases {str(path)!r} names {case!r}, which is neither an id nor "
            f"the {what}; it belongs to another task or split, so name the file of this one."
        )
    return found


def _numbered(number: int, questions: Sequence[Question], task: Task | None) -> str | None:
    """The id of the question that the paper's index files call by a number."""
    named = getattr(task, "numbered", None)
    if named is None:
        return questions[number].id if 0 <= number < len(questions) else None
    identity: str = named(number)
    return identity if any(question.id == identity for question in questions) else None
