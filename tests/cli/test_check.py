from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fttt.testing import call


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output, and what went wrong."""
    code = call("check", *arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Questions of which one has a wrong solution."""
    rows = [
        {"id": "good", "question": "1+1?", "answer": "2", "solution": "The final answer is 2"},
        {"id": "bad", "question": "2+2?", "answer": "4", "solution": "The final answer is 5"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_all_as_expected(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, printed, _ = check(capsys, "arithmetic", "--split", "train")
    assert code == 0
    assert "arithmetic, train: 400 questions" in printed
    assert "gold answers that fail" in printed
    assert "wrong answers that pass" in printed


def test_what_fails_is_named(
    broken: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["jsonl", "--data-dir", str(broken), "--verifier", "number"]
    code, printed, _ = check(capsys, *arguments)
    assert code == 1
    assert "gold solutions that fail: bad: 5 is not 4" in printed
    code, printed, _ = check(capsys, *arguments, "--json")
    report = json.loads(printed)
    assert code == 1
    assert report["as_expected"] is False
    assert [mistake["question_id"] for mistake in report["solutions"]["mistakes"]] == ["bad"]
    assert (report["golds"]["judged"], report["golds"]["mistakes"]) == (2, [])


def test_an_empty_check_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1?", "answer": "2"}\n')
    arguments = ["jsonl", "--data-dir", str(path), "--verifier", "python:os.path:exists"]
    code, _, message = check(capsys, *arguments)
    assert code == 2
    assert "nothing to judge in the 1 questions" in message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gsm8"], "did you mean 'gsm8k'"),
        (["arithmetic", "--split", "dev"], "no split 'dev'"),
        (["arithmetic", "--verifier", "number"], "does not take the option 'verifier'"),
        (["mbpp", "--math-rule", "strict"], "does not take the option 'rule'"),
        (["gsm8k", "--data-dir", "/nowhere"], "is not in '/nowhere'"),
        (["jsonl"], "needs a verifier"),
    ],
)
def test_usage_errors(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, message = check(capsys, *arguments)
    assert code == 2
    assert said in message


def test_a_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    beside = Path(__file__).parents[3] / "shared" / "datasets"
    folder = Path(os.environ.get("FTTT_DATASETS", beside))
    if not folder.is_dir():
        pytest.skip("no benchmark data: set FTTT_DATASETS to the folder that holds it")
    code, printed, _ = check(capsys, "gsm8k", "--data-dir", str(folder), "--json")
    report = json.loads(printed)
    assert code == 0
    assert report["questions"] == 1319
    assert report["wrong"]["judged"] > 3900
