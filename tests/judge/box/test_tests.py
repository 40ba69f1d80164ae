from __future__ import annotations

import json
import os

import pytest

from fttt.judge.box.score import SCORE, Score
from fttt.judge.box.tests import BadTests, Tests, is_prepared

PROGRAM = {
    "prompt": "LIMIT = 3\ndef twice(x):\n    '''Twice x.'''\n    if x:\n",
    "test": "def check(candidate):\n    for x in range(LIMIT):\n"
    "        assert candidate(x) == 2 * x\n    assert candidate(Fraction(1, 2)) == 1\n",
    "entry_point": "twice",
    "border": "data",
}


def _file(content: bytes) -> int:
    file = os.memfd_create("tests")
    os.write(file, content)
    return file


def test_prepared_tests_are_those_that_were_prepared() -> None:
    file = _file(json.dumps(PROGRAM).encode())
    prepared, loaded = Tests.read(file), Tests.read(file)
    assert is_prepared(os.pread(file, 1 << 20, 0))
    assert loaded == prepared
    assert loaded.analysis.standard == {"Fraction": ("fractions", "Fraction")}
    assert loaded.last == "twice"
    for candidate, passed in ((lambda x: 2 * x, 4), (lambda x: x + x * (x != 1), 3)):
        tests = Tests.read(file)
        score = Score(tests.steps)
        space = {SCORE: score, "twice": candidate, "Fraction": lambda a, b: a / b}
        assert tests.helpers is not None
        exec(tests.helpers, space)
        space["twice"] = candidate
        exec(tests.code, space)
        eval(tests.check, space)
        assert score.end() == (passed, 4)
    os.close(file)


def test_half_a_file_is_not_prepared() -> None:
    file = _file(json.dumps(PROGRAM).encode())
    Tests.read(file)
    content = os.pread(file, 1 << 20, 0)
    os.close(file)
    for part in (b"", content[:4], content[:9], content[:-1], content + b"x"):
        assert not is_prepared(part)


def test_tests_that_do_not_compile_are_the_problems_fault() -> None:
    for change in ({"test": "def check(:"}, {"entry_point": "a b"}, {"test": "return"}):
        file = _file(json.dumps({**PROGRAM, **change}).encode())
        with pytest.raises(BadTests, match="do not compile"):
            Tests.read(file)
        assert not is_prepared(os.pread(file, 1 << 20, 0))
        os.close(file)
