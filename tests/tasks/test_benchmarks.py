"""The four benchmarks: their folders, the hub, and what is wrong with a file."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.benchmark_data import local_data
from fttt.tasks.mbpp import MBPPTask
from fttt.types import Question

GSM8K = {
    "question": "How many?",
    "answer": "He has 2+3=<<2+3=5>>5.\nSo <<5*1000=5000>>5,000.\n#### 5,000",
}
MATH = {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$."}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def one():\n    """One."""\n',
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def helper(a):\r\n    return a\r\ndef add(a, b):\r\n    return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
    "test_setup_code": "",
    "challenge_test_list": ["assert add(-1, 1) == 0"],
}


def load(task: str, **options: Any) -> list[Question]:
    return get_task(task).load(TaskOptions(**options))


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


Hub = dict[tuple[str, "str | None", str], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("task", "split", "count", "first"),
    [
        ("gsm8k", "test", 1319, "gsm8k/test/0"),
        ("gsm8k", "train", 7473, "gsm8k/train/0"),
        ("math500", "test", 500, "test/precalculus/807.json"),
        ("math500", "train", 12000, "train/algebra/0.json"),
        ("humaneval", "test", 164, "HumanEval/0"),
        ("mbpp", "test", 500, "MBPP/11"),
        ("mbpp", "train", 374, "MBPP/601"),
        ("mbpp", "validation", 90, "MBPP/511"),
        ("mbpp", "prompt", 10, "MBPP/1"),
    ],
)
def test_the_benchmarks_own_folders(
    datasets: Path, task: str, split: str, count: int, first: str
) -> None:
    questions = load(task, data_dir=datasets, split=split)
    assert len(questions) == len({question.id for question in questions}) == count
    assert questions[0].id == first
    for question in questions:
        assert question.prompt.strip()
        assert question.gold is not None
        assert question.solution
        assert "{question}" not in question.prompt


@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("gsm8k", "grade-school-math"),
        ("gsm8k", "grade-school-math/grade_school_math/data"),
        ("math500", "MATH500"),
        ("humaneval", "openai_humaneval"),
        ("humaneval", "openai_humaneval/openai_humaneval"),
        ("mbpp", "mbpp"),
        ("mbpp", "mbpp/full"),
    ],
)
def test_the_benchmarks_own_folder_will_do(datasets: Path, task: str, folder: str) -> None:
    assert load(task, data_dir=datasets / folder) == load(task, data_dir=datasets)


def test_gsm8k(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", GSM8K)
    (question,) = load("gsm8k", data_dir=tmp_path)
    assert question.gold == "5000"
    assert question.solution == "He has 2+3=5.\nSo 5,000.\nThe final answer is 5000"
    assert question.prompt.count("How many?") == 1
    assert '"The final answer is" followed by the number' in question.prompt


def test_gsm8k_solutions_lose_all_their_marks(datasets: Path) -> None:
    for split in ("test", "train"):
        for question in load("gsm8k", data_dir=datasets, split=split):
            assert question.solution is not None
            assert "<<" not in question.solution
            assert "####" not in question.solution
            assert re.fullmatch(r"-?[\d.]+", str(question.gold))


def test_math(tmp_path: Path) -> None:
    write(
        tmp_path / "test.jsonl", MATH, MATH | {"answer": "two", "unique_id": "test/algebra/1.json"}
    )
    first, second = load("math500", data_dir=tmp_path)
    assert (first.id, first.gold) == ("math/test/0", "2")
    assert (second.id, second.gold) == ("test/algebra/1.json", "two")
    assert "\\boxed{}" in first.prompt


def test_humaneval(hub: Hub) -> None:
    hub["openai/openai_humaneval", None, "test"] = [HUMANEVAL]
    (question,) = load("humaneval")
    assert question.gold == {key: HUMANEVAL[key] for key in ("prompt", "test", "entry_point")}
    examples = {
        "a doctest": (">>> f([1, 2])\n    [2]\n    >>> f([])  # nothing\n    []\n", 2),
        "a doctest of a truth": (">>> f(1) == 2\n", 1),
        "names of its own": (">>> xs = [1]\n    >>> f(xs)\n    2\n", 1),
        "lines": ("* f(1) => 2\n    f(2) should return 3.\n    f(3) \u279e true\n", 3),
        "prose": ("f(1) is one more than f(0) == f(x)\n    f(xs) => [1]\n", 0),
        "an error": (">>> f(None)\n    Traceback (most recent call last):\n    TypeError: no\n", 0),
    }
    for text, count in examples.values():
        prompt = f'def f(x):\n    """So.\n\n    {text}    """\n'
        row = HUMANEVAL | {"prompt": prompt, "entry_point": "f"}
        hub["openai/openai_humaneval", None, "test"] = [row]
        gold = load("humaneval")[0].gold
        assert isinstance(gold, dict)
        visible = str(gold.get("visible", ""))
        compile(visible, "<visible>", "exec")
        assert visible.count("assert f(") == count
    assert question.solution == '```python\ndef one():\n    """One."""\n    return 1\n```'
    assert "```python" in question.prompt


def test_mbpp_shows_public_tests_and_is_judged_on_all(hub: Hub) -> None:
    hub["google-research-datasets/mbpp", "full", "test"] = [MBPP]
    (question,) = load("mbpp")
    assert "assert add(1, 2) == 3" in question.prompt
    assert "assert add(-1, 1)" not in question.prompt
    assert question.gold == {
        "prompt": "",
        "test": "def check(candidate):\n    add = candidate\n    assert add(1, 2) == 3\n"
        "    assert add(0, 0) == 0\n    assert add(-1, 1) == 0",
        "entry_point": "add",
        "visible": "def check(candidate):\n    add = candidate\n    assert add(1, 2) == 3\n"
        "    assert add(0, 0) == 0",
    }
    assert question.solution is not None
    assert "\r" not in question.solution


def test_the_papers_prompts(hub: Hub, tmp_path: Path) -> None:
    hub["openai/gsm8k", "main", "test"] = [GSM8K]
    hub["openai/openai_humaneval", None, "test"] = [HUMANEVAL]
    hub["google-research-datasets/mbpp", "full", "test"] = [MBPP]
    write(tmp_path / "test.jsonl", MATH)
    prompts = {
        task: load(task, prompt_style="paper")[0].prompt for task in ("gsm8k", "humaneval", "mbpp")
    }
    assert prompts["gsm8k"] == (
        "Given the following problem, reason and give a final answer to the problem.\n"
        "Problem: How many?\n"
        'Your response should end with "The final answer is [answer]" where [answer] is the '
        "response to the problem."
    )
    assert prompts["humaneval"] == (
        "Write a solution to the following problem and make sure that it passes the tests:\n"
        '```python\n\n\ndef one():\n    """One."""\n\n\n```'
    )
    assert prompts["mbpp"] == (  # the backslashes are in the published prompt
        "You are an expert Python programmer, and here is your task:\\nWrite a function to add."
        "\\nYour code should pass the following tests:\\n"
        "assert add(1, 2) == 3\nassert add(0, 0) == 0"
    )
    (math,) = load("math500", data_dir=tmp_path, prompt_style="paper")
    assert math.prompt.startswith(
        "Solve the following math problem efficiently and clearly:\n\n- F"
    )
    assert "the final answer is: $\\boxed{answer}$. I hope it is correct." in math.prompt
    assert math.prompt.endswith("Problem: What is $1+1$?")


def test_data_in_the_papers_layout_are_found(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_data(get_task("gsm8k"), "test") is None
    Path("datasets").symlink_to(datasets)
    for task in ("gsm8k", "math500", "humaneval", "mbpp"):
        assert local_data(get_task(task), "test") == Path("datasets")
    assert local_data(get_task("mbpp"), "prompt") == Path("datasets")
    assert local_data(get_task("humaneval"), "train") is None
    assert local_data(get_task("arithmetic"), "test") is None


def run_plainly(question: Question, program: str) -> None:
    """The judge's program in one namespace, as its protocol has it."""
    gold = question.gold
    assert isinstance(gold, dict)
    text = f"{gold['prompt']}{program}\n{gold['test']}\ncheck({gold['entry_point']})"
    exec(compile(text, question.id, "exec"), {"__name__": "program"})


