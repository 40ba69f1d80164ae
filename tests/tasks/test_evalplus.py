"""HumanEval+ and MBPP+ on rows of their data sets' form."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from fttt.errors import UsageError
from fttt.tasks import TaskOptions, get_task
from fttt.tasks.evalplus import judged_tests
from fttt.tasks.gold_check import check_task
from fttt.types import Question
from fttt.verifiers.code import CodeVerifier

COMPARE = """
import numpy as np

def is_floats(x) -> bool:
    # floats, alone or together
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    exact_match = out == exp

    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert exact_match
"""
SIGNATURE = "def assertion(out, exp, atol):\n"
AS_SETS = COMPARE.replace(SIGNATURE, f"{SIGNATURE}    out, exp = set(out), set(exp)\n")
HUMANEVAL = {
    "task_id": "HumanEval/4",
    "prompt": 'def half(x):\n    """Half of it.\n    >>> half(1)\n    0.5\n    """\n',
    "entry_point": "half",
    "canonical_solution": "    return x / 2\n",
    "test": f"{COMPARE}\n\ndef check(candidate):\n    inputs = [[1], [2.5], [7]]\n"
    "    results = [0.5, 1.25, 3.5]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "        assertion(candidate(*inp), exp, 0)\n\n\ncheck(half)\n",
}
BY_REFERENCE = {
    **HUMANEVAL,
    "task_id": "HumanEval/100",
    "prompt": 'def half(x):\n    """Halves of them."""\n',
    "canonical_solution": "    return [i / 2 for i in x]\n",
    "test": f"{COMPARE}\n\ndef ref_func(x):\n    return [i / 2 for i in x]\n\n"
    "def check(candidate):\n    inputs = [[[1, 2]], [[2.5]], [[]]]\n"
    "    for i, inp in enumerate(inputs):\n"
    "        assertion(candidate(*inp), ref_func(*inp), 0)\n",
}
MBPP = {
    "task_id": 2,
    "prompt": "Write a function to find what two tuples share.",
    "code": "def shared(a, b):\n    return tuple(set(a) & set(b))",
    "source_file": "x",
    "test_imports": ["import math"],
    "test_list": [
        "assert set(shared((1, 2), (2, 3))) == set((2,))",
        "assert set(shared((1, 2), (4, 3))) == set(())",
    ],
    "test": f"{AS_SETS}\n\n"
    "inputs = [[(1, 2), (2, 3)], [(1, 2), (4, 3)], [(5, 5), (5,)]]\n"
    "results = [(2,), (), (5,)]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "    assertion(shared(*inp), exp, 0)\n",
}
NAMED_CHECK = {
    **MBPP,
    "task_id": 56,
    "code": "def check(n):\n    return n > 1",
    "test_list": ["assert check(2) == True"],
    "test": f"{COMPARE}\ninputs = [[2], [1], [0]]\nresults = [True, False, False]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(check(*inp), exp, 0)",
}


def score(question: Question, program: str) -> tuple[float | None, int | None]:
    async def run() -> tuple[float | None, int | None]:
        verifier = CodeVerifier()
        verdict = await verifier.verify(question, f"```python\n{program}\n```")
        await verifier.close()
        return verdict.score, verdict.tests_total

    return asyncio.run(run())


def test_humanevalplus_is_judged_by_all_inputs_without_numpy(hub: Any) -> None:
    hub["evalplus/humanevalplus", None, "test"] = [HUMANEVAL, BY_REFERENCE]
    task = get_task("HumanEval+")
    report = asyncio.run(check_task(task, TaskOptions()))
    assert report.as_expected, report
    assert report.solutions.judged == 2
    first, second = task.load(TaskOptions())
    assert first.id == "HumanEval/4"
    assert "assert half(1) == 0.5" in first.gold["visible"]  # type: ignore[index, call-overload, operator]
    assert "import numpy" not in first.gold["test"]  # type: ignore[index, call-overload, operator]
    assert score(first, "def half(x):\n    return round(x / 2)") == (0.0, 3)
    assert score(first, "def half(x):\n    return x / 2 + 1e-7") == (1.0, 3)
    assert score(second, "def half(x):\n    return [i / 2 for i in x][:1]") == (
        pytest.approx(2 / 3),
        3,
    )


def test_mbppplus_is_judged_by_all_inputs(hub: Any) -> None:
    hub["evalplus/mbppplus", None, "test"] = [MBPP, NAMED_CHECK]
    task = get_task("mbpp+")
    report = asyncio.run(check_task(task, TaskOptions()))
    assert report.as_expected, report
    first, _ = task.load(TaskOptions())
    assert first.id == "MBPP/2"
    assert "import math\nassert set(shared((1, 2), (2, 3)))" in first.prompt
    assert "(5, 5)" not in first.prompt
    assert score(first, "def shared(a, b):\n    return (2,)") == (pytest.approx(1 / 3), 3)


ROOT = {
    **HUMANEVAL,
    "task_id": "HumanEval/32",
    "prompt": 'def find_zero(xs):\n    """A zero of the polynomial xs."""\n',
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "test": f"{COMPARE}\n\ndef _poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n"
    "\ndef check(candidate):\n    inputs = [[[2, 2]], [[3, -1]]]\n    results = [-1.0, 3.0]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
    "        assert _poly(*candidate(*inp), inp) <= 0.0001\n",
}


def test_a_published_mistake_is_put_right(hub: Any) -> None:
    hub["evalplus/humanevalplus", None, "test"] = [ROOT]
    task = get_task("humanevalplus")
    report = asyncio.run(check_task(task, TaskOptions()))
    assert report.as_expected, report
    (question,) = task.load(TaskOptions())
    assert score(question, "def find_zero(xs):\n    return -1.0") == (0.5, 2)


def test_a_folder_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    for name, row in (("humanevalplus", HUMANEVAL), ("mbppplus", MBPP)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
        for folder in (tmp_path, tmp_path / name):
            assert len(get_task(name).load(TaskOptions(data_dir=folder))) == 1


def test_tests_of_another_form_are_named(hub: Any) -> None:
    hub["evalplus/mbppplus", None, "test"] = [{**MBPP, "test": "assert shared((1,), (1,))"}]
    with pytest.raises(UsageError, match="Row 0 of evalplus/mbppplus has tests that do not end in"):
        get_task("mbppplus").load(TaskOptions())


def test_lists_of_a_megabyte_are_read_within_the_boxs_limits(hub: Any) -> None:
    inputs = [[["word" * 2000, float(n)]] for n in range(120)]
    results = ["inf" if n % 2 else n / 2 for n in range(120)]
    text = str(results).replace("'inf'", "inf")
    test = (
        f"{COMPARE}\nfrom math import inf\n\ndef check(candidate):\n    inputs = {inputs}\n"
        f"    results = {text}   \n    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "        assertion(candidate(*inp), exp, 0)\n"
    )
    assert len(test) > 900_000
    row = {
        **HUMANEVAL,
        "test": test,
        "canonical_solution": "    n = x[1]\n    return n / 2 if n % 2 == 0 else float('inf')\n",
    }
    hub["evalplus/humanevalplus", None, "test"] = [row]
    report = asyncio.run(check_task(get_task("humanevalplus"), TaskOptions()))
    assert report.as_expected, report
    (question,) = get_task("humanevalplus").load(TaskOptions())
    assert score(question, "def half(x):\n    return x[1] / 2") == (0.5, 120)


def test_an_early_loop_is_not_taken_for_the_last(hub: Any) -> None:
    early = "for n in range(3):\n" + "    pass\n" * 200 + "\n" * 200
    hub["evalplus/mbppplus", None, "test"] = [{**MBPP, "test": f"{early}{MBPP['test']}\n\n"}]
    (question,) = get_task("mbppplus").load(TaskOptions())
    assert score(question, str(MBPP["code"])) == (1.0, 3)


@pytest.mark.parametrize(
    ("out", "exp", "same"),
    [
        ("1.0", "1.0 + 1e-9", True),
        ("[1, 2.0]", "(1.0, 2)", True),
        ("[1.0]", "[1.0, 2.0]", False),
        ("1.0", "[1.0]", False),
        ("float('inf')", "float('inf')", True),
        ("1.0", "float('inf')", False),
        ("float('nan')", "float('nan')", False),
        ("[[1.0], [2.0]]", "[[1.0], [2.1]]", False),
        ("1.1", "1.0", False),
    ],
)
def test_the_stand_in_compares_as_numpy_does(out: str, exp: str, same: bool) -> None:
    space: dict[str, Any] = {}
    exec(judged_tests("import numpy as np\n", ""), space)
    assert space["np"].allclose(eval(out), eval(exp), rtol=1e-7, atol=1e-6) is same
