from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.bbh import CHOICES
from fttt.tasks.gold_check import check_task
from fttt.verifiers.choice import read_options

LETTERED = {"input": "Which day?\nOptions:\n(A) 1937\n(B) 1938\n(C) 1939", "target": "(B)"}
WORDS = {"input": "Do you return?\nOptions:\n- Yes\n- No", "target": "No"}
FALLACY = {"input": "Is it valid or invalid?\nOptions:\n- valid \n- invalid", "target": "invalid"}
BARE = {"input": "not ( True ) and ( True ) is", "target": "False"}


def test_lettered_tasks_keep_their_options_and_words_become_options(hub: Any) -> None:
    held = {
        "date_understanding": LETTERED,
        "navigate": WORDS,
        "formal_fallacies": FALLACY,
        "boolean_expressions": BARE,
    }
    for name, row in held.items():
        hub["SaylorTwift/bbh", name, "test"] = [row]
    questions = get_task("bbh", tasks=",".join(held)).load(TaskOptions())
    assert [q.id for q in questions] == [f"bbh/{name}/0" for name in held]
    assert [q.gold for q in questions] == ["B", "B", "B", "B"]
    assert [len(read_options(q.prompt)) for q in questions] == [3, 2, 2, 2]
    assert "- No" not in questions[1].prompt
    assert read_options(questions[2].prompt) == {"A": "valid", "B": "invalid"}
    assert "is\n\nOptions:\n(A) True\n(B) False\n" in questions[3].prompt


def test_the_repositorys_own_files(tmp_path: Path) -> None:
    (tmp_path / "bbh").mkdir()
    for name in CHOICES:
        row = LETTERED
        file = tmp_path / "bbh" / f"{name}.json"
        if name in ("navigate", "web_of_lies", "causal_judgement"):
            row = WORDS
        elif name == "formal_fallacies":
            row = FALLACY
        elif name == "boolean_expressions":
            row = BARE
        elif name == "sports_understanding":
            row = {"input": "Is it plausible?", "target": "yes"}
        file.write_text(json.dumps({"canary": "x", "examples": [row]}))
    report = asyncio.run(check_task(get_task("bbh"), TaskOptions(data_dir=tmp_path)))
    assert report.as_expected, report
    assert report.golds.judged == len(CHOICES) == 23


def test_bad_input_is_named(hub: Any) -> None:
    with pytest.raises(UsageError, match="'word_sorting' of bbh is no multiple choice"):
        get_task("bbh", tasks="navigate,word_sorting")
    with pytest.raises(UsageError, match="no task of bbh 'navigation'"):
        get_task("bbh", tasks="navigation")
    hub["SaylorTwift/bbh", "navigate", "test"] = [{**WORDS, "target": "(A)"}]
    with pytest.raises(UsageError, match=r"has the target '\(A\)'; it is one of Yes, No there"):
        get_task("bbh", tasks="navigate").load(TaskOptions())