def test_a_function_that_is_itself_called_check(hub: Hub) -> None:
    row = MBPP | {
        "code": "def check(a):\n    return a > 0",
        "test_list": ["assert check(1) == True", "assert check(-1) == False"],
        "challenge_test_list": [],
    }
    hub["google-research-datasets/mbpp", "full", "test"] = [row]
    (question,) = MBPPTask().load(TaskOptions())
    run_plainly(question, "def check(a):\n    return a > 0")
    with pytest.raises(AssertionError):
        run_plainly(question, "def check(a):\n    return True")


def test_helpers_and_builtins_in_tests_resolve(hub: Hub) -> None:
    row = MBPP | {
        "code": "class Pair:\n    def __init__(self, a):\n        self.a = a\n"
        "def sum(pairs):\n    return max(p.a for p in pairs)",
        "test_list": ["assert sum([Pair(1), Pair(2)]) == len('ab')"],
        "test_setup_code": "one = Pair(1)",
        "challenge_test_list": ["assert sum([one]) == 1"],
    }
    hub["google-research-datasets/mbpp", "full", "test"] = [row]
    (question,) = load("mbpp")
    assert isinstance(question.gold, dict)
    assert question.gold["entry_point"] == "sum"
    run_plainly(question, row["code"])
    with pytest.raises(AssertionError):
        run_plainly(question, row["code"].replace("max", "min"))


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_reference_programs_pass_in_one_namespace(datasets: Path, step: int) -> None:
    """Some, or all, of HumanEval and MBPP, as a plain ``exec`` runs them."""
    for task, splits in (("humaneval", ("test",)), ("mbpp", MBPPTask.splits)):
        for split in splits:
            for question in load(task, data_dir=datasets, split=split)[step - 1 :: step]:
                assert question.solution is not None
                program = question.solution.removeprefix("```python\n").removesuffix("```")
                run_plainly(question, program)


