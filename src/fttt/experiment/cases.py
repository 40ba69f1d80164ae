"""Which questions are asked: by id, and without those that greedy decoding solves."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from fttt.errors import RunError, UsageError
from fttt.naming import file_name
from fttt.store import write_whole
from fttt.types import Question

__all__ = ["cases_file", "chosen", "in_order", "save_cases", "without_cases"]


def cases_file(model: str, task: str) -> Path:
    """Where the correct cases of a model on a task are kept."""
    return Path("metadata") / file_name(f"{model}_{task}_correct_cases.json")


def chosen(questions: Sequence[Question], ids: Sequence[str] | None) -> list[Question]:
    """The questions of these ids, in the task's order; all of them without ids.

    Raises:
        UsageError: an id that no question has.
    """
    if ids is None:
        return list(questions)
    known = {question.id: question for question in questions}
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
    questions: Sequence[Question], left: Sequence[Question], path: Path
) -> list[Question]:
    """``left`` without the questions that a file of correct cases lists.

    The file is a JSON list of ids, as ``greedy`` writes it, or of indices into the task's
    questions from 0, as the published index files are.

    Raises:
        UsageError: the file is missing, is no such list, or names what the task does not have.
    """
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
    skipped = {
        questions[case].id if isinstance(case, int) else case
        for case in cases
        if _names_one(case, len(questions), path)
    }
    if skipped and not skipped & {question.id for question in questions}:
        raise UsageError(
            f"The file of correct cases {str(path)!r} names none of the {len(questions)} "
            f"questions (it begins with {cases[0]!r}); it belongs to another task, split or seed."
        )
    return [question for question in left if question.id not in skipped]


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
        raise RunError(
            f"Cannot write the correct cases to {str(path)!r}: {error.strerror}; the run itself "
            "is complete."
        ) from error


def _names_one(case: object, total: int, path: Path) -> bool:
    if isinstance(case, str):
        return True
    if isinstance(case, int) and not isinstance(case, bool) and 0 <= case < total:
        return True
    raise UsageError(
        f"The file of correct cases {str(path)!r} names {case!r}, which is neither an id nor the "
        f"index of one of the {total} questions; it belongs to another task or split."
    )
