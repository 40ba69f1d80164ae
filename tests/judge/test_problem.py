from __future__ import annotations

import json
from typing import get_args

import pytest

from fttt.judge.problem import (
    MAX_SUBMISSION,
    BadRequest,
    Judgement,
    Problem,
    Status,
    StdinProblem,
    Submission,
    read_problem,
)

GOOD = {"prompt": "p", "test": "t", "entry_point": "f"}


def test_a_problem_survives_the_protocol() -> None:
    problem = Problem.from_json({**GOOD, "task_id": "ignored"})
    assert problem == Problem("p", "t", "f", "data")
    assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize("field", ["prompt", "test", "entry_point"])
def test_each_field_is_needed_and_a_text(field: str) -> None:
    with pytest.raises(BadRequest, match=f'has no field "{field}"'):
        Problem.from_json({key: value for key, value in GOOD.items() if key != field})
    with pytest.raises(BadRequest, match=f'has no text in field "{field}"'):
        Problem.from_json({**GOOD, field: 7})


@pytest.mark.parametrize("value", [None, [], "f", 3])
def test_what_is_no_object_is_refused(value: object) -> None:
    with pytest.raises(BadRequest):
        Problem.from_json(value)
    with pytest.raises(BadRequest):
        Submission.from_json(value)


def test_a_problem_with_inputs_and_outputs_is_a_programs() -> None:
    problem = read_problem({"inputs": ["1"], "outputs": ["2"], "visible": 1})
    assert problem == StdinProblem(("1",), ("2",))
    assert read_problem(json.loads(json.dumps(problem.to_json()))) == problem
    assert isinstance(read_problem({**GOOD, "inputs": ["of something else"]}), Problem)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": ["1"]}, 'no list of texts in field "outputs"'),
        ({"inputs": "1", "outputs": ["1"]}, 'no list of texts in field "inputs"'),
        ({"inputs": [1], "outputs": ["1"]}, 'no list of texts in field "inputs"'),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "2 inputs and 1 outputs"),
        ({"inputs": [], "outputs": []}, "0 inputs and 0 outputs"),
        ({"inputs": ["1"], "outputs": ["1"], "prompt": None}, 'no text in field "prompt"'),
    ],
)
def test_inputs_and_outputs_come_in_pairs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        read_problem(fields)


def test_without_an_entry_point_check_takes_nothing() -> None:
    for check in ("def check():\n    pass", "x = 1", "def check(:", "def check(f=None): pass"):
        problem = Problem.from_json({"prompt": "", "test": check, "entry_point": ""})
        assert problem.entry_point == ""
    with pytest.raises(BadRequest, match=r"entry_point is empty, and its check\(\) takes"):
        Problem.from_json({"prompt": "", "test": "def check(f): pass", "entry_point": " "})


def test_the_answer_has_the_published_number() -> None:
    numbers = [Judgement(status).to_json()["result"] for status in get_args(Status)]
    assert dict(zip(get_args(Status), numbers, strict=True)) == {
        "passed": 1,
        "failed": 3,
        "timeout": 2,
        "memory": 3,
        "error": 3,
    }


def test_the_tests_stay_with_the_tester() -> None:
    for border in ("data", "shared"):
        assert Submission(Problem("p", "SECRET", "f", border), "c").source == "pc"


def test_what_cannot_be_a_program_is_known_without_running_it() -> None:
    problem = Problem.from_json(GOOD)
    assert Submission(problem, "x" * MAX_SUBMISSION).fault is None
    for text, words in (("x" * (MAX_SUBMISSION + 1), "at most"), ("\0", "NUL"), ("\udfff", "lone")):
        assert words in (Submission(problem, text).fault or "")


def test_a_judgement_survives_the_protocol_in_any_encoding() -> None:
    judgement = Judgement("failed", "\ud800", 1.5)
    wire = json.dumps(judgement.to_json(), ensure_ascii=False).encode("utf-8")
    assert Judgement.from_json(json.loads(wire)) == Judgement("failed", "\\ud800", 1.5)
