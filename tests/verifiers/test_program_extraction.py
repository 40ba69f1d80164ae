"""What the program in a completion is, and that it becomes the right one behind its prompt."""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fttt.tasks import TaskOptions, get_task
from fttt.verifiers.program_extraction import find_program

PROMPT = (
    "import math\nfrom typing import List\n\n\n"
    "def half(x):\n    return x / 2\n\n\n"
    'def area(sides: List[int]) -> int:\n    """The product of the sides.\n\n'
    '    >>> area([2, 3])\n    6\n    """\n'
)
TEST = (
    "def check(candidate):\n    assert candidate([2, 3]) == 6\n    assert candidate([]) == 1\n"
    "    assert candidate([5, 0]) == 0\n"
)
WHOLE = "def area(sides):\n    return math.prod(sides)\n"
WRONG = "def area(sides):\n    return sum(sides)\n"
BODY = "    return math.prod(sides)\n"
LOOP = "    n = 1\n    for side in sides:\n        n *= side\n    return n\n"


def outcome(
    completion: str, prompt: str = PROMPT, entry_point: str = "area", test: str = TEST
) -> str:
    """The verdict of plain Python on the program that is found."""
    found = find_program(completion, prompt=prompt, entry_point=entry_point, test=test)
    if found is None:
        return "unanswered"
    space: dict[str, object] = {"__name__": "submission"}
    source = found.before + prompt + found.behind
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, "<submission>", "exec", dont_inherit=True), space)
            exec(f"{test}\ncheck({entry_point})", space)
    except Exception:
        return "incorrect"
    return "correct"


def block(code: str, mark: str = "python", fence: str = "```") -> str:
    return f"{fence}{mark}\n{code}{fence}\n"


def indented(text: str, prefix: str) -> str:
    return textwrap.indent(text, prefix)


