"""``fttt check`` and ``fttt verify``."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def test_options_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    code, printed, _ = check(capsys, "sorting", "--task-option", "words=3")
    assert code == 0, printed
    code, _, wrong = check(capsys, "arithmetic", "--task-option", "levels=[9]")
    assert code == 2
    assert "no level 9" in wrong


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


PROBLEM = {
    "prompt": "",
    "test": "def check(candidate):\n    assert candidate(2) == 4",
    "entry_point": "double",
}


def verify(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, the lines printed, and what went wrong."""
    code = call("verify", *arguments)
    printed = capsys.readouterr()
    return code, [json.loads(line) for line in printed.out.splitlines()], printed.err


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return str(path)


def case(gold: Any, completion: str) -> dict[str, Any]:
    return {"gold": gold, "completion": completion}


def test_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [case("18", "It is $18.00."), case(18, "19"), "", case("18", "eighteen")]
    code, lines, _ = verify(capsys, "number", write(tmp_path / "in.jsonl", *rows))
    assert code == 0
    assert [line["verdict"] for line in lines] == ["correct", "incorrect", "unanswered"]
    assert [line["extracted"] for line in lines] == ["18", "19", None]
    assert all(set(line) == {"verdict", "extracted", "detail"} for line in lines)


def test_a_line_may_say_that_its_completion_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = case("12", "The final answer is 12")
    rows = [row, {**row, "finish_reason": "length"}, {**row, "finish_reason": "stop"}]
    _, lines, _ = verify(capsys, "number", write(tmp_path / "in.jsonl", *rows))
    assert [line["verdict"] for line in lines] == ["correct", "unanswered", "correct"]


def test_mathematics_by_either_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [case(r"\frac{1}{4}", r"\boxed{0.25}"), case("x+1", r"\boxed{1+x}"), case("5", "no")]
    file = write(tmp_path / "in.jsonl", *rows)
    _, lines, _ = verify(capsys, "math", file)
    assert [line["verdict"] for line in lines] == ["correct", "correct", "unanswered"]
    _, lines, _ = verify(capsys, "math", file, "--math-rule", "strict")
    assert [line["verdict"] for line in lines] == ["incorrect", "incorrect", "unanswered"]


def test_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = "```python\ndef double(a):\n    return 2 * a\n```"
    rows = [case(PROBLEM, right), case(PROBLEM, right.replace("2", "3")), case(PROBLEM, "no idea")]
    code, lines, _ = verify(capsys, "code", write(tmp_path / "in.jsonl", *rows))
    assert code == 0
    assert [line["verdict"] for line in lines] == ["correct", "incorrect", "unanswered"]


def test_the_order_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slow and quick comparisons, more than are judged at once."""
    rows = [
        case(r"\sqrt{2}+1", rf"\boxed{{\sqrt{{2}}+{n % 3}}}")
        if n % 2
        else case("7", f"\\boxed{{{n}}}")
        for n in range(150)
    ]
    _, lines, _ = verify(capsys, "math", write(tmp_path / "in.jsonl", *rows))
    expected = [n % 3 == 1 if n % 2 else n == 7 for n in range(150)]
    assert [line["verdict"] == "correct" for line in lines] == expected


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("number", "{bad", "Line 2 of .* is no JSON"),
        ("number", "[1]", 'Line 2 of .* "gold" and "completion"'),
        ("number", {"gold": "1"}, 'Line 2 of .* "gold" and "completion"'),
        ("number", {"gold": "1", "completion": 3}, "Line 2 of .* completion that is no text"),
        ("math", {"gold": None, "completion": "3"}, "Line 2 of .* neither text nor a number"),
        ("number", {"gold": True, "completion": "3"}, "Line 2 of .* neither text nor a number"),
        ("code", {"gold": "1", "completion": "3"}, "Line 2 of .* no problem object"),
        (
            "number",
            {"gold": "1", "completion": "1", "finish_reason": 1},
            "Line 2 of .* finish_reason that is no text: 1",
        ),
    ],
)
def test_a_malformed_line_is_named_behind_the_verdicts_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, row: Any, said: str
) -> None:
    first = case(PROBLEM, "no idea") if kind == "code" else case("1", "\\boxed{1}")
    file = write(tmp_path / "in.jsonl", first, row, first)
    code, lines, message = verify(capsys, kind, file)
    assert code == 2
    assert len(lines) == 1
    assert re.search(said, message)


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, message = verify(capsys, "number", str(tmp_path / "none.jsonl"))
    assert code == 2
    assert "cannot be read" in message


def test_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["number"], ["number", "-"]):
        text = json.dumps(case("1", "1")) + "\n"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        _, lines, _ = verify(capsys, *arguments)
        assert [line["verdict"] for line in lines] == ["correct"]


@contextmanager
def killed_late(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill a process that says nothing for too long, and at the end whatever came of it."""
    late = threading.Timer(240, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()
        process.kill()


def test_each_verdict_comes_as_soon_as_its_line_is_judged() -> None:
    script = "from fttt.cli import main; main(['verify', 'number'])"
    command = [sys.executable, "-c", script]
    with (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
        killed_late(process),
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(3):
            process.stdin.write(json.dumps(case("1", str(number))) + "\n")
            process.stdin.flush()
            line = json.loads(process.stdout.readline())  # before the next line is written
            assert line["extracted"] == str(number)
        process.stdin.close()
        assert process.wait(240) == 0


def test_an_error_does_not_wait_for_the_next_line() -> None:
    script = """
import fttt.cli.checks as module
from fttt.cli import main
from fttt.errors import RunError

class Down:
    async def verify(self, question, completion):
        raise RunError("the judge is down")

    async def close(self):
        pass

module.choose_verifier = lambda *_, **__: Down()
main(["verify", "number"])
"""
    command = [sys.executable, "-c", script]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        killed_late(process),
    ):
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(case("1", "1")).encode() + b"\n")
        process.stdin.flush()  # and whoever writes waits for the verdict now
        assert process.stderr.readline() == b"fttt: the judge is down\n"
        assert process.wait(240) == 1