def test_the_twelve_thousand_of_the_hub(hub: Hub) -> None:
    hub["HuggingFaceH4/MATH-500", None, "test"] = [
        MATH | {"answer": "2", "unique_id": "test/a/1.json"}
    ]
    from fttt.tasks.math500 import SUBJECTS

    for subject in SUBJECTS:
        for part in ("train", "test"):
            row = MATH | {"problem": f"{subject} {part}"}
            hub["EleutherAI/hendrycks_math", subject, part] = [row, MATH]
    assert [question.gold for question in load("math500")] == ["2"]
    train = load("math500", split="train")
    assert len(train) == 14  # what the test split holds is left out
    assert len({question.id for question in train}) == 14


@pytest.mark.parametrize("task", ["gsm8k", "math500", "humaneval", "mbpp"])
def test_a_hub_out_of_reach_is_one_sentence(hub: Hub, task: str) -> None:
    with pytest.raises(UsageError, match=r"could not be loaded from the hub .*--data-dir") as error:
        load(task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", ["gsm8k", "math500", "humaneval", "mbpp"])
def test_a_hub_without_its_package(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="needs the datasets package"):
        load(task)


@pytest.mark.parametrize("task", ["gsm8k", "math500", "humaneval", "mbpp"])
def test_a_folder_without_the_data(tmp_path: Path, task: str) -> None:
    with pytest.raises(UsageError, match=f"data of '{task}' is not in .*--data-dir"):
        load(task, data_dir=tmp_path)


@pytest.mark.parametrize("task", ["gsm8k", "math500", "humaneval", "mbpp"])
def test_an_unknown_split(task: str) -> None:
    with pytest.raises(UsageError, match=f"task '{task}' has no split 'dev'; choose from test"):
        load(task, split="dev")


@pytest.mark.parametrize(
    ("task", "lines", "said"),
    [
        ("gsm8k", ["{bad"], "Line 1 of .* is no JSON"),
        ("gsm8k", [json.dumps(GSM8K), "", "[1]"], "Line 3 of .* is no JSON object"),
        ("gsm8k", [json.dumps({"question": "x"})], "Line 1 of .* has no field 'answer'"),
        ("gsm8k", [json.dumps(GSM8K | {"answer": "5"})], "Line 1 of .* without '#### N'"),
        ("gsm8k", ["", "  "], "holds no question"),
        ("gsm8k", ["[" * 100_000], "Line 1 of .* is no JSON"),
        ("math500", [json.dumps(MATH | {"solution": "2"})], "Line 1 of .* has no answer"),
        ("math500", [json.dumps({"problem": "x"})], "Line 1 of .* has no field 'solution'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, task: str, lines: list[str], said: str) -> None:
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match=said):
        load(task, data_dir=tmp_path)


def test_all_parts_of_a_file_are_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        row = {**HUMANEVAL, "task_id": f"HumanEval/{number}"}
        path = tmp_path / f"test-0000{number}-of-00002.parquet"
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    questions = load("humaneval", data_dir=tmp_path)
    assert [question.id for question in questions] == ["HumanEval/0", "HumanEval/1"]
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(UsageError, match="has 2 parts, of which 1 are there"):
        load("humaneval", data_dir=tmp_path)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "test-00000-of-00001.parquet").write_text("hello")
    for task in ("humaneval", "mbpp"):
        with pytest.raises(UsageError, match="is no parquet file"):
            load(task, data_dir=tmp_path)


def test_missing_fields_of_the_hub(hub: Hub) -> None:
    hub["openai/openai_humaneval", None, "test"] = [{"task_id": "x"}]
    with pytest.raises(UsageError, match="has no field 'prompt'"):
        load("humaneval")
    hub["openai/gsm8k", "main", "test"] = []
    with pytest.raises(UsageError, match="holds no question"):
        load("gsm8k")


def test_tests_that_call_nothing(hub: Hub) -> None:
    hub["google-research-datasets/mbpp", "full", "test"] = [MBPP | {"test_list": ["assert True"]}]
    with pytest.raises(UsageError, match="MBPP task 11 call no function"):
        load("mbpp")


@pytest.mark.parametrize("task", ["gsm8k", "math500", "humaneval", "mbpp"])
def test_a_prompt_of_the_users_own(datasets: Path, task: str) -> None:
    questions = load(task, data_dir=datasets, prompt="<<{question}>>")
    assert all(q.prompt.startswith("<<") and q.prompt.endswith(">>") for q in questions)
    with pytest.raises(UsageError, match="no place for the question"):
        load(task, data_dir=datasets, prompt="none")


def test_strict_mathematics() -> None:
    verifier = get_task("math500", rule="strict").verifier()
    question = Question("q", "", r"\frac{1}{4}")
    assert not asyncio.run(verifier.verify(question, r"\boxed{0.25}")).correct
    with pytest.raises(UsageError, match=r"no rule 'loose'.*equivalence, strict"):
        get_task("math500", rule="loose")