RIGHT = {
    # where a block begins and ends
    "one block": f"Here:\n{block(WHOLE)}Done.",
    "marked otherwise": block(WHOLE, "Python3"),
    "marked with a version": block(WHOLE, "python3.11"),
    "in braces": block(WHOLE, "{python}"),
    "in braces with a class": block(WHOLE, "{.python .numberLines}"),
    "with a title": block(WHOLE, 'python title="area.py"'),
    "with a file name": block(WHOLE, "area.py"),
    "unmarked": block(WHOLE, ""),
    "the mark on a line of its own": block(f"python\n{WHOLE}", ""),
    "indented as Markdown's code": f"So:\n\n{indented(WHOLE, '    ')}\nIt multiplies.",
    "a bare stop token": f"{block(WHOLE).rstrip()}</s><s>[INST] Next",
    "tildes": block(WHOLE, "py", "~~~"),
    "four ticks": block(WHOLE, "python", "````"),
    "code on the fence's line": f"```python {WHOLE}```",
    "an import on the fence's line": f"```python import math\n{WHOLE}```",
    "no mark, code on the fence's line": f"```{WHOLE}```",
    "all on one line": "```python def area(sides): return math.prod(sides)```",
    "a fence behind text": f"The function: ```python\n{WHOLE}```",
    "an unmarked fence behind text": f"The function:```\n{WHOLE}```",
    "closed behind code": f"```python\n{WHOLE.rstrip()}```",
    "closed behind code, then text": f"```python\n{WHOLE.rstrip()}``` Well.",
    "text behind the closing fence": f"```python\n{WHOLE}``` Well.",
    "unclosed": f"So:\n```python\n{WHOLE}",
    "unclosed, then text": f"So:\n```python\n{WHOLE}\nIt multiplies the sides.",
    "unclosed, cut in a test": f"```python\n{WHOLE}\nprint(area([1, 2",
    "no closing fence before the next": f"```python\n{WRONG}\nBetter:\n{block(WHOLE)}",
    "in a list": f"1. So:\n{indented(block(WHOLE), '   ')}2. Done.",
    "behind a list's number": f"1. {indented(block(WHOLE), '   ').lstrip()}",
    "behind a list's dash": f"- {indented(block(WHOLE), '  ').lstrip()}",
    "in a quotation": indented(block(WHOLE), "> "),
    "Windows line ends": block(WHOLE).replace("\n", "\r\n"),
    "fences in a text": block('def area(sides):\n    mark = "```\\n"\n' + BODY),
    "fences in a docstring": block(f'def area(sides):\n    """So:\n```\n3\n```\n    """\n{BODY}'),
    "few-shot marks": f"[BEGIN]\n{WHOLE}[DONE]\nYou are an expert",
    "a stop token": f"{block(WHOLE).rstrip()}<|endoftext|>",
    "a stop token and the next turn": f"{block(WHOLE)}<|im_end|>\nuser\n{block(WRONG)}",
    "a stop token in the block": f"```python\n{WHOLE}<|eot_id|>",
    # which block it is
    "usage behind it": f"{block(WHOLE)}Use:\n{block('print(area([1]))')}",
    "a test behind it": block(WHOLE) + block("import unittest\nclass T(unittest.TestCase): pass\n"),
    "a test that imports it": block(WHOLE) + block("from area import area\nassert area([]) == 1\n"),
    "its output behind it": f"{block(WHOLE)}Output:\n{block('6', '')}",
    "another language behind it": block(WHOLE) + block("function area() { return 0 }", "js"),
    "a shell behind it": block(WHOLE) + block("area = 5", "bash"),
    "a better one behind it": f"{block(WRONG)}No:\n{block(WHOLE)}",
    "an outline before it": block("def area(sides):\n    ...\n") + block(WHOLE),
    "an outline behind it": block(WHOLE) + block("def area(sides: List[int]) -> int:\n    pass\n"),
    "its head behind it": block(WHOLE) + block("def area(sides: List[int]) -> int:\n"),
    "once more, cut off": f"{block(WHOLE)}So:\n```python\ndef area(sides):\n    n = 1\n    for",
    "both in one block": block(f"{WRONG}\n{WHOLE}"),
    # what it needs
    "a helper before it": block("def product(xs):\n    return math.prod(xs)\n")
    + block("def area(sides):\n    return product(sides)\n"),
    "a helper behind it": block("def area(sides):\n    return product(sides)\n")
    + block("def product(xs):\n    return math.prod(xs)\n"),
    "a helper of a helper": block("ONE = 1\n")
    + block("def product(xs):\n    return ONE * math.prod(xs)\n")
    + block("def area(sides):\n    return product(sides)\n"),
    "its imports before it": block("from functools import reduce\n")
    + block("def area(sides):\n    return reduce(lambda a, b: a * b, sides, 1)\n"),
    "imports of a draft": block(f"import operator, functools as ft\n{WRONG}")
    + block("def area(sides):\n    return ft.reduce(operator.mul, sides, 1)\n"),
    "the prompt's import": block(WHOLE),
    "the prompt's helper": block("def area(sides):\n    return int(half(2 * math.prod(sides)))\n"),
    "a block that it does not need fails": block("print(undefined)\n") + block(WHOLE),
    # what a definition is
    "a lambda": block("area = lambda sides: math.prod(sides)\n"),
    "an annotated lambda": block("area: object = lambda sides: math.prod(sides)\n"),
    "an alias": block("def f(sides):\n    return math.prod(sides)\n\narea = f\n"),
    "an imported alias": block("from math import prod as area\n"),
    "a class": block(f"class area:\n    def __new__(cls, sides):\n    {BODY}"),
    "under a condition": block(f"import sys\nif sys.maxsize:\n{indented(WHOLE, '    ')}"),
    "a global": block(f"def make():\n    global area\n{indented(WHOLE, '    ')}make()\n"),
    "made by exec": block('exec("def area(sides):\\n    return math.prod(sides)")\n'),
    "a usage line": block(f"{WHOLE}print(area([1]))\n"),
    "a main block": block(f'{WHOLE}\nif __name__ == "__main__":\n    print(undefined)\n'),
    # imports from the future
    "a future import": block(f"from __future__ import annotations\n{WHOLE}"),
    "one over several lines behind a docstring": block(
        f'"""Areas."""\n# So.\nfrom __future__ import (\n    annotations,\n    division\n)\n{WHOLE}'
    ),
    "one that shares its line": block(f"from __future__ import annotations; import math\n{WHOLE}"),
    "one that is needed": block(
        f"from __future__ import annotations\n{WHOLE.replace('sides)', 'sides: Unknown)', 1)}"
    ),
    "one in a helper": block("from __future__ import annotations\ndef f(x: No):\n    return x\n")
    + block("def area(sides):\n    return f(math.prod(sides))\n"),
    # thoughts
    "a thought before it": f"<think>\n{block(WRONG)}\n</think>\n{block(WHOLE)}",
    # without a fence
    "the whole text": WHOLE,
    "the prompt repeated": PROMPT + BODY,
    "a comment first": f"# Solution\n{WHOLE}",
    "text around it": f"Here it is:\n\nimport math\n\n{WHOLE}\nIt multiplies.",
    "a heading behind it": f"{WHOLE}\nExplanation\n\nIt multiplies.",
    "a fence behind it": f"{WHOLE}```\nIt multiplies.",
    "a fence behind it, then usage": f"{WHOLE}```\nSo:\n{block('print(area([2]))')}",
    # where the prompt stops
    "the body": BODY,
    "the body behind an empty line": f"\n{BODY}",
    "the body without its indentation": BODY.strip(),
    "a call first": "sides.sort()\n    return math.prod(sides)",
    "an item first": "sides[:0] = [1]\n    return math.prod(sides)",
    "the body in a block": block(BODY),
    "the body in a block, without indentation": block(BODY.strip() + "\n"),
    "the first line's spaces lost": LOOP.lstrip(),
    "one of the first line's spaces lost": LOOP[1:],
    "all of it moved to the left": textwrap.dedent(LOOP),
    "indented by two": "  n = 1\n  for side in sides:\n    n *= side\n  return n\n",
    "a tab": "\treturn math.prod(sides)\n",
    "text behind the body": f"{BODY}\nThe above multiplies.\nIt works.",
    "a heading behind the body": f"{BODY}\nExplanation\n\nIt works.",
    "a fence behind the body": f"{BODY}```\nIt works.",
    "another function, cut off": f"{BODY}\n\ndef other(x):\n    return x +",
    "the same function, cut off": f"{BODY}\n\ndef area(sides):\n    n = 1\n    for",
    "usage behind the body": f"{BODY}\n\nprint(area([1]))\n# 1\n\nThat is all.",
    "a main block, cut off": f'{BODY}\n\nif __name__ == "__main__":\n    import doctest\n    doc(',
    "a helper in a block behind the body": block("    return product(sides)\n")
    + block("def product(xs):\n    return math.prod(xs)\n"),
}
INCORRECT = {
    "a worse one behind it": block(WHOLE) + block(WRONG),
    "a broken one behind it": block(WHOLE) + block("def area(sides):\n    return sides +\n"),
    "another name without a fence": WHOLE.replace("area", "areas"),
    "another name": block(WHOLE.replace("area", "areas")),
    "a method of that name": block(f"class Solution:\n{indented(WHOLE, '    ')}"),
    "a usage line that fails": block(f"{WHOLE}print(area(sides))\n"),
    "a helper that is nowhere": block("def area(sides):\n    return product(sides)\n"),
    "a helper in a thought": f"<think>{block('product = math.prod')}</think>"
    + block("def area(sides):\n    return product(sides)\n"),
    "a helper in a text": "product = math.prod\n\n"
    + block("def area(sides):\n    return product(sides)\n"),
    "an import that is missing": block(WHOLE.replace("sides)", "sides: Sequence)", 1)),
    "an outline": block("def area(sides):\n    ...\n"),
    "cut in the middle": "```python\ndef area(sides):\n    n = 1\n    for side in",
    "only usage": block("print(area([1]))\n"),
    "a thought after it": f"{block(WHOLE)}\n</think>\n{block(WRONG)}",
}
UNANSWERED = {
    "nothing": "",
    "space": " \n \n",
    "prose": "Just multiply them: def is a keyword.",
    "an empty block": "```python\n```",
    "a number": block("3.14", ""),
    "another language": block(WHOLE, "bash"),
    "an output": block(WHOLE, "text"),
    "a thought without an end": f"<think>\n{block(WHOLE)}Or is it",
    "a thought and no more": f"<think>\n{block(WHOLE)}</think>\nI cannot.",
}


