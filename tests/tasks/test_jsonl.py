from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks.jsonl import JsonlTask
from fttt.tasks.task import TaskOptions
from fttt.types import Question
from fttt.verifiers.number import NumberVerifier

PROBLEM = {"prompt": "", "test": "def check(f):\n    assert f() == 1", "entry_point": "f"}


def load(
    tmp_path: Path, *rows: Any, verifier: str | None = "number", prompt: str | None = None
) -> list[Question]:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return JsonlTask(verifier).load(TaskOptions(data_dir=path, prompt=prompt))


def test_fields(tmp_path: Path) -> None:
    questions = load(
        tmp_path,
        {"id": "a", "question": "1+1?", "answer": "2", "solution": "1+1=2"},
        {"id": 7, "prompt": "As it is.", "gold": 3},
        "",
        {"question": "2+2?", "answer": "4", "level": "easy"},
    )
    assert [q.id for q in questions] == ["a", "7", "mine/4"]
    contract = 'End your answer with the line "The final answer is" followed by the number.'
    assert questions[0].prompt == f"1+1?\n\n{contract}"
    assert questions[0].solution == "1+1=2"
    assert (questions[1].prompt, questions[1].gold) == ("As it is.", 3)


def test_the_verifier_says_how_to_answer(tmp_path: Path) -> None:
    row = {"question": "x?", "answer": "2"}
    assert "\\boxed{}" in load(tmp_path, row, verifier="math")[0].prompt
    assert "```python" in load(tmp_path, row | {"answer": PROBLEM}, verifier="code")[0].prompt
    assert load(tmp_path, row, verifier="regex")[0].prompt == "x?"
    assert load(tmp_path, row, prompt="Q {question}")[0].prompt == "Q x?"
    assert load(tmp_path, {"prompt": "y", "answer": "2"}, prompt="Q {question}")[0].prompt == "Q y"


@pytest.mark.parametrize(
    ("row", "verifier", "said"),
    [
        ("{bad", "number", "Line 2 of .* is no JSON"),
        ("3", "number", "Line 2 of .* is no JSON object"),
        ({"answer": "2"}, "number", "neither a field 'question' nor 'prompt'"),
        ({"question": "", "answer": "2"}, "number", "'question' that is no text"),
        ({"question": ["x"], "answer": "2"}, "number", "'question' that is no text"),
        ({"question": "x"}, "number", "neither a field 'answer' nor 'gold'"),
        ({"question": "x", "answer": "many"}, "number", "'many', which holds no number"),
        ({"question": "x", "answer": " "}, "math", "empty gold answer"),
        ({"question": "x", "answer": "("}, "regex", "no regular expression"),
        ({"question": "x", "answer": "2"}, "code", "without the text 'prompt'"),
        ({"question": "x", "answer": "none"}, "choice", "'none', which is no letter of an option"),
        ({"question": "x", "answer": {"inputs": ["1"]}}, "code", "'outputs' is no list of texts"),
        (
            {"question": "x", "answer": {"inputs": ["1"], "outputs": []}},
            "code",
            "1 inputs and 0 outputs",
        ),
        (
            {"question": "x", "answer": {"inputs": ["1"], "outputs": ["1"], "visible": "1"}},
            "code",
            "'visible' is '1'",
        ),
        ({"question": "x", "answer": PROBLEM | {"test": 3}}, "code", "without the text 'test'"),
        (
            {"id": "mine/1", "question": "x", "answer": "2"},
            "number",
            "'mine/1', which line 1 has too",
        ),
        ({"id": True, "question": "x", "answer": "2"}, "number", "neither text nor a number"),
        ({"id": "", "question": "x", "answer": "2"}, "number", "neither text nor a number"),
        ({"question": "x", "answer": "2", "solution": 3}, "number", "'solution' that is no text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, verifier: str, said: str) -> None:
    gold = {"code": PROBLEM, "choice": "B"}.get(verifier, "1")
    with pytest.raises(UsageError, match=said) as error:
        load(tmp_path, {"question": "fine", "answer": gold}, row, verifier=verifier)
    assert "Line 2" in str(error.value)


@pytest.mark.parametrize("verifier", ["command:true", "python:os.path:exists", "regex:^a"])
def test_some_verifiers_need_no_gold(tmp_path: Path, verifier: str) -> None:
    assert load(tmp_path, {"question": "x"}, verifier=verifier)[0].gold is None


def test_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a verifier; choose from number"):
        load(tmp_path, {"question": "x", "answer": "2"}, verifier=None)
    with pytest.raises(UsageError, match="no verifier 'numbr'"):
        JsonlTask("numbr")
    with pytest.raises(UsageError, match="needs a file"):
        JsonlTask("number").load(TaskOptions())
    with pytest.raises(UsageError, match="is a folder"):
        JsonlTask("number").load(TaskOptions(data_dir=tmp_path))
    with pytest.raises(UsageError, match="cannot be read"):
        JsonlTask("number").load(TaskOptions(data_dir=tmp_path / "none.jsonl"))
    with pytest.raises(UsageError, match="holds no question"):
        load(tmp_path)
    with pytest.raises(UsageError, match="no split 'train'"):
        JsonlTask("number").load(TaskOptions(data_dir=tmp_path, split="train"))


def test_the_verifier_that_was_chosen(tmp_path: Path) -> None:
    assert isinstance(JsonlTask("number").verifier(), NumberVerifier)
    assert isinstance(JsonlTask(NumberVerifier).verifier(), NumberVerifier)

    async def run() -> list[str]:
        verifier = JsonlTask("command:sleep 60", time_limit=0.3).verifier()
        verdict = await verifier.verify(Question("q", ""), "x")
        await verifier.close()
        return [verdict.outcome, verdict.detail]

    assert asyncio.run(run()) == ["incorrect", "the command took longer than its limit of 0.3 s"]


def test_the_file_may_be_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "x", "answer": "2"}\n')
    assert len(JsonlTask("number", file=str(path)).load(TaskOptions())) == 1
