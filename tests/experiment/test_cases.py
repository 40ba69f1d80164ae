"""Which questions are asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.experiment.cases import (
    cases_file,
    chosen,
    found_cases,
    in_order,
    save_cases,
    without_cases,
)
from fttt.tasks import get_task
from fttt.types import Question

QUESTIONS = [Question(f"q/{n}", "?") for n in range(5)]
MBPP = [Question(f"MBPP/{n}", "?") for n in range(11, 511)]


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


def test_numbers_mean_what_they_do_in_the_papers_files(tmp_path: Path) -> None:
    """Task ids for mbpp, and rows for the others."""
    path = tmp_path / "llama_MBPP_correct_cases.json"
    path.write_text("[11, 12, 14, 510]")
    left = ids(without_cases(MBPP, MBPP, path, get_task("mbpp")))
    assert left[:2] == ["MBPP/13", "MBPP/15"]
    assert len(left) == 496
    rows = tmp_path / "rows.json"
    rows.write_text("[1, 3]")
    assert ids(without_cases(QUESTIONS, QUESTIONS, rows, get_task("gsm8k"))) == ids(QUESTIONS)[::2]
    assert ids(chosen(MBPP, ["14", "MBPP/11"], get_task("mbpp"))) == ["MBPP/11", "MBPP/14"]
    assert ids(chosen(QUESTIONS, ["3"], get_task("gsm8k"))) == ["q/3"]
    own = [Question("3", "?"), Question("0", "?")]
    assert ids(chosen(own, ["0"])) == ["0"]  # an id, before it is a row
    with pytest.raises(UsageError, match="No question has the id '3'"):
        chosen(MBPP, ["3"], get_task("mbpp"))


@pytest.mark.parametrize("number", [0, 10, 511, -1])
def test_a_number_that_is_no_task_of_mbpp_is_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([12, number]))
    with pytest.raises(UsageError, match=rf"names {number}, .* from MBPP/11 to MBPP/510; it bel"):
        without_cases(MBPP, MBPP, path, get_task("mbpp"))


def test_a_file_that_is_named_after_another_task_is_refused(tmp_path: Path) -> None:
    """Numbers of one task may be rows of another."""
    path = tmp_path / "llama_MBPP_correct_cases.json"
    path.write_text("[0, 1]")
    with pytest.raises(UsageError, match="named after the task 'mbpp', not 'gsm8k'; name that of"):
        without_cases(QUESTIONS, QUESTIONS, path, get_task("gsm8k"))
    other = path.rename(tmp_path / "llama_GSM-8K_correct_cases.json")
    assert len(without_cases(QUESTIONS, QUESTIONS, other, get_task("gsm8k"))) == 3


def test_files_are_found_by_our_names_and_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "meta-llama/Llama-3.1-8B-Instruct"
    label = "Llama-3.1-8B-Instruct"
    assert found_cases(label, model, "gsm8k") is None
    published = Path("metadata/llama_GSM8K_correct_cases.json")
    save_cases(published, [], [])
    assert found_cases(label, model, "gsm8k") == published
    assert found_cases(label, model, "mbpp") is None
    assert (
        found_cases("Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-70B-Instruct", "gsm8k") is None
    )
    assert found_cases(f"{label}+lora", model, "gsm8k") is None  # other weights
    own = cases_file(label, "gsm8k")
    save_cases(own, [], [])
    assert found_cases(label, model, "gsm8k") == own


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
    with pytest.raises(RunError, match=r"Cannot write '/proc/none/x.json'"):
        save_cases(Path("/proc/none/x.json"), [], [])


def test_the_file_is_named_by_model_and_task() -> None:
    assert cases_file("Llama-3.1-8B-Instruct", "gsm8k") == Path(
        "metadata/Llama-3.1-8B-Instruct_gsm8k_correct_cases.json"
    )