@pytest.mark.parametrize("completion", RIGHT.values(), ids=RIGHT)
def test_a_right_program_is_found(completion: str) -> None:
    assert outcome(completion) == "correct"


@pytest.mark.parametrize("completion", INCORRECT.values(), ids=INCORRECT)
def test_a_wrong_one_stays_wrong(completion: str) -> None:
    assert outcome(completion) == "incorrect"


@pytest.mark.parametrize("completion", UNANSWERED.values(), ids=UNANSWERED)
def test_no_program_is_no_answer(completion: str) -> None:
    assert outcome(completion) == "unanswered"


@pytest.mark.parametrize("completion", RIGHT.values(), ids=RIGHT)
def test_the_same_with_a_wrong_program_is_incorrect(completion: str) -> None:
    """So that no case passes by something other than its own program."""
    wrong = completion.replace("math.prod", "math.fsum").replace("*=", "+=")
    wrong = wrong.replace("import prod", "import fsum").replace("mul", "add")
    if wrong == completion:
        wrong = completion.replace("a * b", "a + b")
    assert outcome(wrong) == "incorrect"


PROMPTS = {
    "no body": "import math\ndef area(sides):\n",
    "no line end": PROMPT.rstrip(),
    "a comment last": "import math\ndef area(sides):\n    # multiply\n",
    "a loop begun": "import math\ndef area(sides):\n    n = 1\n    for side in sides:\n",
    "a try begun": "import math\ndef area(sides):\n    try:\n",
    "a begun body": "import math\ndef area(sides):\n    n = 1\n",
    "imports alone": "import math\n",
    "nothing": "",
}
GOING_ON = {
    "no body": LOOP,
    "no line end": f"\n{LOOP}",
    "a comment last": LOOP,
    "a loop begun": "        n *= side\n    return n\n",
    "a try begun": "        return math.prod(sides)\n    except TypeError:\n        raise\n",
    "a begun body": "    for side in sides:\n        n *= side\n    return n\n",
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_wherever_the_prompt_stops_a_whole_function_stands_behind_it(prompt: str) -> None:
    whole = f"import math\n{WHOLE}"
    assert outcome(block(whole), prompt) == outcome(whole, prompt) == "correct"
    assert outcome(block(whole.replace("area", "areas")), prompt) == "incorrect"


@pytest.mark.parametrize("name", GOING_ON)
def test_wherever_the_prompt_stops_it_goes_on(name: str) -> None:
    prompt, behind = PROMPTS[name], GOING_ON[name]
    assert outcome(behind, prompt) == "correct"
    assert outcome(f"{behind}\n\nThat is all.", prompt) == "correct"


def test_what_is_not_written_is_not_the_prompts_outline() -> None:
    """The prompt's function returns nothing, which some tests take for an answer."""
    test = "def check(candidate):\n    assert candidate([]) is None\n"
    assert outcome(block("def areas(sides):\n    return None\n"), test=test) == "incorrect"
    assert outcome(block("def area(sides):\n    return None\n"), test=test) == "correct"


METHODS = {
    "the body": "        return math.prod(sides)\n",
    "the body without its indentation": "return math.prod(sides)",
    "the class": f"class Sides:\n    def area(self, sides):\n    {BODY}",
    "the class in a block": block(f"class Sides:\n    def area(self, sides):\n    {BODY}"),
    "the method": block("def area(self, sides):\n    return math.prod(sides)\n"),
    "the method, indented": "    def area(self, sides):\n        return math.prod(sides)\n",
}


@pytest.mark.parametrize("completion", METHODS.values(), ids=METHODS)
def test_an_entry_point_may_be_a_method(completion: str) -> None:
    prompt = 'import math\nclass Sides:\n    def area(self, sides):\n        """Multiply."""\n'
    assert outcome(completion, prompt, "Sides().area") == "correct"
    renamed = completion.replace("area", "areas").replace("math.prod", "math.fsum")
    assert outcome(renamed, prompt, "Sides().area") == "incorrect"


def test_without_an_entry_point_the_tests_say_what_is_asked_for() -> None:
    test = "\ndef check():\n    assert area([2, 3]) == 6\n    assert isinstance(UNIT, str)\n"
    unit = block('UNIT = "m"\n')
    usage = block("print(area([1]))\n")
    whole = block(f"import math\n{WHOLE}")
    assert outcome(unit + whole + usage, "", "", test) == "correct"
    assert outcome(block(WRONG) + unit + whole, "", "", test) == "correct"
    assert outcome(whole, "", "", test) == "incorrect"


def test_the_tests_may_use_other_names_of_the_program() -> None:
    test = "def check(candidate):\n    assert candidate(Box(2, 3)) == 6\n"
    box = block("class Box:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n")
    area = block("def area(box):\n    return box.a * box.b\n")
    assert outcome(box + area, "", test=test) == "correct"


def test_a_module_that_the_tests_forgot_to_import_is_no_name_of_the_program() -> None:
    test = f"{TEST}    assert math.isfinite(candidate([2]))\n"
    usage = block("import math\nprint(area(undefined))\n")
    loop = f"def area(sides):\n{LOOP}"
    found = find_program(block(loop) + usage, entry_point="area", test=test)
    assert found is not None
    assert found.code == loop


def test_a_prompt_that_calls_what_is_asked_for() -> None:
    """The judge's object for functions that share their name with the tests' own."""
    prompt = "def submitted(*args):\n    return area(*args)\n"
    whole = block(f"import math\n{WHOLE}")
    usage = block("print(area([1]))\n")
    assert outcome(whole + usage, prompt, "submitted") == "correct"
    assert outcome(block("print(1)\n"), prompt, "submitted") == "incorrect"


def test_the_code_is_as_it_was_written() -> None:
    found = find_program(block(WHOLE), prompt=PROMPT, entry_point="area", test=TEST)
    assert found is not None
    assert (found.code, found.before) == (WHOLE, "")


DATA = Path(
    os.environ.get("FTTT_DATASETS", Path(__file__).parents[2].parent / "shared" / "datasets")
)


@pytest.mark.skipif(not DATA.is_dir(), reason="no benchmark data beside the checkout")
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the benchmark's own programs
def test_humaneval_in_every_way_to_write_it() -> None:
    for question in get_task("humaneval").load(TaskOptions(data_dir=DATA))[2::10]:
        gold = question.gold
        assert isinstance(gold, dict)
        prompt, entry, test = (str(gold[key]) for key in ("prompt", "entry_point", "test"))
        whole = str(question.solution).removeprefix("```python\n").removesuffix("\n```")
        whole = prompt + whole[len(prompt.strip("\n")) :].removeprefix("\n") + "\n"
        body = whole[len(prompt) :]
        alone = whole[[m.start() for m in re.finditer(rf"^def {entry}\b", prompt, re.M)][-1] :]
        ways = (
            body,
            block(body),
            body.strip(),
            block(textwrap.dedent(body)),
            body.removeprefix(" "),
            f"{body}\n\ndef test():\n    assert candidate(1) == (2",
            f"{body}\nThis works by magic.",
            whole,
            block(alone),
            block(alone) + block("print(1)\n"),
            block(f"from __future__ import annotations\n{alone}"),
        )
        for way in ways:
            assert outcome(way, prompt, entry, test) == "correct", (question.id, way)


HOSTILE = {
    "brackets": "(" * 50_000,
    "minus": "    return " + "-" * 50_000 + "1",
    "open blocks": "```python\nx = (\n```\n" * 500,
    "fences": "```\n" * 10_000,
    "a long sum": block(f"def area(sides):\n    raise {'a + ' * 3_000}a\n"),
    "open strings": "x = '''\n" * 5_000,
    "half functions": "def f(x):\n  return (\n" * 2_000,
    "half lines": "    x = (\n" * 5_000,
    "ticks": "a``` " * 20_000,
    "spaces": " " * 90_000 + "x",
    "NUL": "```python\n\0\n```",
    "surrogates": block("def area(sides):\n    return '\ud800'\n"),
    "a megabyte": "x = 1\n" * 170_000,
}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE)
def test_whatever_was_written_is_read_in_bounded_time(completion: str) -> None:
    start = time.process_time()
    find_program(completion, prompt=PROMPT, entry_point="area", test=TEST)
    assert time.process_time() - start < 5


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*"`~>#-", "\n", "```", "```python\n", "\n```\n", " ", "    ", "def area(sides):\n",
             "return 1\n", "<think>", "</think>", "'''", "1. ", "(", "text", "\0", "é\ud800"]
        ),
        max_size=40,
    ).map("".join)
)  # fmt: skip
def test_no_text_breaks_the_search(text: str) -> None:
    find_program(text, prompt=PROMPT, entry_point="area", test=TEST)
    find_program(text, prompt=text, entry_point=text, test=text)


