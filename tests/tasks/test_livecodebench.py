from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import zlib
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.gold_check import check_task
from fttt.types import Question, Verdict
from fttt.verifiers.code import CodeVerifier


def packed(value: object) -> str:
    """As the data set packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def cases(*pairs: tuple[str, str], kind: str = "stdin") -> str:
    return json.dumps([{"input": a, "output": b, "testtype": kind} for a, b in pairs])


STDIN: dict[str, Any] = {
    "question_title": "Doubles",
    "question_content": "Double each of the numbers.",
    "platform": "atcoder",
    "question_id": "abc301_a",
    "contest_id": "abc301",
    "contest_date": "2024-05-13T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": cases(("2\n1 2\n", "2 4\n")),
    "private_test_cases": packed(cases(("1\n5\n", "10"), ("3\n0 1 2\n", "0 2 4"))),
    "metadata": "{}",
}
FUNCTION: dict[str, Any] = {
    **STDIN,
    "platform": "leetcode",
    "question_id": "3000",
    "contest_date": "2024-09-01T00:00:00",
    "starter_code": "class Solution:\n    def pairs(self, nums: List[int], k: int):\n        ",
    "public_test_cases": cases(("[1, 2, 3]\n2", "[2, 4, 6]"), kind="functional"),
    "private_test_cases": packed(cases(("[]\n3", "[]"), ("[1]\n5", "[5.0]"), kind="functional")),
    "metadata": '{"func_name": "pairs"}',
}


def write(folder: Path, *rows: dict[str, Any], file: str = "test.jsonl") -> Path:
    (folder / file).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def load(folder: Path, **options: Any) -> list[Question]:
    return get_task("livecodebench", **options).load(TaskOptions(data_dir=folder))


def verdict(question: Question, program: str) -> Verdict:
    async def run() -> Verdict:
        verifier = CodeVerifier()
        found = await verifier.verify(question, f"```python\n{program}\n```")
        await verifier.close()
        return found

    return asyncio.run(run())


def test_programs_and_functions_with_a_partial_score(tmp_path: Path) -> None:
    stdin, function = load(write(tmp_path, STDIN, FUNCTION))
    assert (stdin.id, function.id) == ("livecodebench/abc301_a", "livecodebench/3000")
    assert "standard input" in stdin.prompt
    assert "class Solution:" in function.prompt
    # names of the standard library are there, as in the published harness
    right = "n = int(input())\nprint(*[2 * x for x in map(int, sys.stdin.readline().split())])"
    assert verdict(stdin, right).outcome == "correct"
    part = verdict(stdin, "print('2 4')")
    assert (part.tests_passed, part.tests_total) == (1, 3)
    assert part.feedback.endswith("passes the tests that you know, not all.")
    method = "class Solution:\n    def pairs(self, nums: List[int], k):\n        "
    right = f"{method}print('debug')\n        return tuple(k * n for n in nums)"
    assert verdict(function, right).outcome == "correct"
    part = verdict(function, f"{method}return [2 * n for n in nums]")
    assert (part.tests_passed, part.tests_total) == (2, 3)
    wrong = verdict(function, f"{method}return nums")
    assert "Input:\n```\n[1, 2, 3]\n2\n```\nline 1 is '[1, 2, 3]', expected '[2, 4, 6]'" in (
        wrong.feedback
    )


def test_its_check(tmp_path: Path) -> None:
    options = TaskOptions(data_dir=write(tmp_path, STDIN, FUNCTION))
    report = asyncio.run(check_task(get_task("livecodebench"), options))
    assert report.as_expected, report
    assert (report.golds.judged, report.wrong.judged) == (2, 8)


def test_problems_by_their_release_date(tmp_path: Path) -> None:
    write(tmp_path, STDIN, FUNCTION)
    assert [q.id for q in load(tmp_path, start="2024-06-01")] == ["livecodebench/3000"]
    assert [q.id for q in load(tmp_path, end=date(2024, 5, 13))] == ["livecodebench/abc301_a"]
    said = (
        "released on or after 2025-01-01 and on or before 2025-02-01; these files have problems of "
        "2024-05-13 to 2024-09-01"
    )
    with pytest.raises(UsageError, match=said):
        load(tmp_path, start="2025-01-01", end="2025-02-01")
    with pytest.raises(UsageError, match="start of livecodebench is 'May'; give a date"):
        load(tmp_path, start="May")


def test_releases_are_files(tmp_path: Path) -> None:
    write(tmp_path, STDIN)
    write(tmp_path, FUNCTION, file="test6.jsonl")
    assert len(load(tmp_path)) == 2
    assert [q.id for q in load(tmp_path, release="v6")] == ["livecodebench/3000"]
    assert len(load(tmp_path, release="release_v1")) == 1
    with pytest.raises(UsageError, match=r"has the file 'test2.jsonl', which is not in"):
        load(tmp_path, release="release_v2")
    for release in ("v7", "release_v0", "v5_v4", "latest"):
        with pytest.raises(UsageError, match=f"no release '{release}'"):
            get_task("livecodebench", release=release)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile",)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (packed(Hostile()), r"a pickle that does more than hold a text \((SHORT_BINUNICODE|\w+)\)"),
        (packed([cases(("1", "2"))]), "does more than hold a text"),
        (packed(7), "does more than hold a text"),
        (base64.b64encode(b"no zlib").decode(), "neither JSON nor a compressed text"),
        ("%%%", "neither JSON nor a compressed text"),
        (packed("no JSON"), "neither JSON nor a compressed text"),
        (packed('[{"input": "1"}]'), "tests without 'input' and 'output'"),
        (packed(cases(("1", "2")))[:-8], "neither JSON nor a compressed text"),
    ],
)
def test_private_tests_are_read_and_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, STDIN, {**STDIN, "private_test_cases": field})
    with pytest.raises(UsageError, match=f"Line 2 of .*{said}"):
        load(tmp_path)
    assert not (tmp_path / "hostile").exists()


def test_private_tests_may_be_plain_json(tmp_path: Path) -> None:
    row = {**STDIN, "private_test_cases": cases(("1\n5\n", "10"))}
    (question,) = load(write(tmp_path, row))
    assert len(question.gold["inputs"]) == 2  # type: ignore[index, call-overload, arg-type]


def test_the_hub_is_asked_for_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write(tmp_path, FUNCTION, file="test6.jsonl")
    asked = []

    def download(name: str, file: str, *, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(get_task("livecodebench", release="v6").load(TaskOptions())) == 1
    assert asked == [("livecodebench/code_generation_lite", "test6.jsonl", "dataset")]
