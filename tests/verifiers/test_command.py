from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from fttt.errors import RunError, UsageError
from fttt.types import Question, Verdict
from fttt.verifiers.command import CommandVerifier
from fttt.verifiers.verifier import Verifier

QUESTION = Question("q/1", "What is 6 * 7?", "42", "6 * 7 = 42")


def judge(
    command: str, *completions: str, question: Question = QUESTION, time_limit: float = 100.0
) -> list[Verdict]:
    async def run() -> list[Verdict]:
        verifier = CommandVerifier(command, time_limit=time_limit)
        assert isinstance(verifier, Verifier)
        assert verifier.extract(QUESTION, "42") is None
        verdicts = [await verifier.verify(question, text) for text in completions]
        await verifier.close()
        return verdicts

    return asyncio.run(run())


def ended(pid: int) -> bool:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_program_that_is_missing_is_told_from_a_wrong_answer() -> None:
    (verdict,) = judge("cat >/dev/null; ./no-such-check", "42")
    assert verdict.outcome == "incorrect"
    assert verdict.detail.startswith("the command could not be run: ")
    assert "./no-such-check: not found" in verdict.detail


def test_the_exit_status_decides() -> None:
    right, wrong = judge('grep -q "$FTTT_GOLD"', "It is 42.", "It is 41.")
    assert right.outcome == "correct"
    assert wrong.outcome == "incorrect"
    assert wrong.detail == "the command ended with exit status 1"


def test_the_completion_comes_on_standard_input_and_the_question_in_the_environment() -> None:
    (verdict,) = judge(
        'cat; printf "|%s|%s|%s|%s" "$FTTT_QUESTION_ID" "$FTTT_QUESTION" "$FTTT_GOLD" '
        '"$FTTT_SOLUTION"; exit 7',
        "It is 42.",
    )
    assert verdict.detail == "It is 42.|q/1|What is 6 * 7?|42|6 * 7 = 42"
    (verdict,) = judge('printf %s "$FTTT_GOLD"', "", question=Question("q", "", {"a": [1]}))
    assert verdict.detail == '{"a": [1]}'


LONG = "Which of these is it? " + "x" * 200_000


def test_a_long_question_is_in_its_file_and_the_verdict_is_the_commands() -> None:
    question = Question("q", LONG, "42", "y" * 150_000)
    right, wrong = judge('grep -q "$FTTT_GOLD"', "It is 42.", "It is 41.", question=question)
    assert (right.outcome, wrong.outcome) == ("correct", "incorrect")
    (verdict,) = judge(
        'wc -c <"$FTTT_QUESTION_FILE"; wc -c <"$FTTT_SOLUTION_FILE"; cat "$FTTT_GOLD_FILE"; '
        'printf "|%s|%s|" "${FTTT_QUESTION-none}" "${FTTT_SOLUTION-none}"',
        "",
        question=question,
    )
    assert verdict.detail.split() == [str(len(LONG)), "150000", "42|none|none|"]


def test_a_gold_answer_too_long_for_its_variable_never_reads_as_an_empty_one() -> None:
    question = Question("q/7", "", "z" * 140_000)
    with pytest.raises(RunError, match="question 'q/7' has 140000 characters"):
        judge('grep -q "$FTTT_GOLD"', "anything", question=question)
    right, wrong = judge('cmp - "$FTTT_GOLD_FILE"', "z" * 140_000, "z", question=question)
    assert (right.outcome, wrong.outcome) == ("correct", "incorrect")


def test_the_questions_files_are_gone_afterwards() -> None:
    (verdict,) = judge('printf %s "$FTTT_GOLD_FILE"; exit 1', "")
    assert not Path(verdict.detail).parent.exists()


def test_the_end_of_what_it_prints_is_kept() -> None:
    (verdict,) = judge("seq 1 200000; echo the end >&2; false", "")
    assert verdict.outcome == "incorrect"
    assert verdict.detail.endswith("the end")
    assert len(verdict.detail) <= 500


def test_a_large_completion_that_nobody_reads() -> None:
    (verdict,) = judge("true", "x" * 10_000_000)
    assert verdict.correct


def test_strange_characters() -> None:
    question = Question("q", "nul \0 and \ud800", "\0")
    (verdict,) = judge("cat > /dev/null", "nul \0 and \ud800", question=question)
    assert verdict.correct


def test_a_command_that_will_not_die_costs_its_limit_and_leaves_nothing(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = (
        f"trap '' TERM INT HUP; echo $$ >> {pids}; "
        f"(setsid sh -c 'echo $$ >> {pids}; sleep 300' &) ; "
        f"sh -c 'echo $$ >> {pids}; exec sleep 300' & while true; do sleep 1; done"
    )
    found = list[int]()
    for limit in (1, 5, 60):  # a busy machine may need more until all have begun
        for verdict in judge(command, "42", "42", time_limit=limit):
            assert verdict.outcome == "incorrect"
            assert verdict.detail == f"the command took longer than its limit of {limit} s"
            assert verdict.failed
        found = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
        assert all(map(ended, found))
        if len(found) == 6:
            break
        pids.unlink(missing_ok=True)
    assert len(found) == 6


def test_what_it_leaves_in_the_background_is_ended(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = f"setsid sh -c 'echo $$ > {pids}; exec sleep 300' & "
    command += f"until [ -s {pids} ]; do sleep 0.05; done"
    (verdict,) = judge(command, "42")
    assert verdict.correct
    assert ended(int(pids.read_text()))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("./no-such-check.sh --fast", "no program here"),
        ("no-such-program-7 x", "no program here"),
        ("echo 'unclosed", "cannot be read"),
    ],
)
def test_a_command_that_cannot_run_is_refused(command: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        CommandVerifier(command)


@pytest.mark.parametrize("command", ["test 1 = 1", "[ 1 = 1 ]", "! false", "X=1 true", "(true)"])
def test_shell_syntax_is_welcome(command: str) -> None:
    assert judge(command, "42")[0].correct
