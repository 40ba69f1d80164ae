from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fttt.errors import UsageError
from fttt.tasks import TASKS, TaskOptions, get_task, load_questions, task_name
from fttt.tasks.arithmetic import ArithmeticTask
from fttt.tasks.math500 import Math500Task
from fttt.types import Question
from fttt.verifiers.number import NumberVerifier


def test_every_task_has_its_name_and_splits() -> None:
    names = [
        "arithmetic",
        "gsm8k",
        "math500",
        "humaneval",
        "mbpp",
        "humanevalplus",
        "mbppplus",
        "livecodebench",
        "aime24",
        "aime25",
        "gpqa",
        "mmlupro",
        "bbh",
        "sorting",
        "gym",
        "optimise",
        "jsonl",
    ]
    assert list(TASKS) == names
    for name, task in TASKS.items():
        assert task.name == name
        assert task.splits[0] == "test"
        assert task.__doc__


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("MATH500", "math500"),
        ("MATH-500", "math500"),
        ("GSM8K", "gsm8k"),
        ("Human_Eval", "humaneval"),
        ("HumanEval", "humaneval"),
        ("MBPP", "mbpp"),
        ("HumanEval+", "humanevalplus"),
        ("MMLU-Pro", "mmlupro"),
        ("LiveCodeBench", "livecodebench"),
        ("Arithmetic", "arithmetic"),
        ("mine:Task", "mine:Task"),
        ("gsm9k", "gsm9k"),
    ],
)
def test_tasks_have_their_names_in_any_spelling(said: str, name: str) -> None:
    assert task_name(said) == name
    if name in TASKS:
        assert get_task(said).name == name


def test_the_papers_prompts_are_those_of_its_benchmarks() -> None:
    paper = TaskOptions(prompt_style="paper")
    with pytest.raises(UsageError, match=r"'arithmetic' has no prompt .* gsm8k, math500, humane"):
        load_questions(get_task("arithmetic"), paper)
    with pytest.raises(UsageError, match="--prompt and --prompt-style paper both say"):
        load_questions(get_task("gsm8k"), replace(paper, prompt="{question}"))
    own = replace(paper, prompt_style="own")
    assert load_questions(get_task("arithmetic"), own) == get_task("arithmetic").load(own)


def test_a_task_takes_what_its_class_takes() -> None:
    assert isinstance(get_task("arithmetic"), ArithmeticTask)
    strict = get_task("math500", rule="strict")
    assert isinstance(strict, Math500Task)
    assert strict.rule == "strict"
    numbers = get_task("gsm8k", rule="strict").verifier()
    assert isinstance(numbers, NumberVerifier)
    assert numbers.rule == "strict"
    with pytest.raises(UsageError, match="no rule 'loose' for numbers; choose from value, strict"):
        get_task("gsm8k", rule="loose")
    with pytest.raises(UsageError, match=r"does not take the option 'verifier' .* --task jsonl"):
        get_task("gsm8k", verifier="number")
    with pytest.raises(UsageError, match="does not take the option 'rle'; it takes rule"):
        get_task("math500", rle="strict")
    with pytest.raises(UsageError, match="cannot be made with levels = 3: "):
        get_task("arithmetic", levels=3)


def test_a_class_of_the_users_own_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_task_for_test.py").write_text(
        "import fttt\n"
        "class Mine(fttt.Task):\n"
        "    name, splits = 'mine', ('test',)\n"
        "    def load(self, options): return [fttt.Question('a', 'b')]\n"
        "    def verifier(self): ...\n"
        "class Half:\n"
        "    name, splits = 'half', ('test',)\n"
        "    def load(self, options): ...\n"
    )
    (tmp_path / "broken_for_test.py").write_text("a b\n")
    monkeypatch.chdir(tmp_path)
    assert get_task("my_task_for_test:Mine").load(TaskOptions()) == [Question("a", "b")]
    for wrong, match in [
        ("my_task_for_test:Half", "is no task: it has no 'verifier'"),
        ("my_task_for_test:Nope", "has no task 'Nope'"),
        ("broken_for_test:Mine", "cannot be imported .SyntaxError"),
        (":Mine", "is incomplete; name it as module:Name"),
    ]:
        with pytest.raises(UsageError, match=match):
            get_task(wrong)


@pytest.mark.parametrize(
    ("name", "near"), [("gsm8", "gsm8k"), ("math50", "math500"), ("mbp", "mbpp")]
)
def test_a_near_name_is_offered(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{near}'"):
        get_task(name)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="choose from arithmetic, gsm8k, math500"):
        get_task("zzz")


def test_naming_a_task_imports_no_heavy_package() -> None:
    script = (
        "import sys; from fttt.tasks import TASKS, get_task; list(TASKS.items()); "
        "[get_task(name).verifier() for name in ('gsm8k', 'math500', 'humaneval')]; "
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "[]"