SCRIPT = "n = int(input())\nprint(n * 2)\n"


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{SCRIPT}```",
        f"```\n{SCRIPT}```\nFor example:\n```\n5\n```\nprints\n```\n10\n```",
        f"```python\n{SCRIPT}```\nThen\n```python\nprint(double(3))\n```",
        f"<think>\n```python\nprint(input())\n```\n</think>\n```py\n{SCRIPT}```",
        f"```cpp\nint main() {{}}\n```\nIn Python:\n```python\n{SCRIPT}```",
        f"A draft:\n```python\nprint(input())\n```\nBetter:\n```python\n{SCRIPT}```",
        SCRIPT,
    ],
)
def test_a_program_that_reads_and_prints_is_found(completion: str) -> None:
    found = find_program(completion, prompt="import math\n", stdin=True)
    assert found is not None
    assert found.code.strip() == SCRIPT.strip()


def test_a_block_of_helpers_goes_with_the_program_that_reads() -> None:
    helper = "def double(n):\n    return 2 * n\n"
    completion = f"```python\n{helper}```\nand\n```python\nprint(double(int(input())))\n```"
    found = find_program(completion, stdin=True)
    assert found is not None
    assert "def double" in found.code
    assert "input()" in found.code


@pytest.mark.parametrize("completion", ["No idea.", "```\n5\n1 2\n```", "The answer is 5."])
def test_data_and_prose_are_no_program(completion: str) -> None:
    assert find_program(completion, stdin=True) is None
