"""Families of reasoning-gym: the same problems from a seed, and their own graded scores."""

from __future__ import annotations

import ast
import asyncio
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "reasoning_gym", reason="needs requirements/gym.txt, whose build needs a C compiler"
)

import reasoning_gym

from fttt.errors import UsageError
from fttt.tasks import get_task
from fttt.tasks.gold_check import check_task
from fttt.tasks.gym import EVALUATING, GRADED, LENIENT, GymTask
from fttt.tasks.task import TaskOptions
from fttt.types import Verdict

FAST = ("word_sorting", "mini_sudoku", "knights_knaves")


def verdicts(task: GymTask, completions: list[str], index: int = 0) -> list[Verdict]:
    question = task.load(TaskOptions())[index]

    async def judge() -> list[Verdict]:
        verifier = task.verifier()
        found = [await verifier.verify(question, text) for text in completions]
        await verifier.close()
        return found

    return asyncio.run(judge())


def test_problems_come_from_seed_and_split_and_never_change() -> None:
    task: Any = get_task("gym/word_sorting", max_words=4, size=5)
    first = task.load(TaskOptions())
    assert [q.id for q in first][:2] == [f"gym/word_sorting/s42/test/{n}" for n in (0, 1)]
    assert first == GymTask("word_sorting", max_words=4, size=5).load(TaskOptions())
    other = [task.load(options) for options in (TaskOptions(seed=43), TaskOptions(split="train"))]
    assert first[0].prompt not in {q.prompt for questions in other for q in questions}


def test_the_score_is_the_familys_own() -> None:
    task = GymTask("word_sorting", min_words=4, max_words=4, size=3)
    words = task.load(TaskOptions())[0].solution
    assert words is not None
    gold = words.removeprefix("<answer>").removesuffix("</answer>").split(", ")
    swapped = ", ".join([gold[1], gold[0], *gold[2:]])
    texts = [
        words, f"<answer>{swapped}</answer>", f"<answer>x</answer> no: {words}", ", ".join(gold),
        f"<think>{words}", "<answer></answer>",
    ]  # fmt: skip
    found = verdicts(task, texts)
    assert [v.outcome for v in found] == [
        "correct", "incorrect", "correct", "unanswered", "unanswered", "unanswered",
    ]  # fmt: skip
    assert found[0].score == 1
    assert found[1].score is not None
    assert 0 < found[1].score < 1
    assert [v.score for v in found[3:]] == [0, 0, 0]
    assert found[1].feedback.endswith(f"Its score is {found[1].score:.2f} of 1.")
    assert ", ".join(gold) not in found[1].feedback
    whole = GymTask("word_sorting", min_words=4, max_words=4, size=3, answer="whole")
    assert "<answer>" not in whole.load(TaskOptions())[0].prompt
    assert [v.outcome for v in verdicts(whole, [", ".join(gold), " "])] == ["correct", "unanswered"]


@pytest.mark.parametrize("family", FAST)
def test_golds_pass_and_repeated_questions_fail(family: str) -> None:
    report = asyncio.run(check_task(GymTask(family, size=6), TaskOptions()))
    assert report.as_expected
    assert report.solutions.judged == report.wrong.judged == 6


def test_a_scorer_that_stumbles_scores_nothing() -> None:
    (verdict,) = verdicts(GymTask("prime_factorization", size=1), ["<answer>two x</answer>"])
    assert (verdict.outcome, verdict.score) == ("incorrect", 0.0)
    assert "the scorer" in verdict.detail


def test_levels_are_the_curriculums() -> None:
    easy, hard = (GymTask("word_sorting", level=n, size=20).load(TaskOptions()) for n in (0, 3))
    mean = [sum(len(str(q.solution)) for q in questions) / 20 for questions in (easy, hard)]
    assert mean[1] > 1.5 * mean[0]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("gym", {}, "needs a family; write gym/FAMILY"),
        ("gym/word_sort", {}, "no gym problem 'word_sort'; did you mean 'word_sorting'"),
        ("gym/puzzle24", {}, "by running it as Python"),
        ("gym/word_sorting", {"level": 99}, "has no level 99; it has 0 to"),
        ("gym/word_sorting", {"words": 4}, "does not take.*words"),
        ("gym/word_sorting", {"min_words": 9, "max_words": 3}, "does not take"),
        ("gym/word_sorting", {"answer": "last"}, "answer of gym cannot be 'last'"),
    ],
)
def test_faults_are_named(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        get_task(name, **options)


CALLS = {"eval", "exec", "parse_expr", "sympify"}


def test_families_that_run_answers_as_python_are_all_refused() -> None:
    """Read from the package's own source: eval, exec and SymPy's parser on an answer."""
    found = set()
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        text = path.read_text()
        if not any(name in text for name in CALLS):
            continue
        tree = ast.parse(text)
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and "answer" in {
                n.id for n in ast.walk(function) if isinstance(n, ast.Name)
            }:
                called = {
                    n.func.attr if isinstance(n.func, ast.Attribute) else getattr(n.func, "id", "")
                    for n in ast.walk(function)
                    if isinstance(n, ast.Call)
                }
                if called & CALLS:
                    found.add(path.stem)
    assert found - EVALUATING == {"number_sorting"}  # which evaluates its own gold
    assert not EVALUATING & set(GRADED)


def near_misses(gold: str) -> list[str]:
    """An answer in which one word, number or letter stands in the place of another."""
    pieces = re.findall(r"\w+|\W+", gold)
    places = [n for n, piece in enumerate(pieces) if piece.strip() and piece[0].isalnum()]
    if len(places) < 2:
        pieces, places = list(gold), list(range(len(gold)))
    pairs = ((a, b) for a, b in permutations(places, 2) if pieces[a] != pieces[b])
    return ["".join([*pieces[:a], pieces[b], *pieces[a + 1 :]]) for a, b in pairs]


@pytest.mark.parametrize("family", [*GRADED, "rotate_matrix", "tower_of_hanoi", "number_filtering"])
def test_a_graded_scorer_tells_a_near_miss_from_a_wrong_answer(family: str) -> None:
    problems = reasoning_gym.create_dataset(family, seed=1, size=3)
    if problems[0]["answer"] is None:
        pytest.skip("its scorer plays the moves of an answer; there is no gold answer to change")
    scores = {
        problems.score_answer(text, entry)
        for entry in problems
        for text in near_misses(entry["answer"])[:60]
    }
    assert any(0.05 < score < 1 for score in scores) == (family in GRADED)


@pytest.mark.parametrize("family", sorted({*GRADED, *LENIENT} - {"boxnet", "rubiks_cube"}))
def test_what_passes_with_words_behind_it_is_said(family: str) -> None:
    """Of the families whose problems come with an answer."""
    problems = reasoning_gym.create_dataset(family, seed=1, size=3)
    longer = []
    for entry in problems:
        assert problems.score_answer(entry["answer"], entry) == 1
        behind = (" and more", "\nx")
        longer += [problems.score_answer(f"{entry['answer']}{text}", entry) for text in behind]
    takes_names = family == "knights_knaves"  # its scorer looks for what it says of each person
    assert (max(longer) >= 1) == (family in LENIENT or takes_names)
    assert ("whatever follows it" in "".join(GymTask(family).cautions)) == (family in LENIENT)
