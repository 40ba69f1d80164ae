"""Which questions are asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.experiment.cases import cases_file, chosen, in_order, save_cases, without_cases
from fttt.types import Question

QUESTIONS = [Question(f"q/{n}", "?") for n in range(5)]


def ids(questions: list[Question]) -> list[str]:
    return [question.id for question in questions]


def test_questions_are_chosen_by_id() -> None:
    assert ids(chosen(QUESTIONS, ["q/3", "q/1"])) == ["q/1", "q/3"]
    assert ids(in_order(QUESTIONS, ["q/3", "q/1"])) == ["q/3", "q/1"]
    assert chosen(QUESTIONS, None) == QUESTIONS
    with pytest.raises(UsageError, match=r"No question has the id 'q/9'; did you mean 'q/\d'\?"):
        chosen(QUESTIONS, ["q/9"])
    with pytest.raises(UsageError, match="the first is 'q/0'"):
        chosen(QUESTIONS, ["zzzzzz"])


@pytest.mark.parametrize("cases", [["q/0", "q/4"], [0, 4], [], ["q/0", 4, "elsewhere/1"]])
def test_cases_are_ids_or_published_indices(tmp_path: Path, cases: list[object]) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(cases))
    expected = ids(QUESTIONS)[1:4] if cases else ids(QUESTIONS)
    assert ids(without_cases(QUESTIONS, QUESTIONS, path)) == expected


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is no JSON list"),
        ('{"a": 1}', "holds no JSON list"),
        ("[5]", r"names 5, which is neither an id nor the index of one of the 5 questions"),
        ("[true]", "names True"),
        ('["other/1"]', "names none of the 5 questions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=match):
        without_cases(QUESTIONS, QUESTIONS, path)


def test_a_missing_file_says_what_writes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file of correct cases .*`fttt run greedy`"):
        without_cases(QUESTIONS, QUESTIONS, tmp_path / "none.json")


def test_saving_keeps_what_was_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "metadata" / "cases.json"
    save_cases(path, ["q/0", "q/1"], ["q/0", "q/1"])
    save_cases(path, ["q/1", "q/2"], ["q/2"])
    assert json.loads(path.read_text()) == ["q/0", "q/2"]
    assert ids(without_cases(QUESTIONS, QUESTIONS, path)) == ["q/1", "q/3", "q/4"]


def test_a_file_that_cannot_be_written_is_named() -> None:
    with pytest.raises(RunError, match=r"Cannot write the correct cases to '/proc/none/x.json'"):
        save_cases(Path("/proc/none/x.json"), [], [])


def test_the_file_is_named_by_model_and_task() -> None:
    assert cases_file("Llama-3.1-8B-Instruct", "gsm8k") == Path(
        "metadata/Llama-3.1-8B-Instruct_gsm8k_correct_cases.json"
    )
