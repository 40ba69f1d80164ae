"""The tests of EvalPlus (Liu et al. 2023, arXiv 2305.01210), as the sandboxed judge runs them.

Its data sets have the base inputs of a benchmark and many more in one text of Python, which imports
NumPy to compare floating-point numbers. The sandbox has no NumPy, so its few names stand for
functions of Python's own.
"""

from __future__ import annotations

import re

__all__ = ["judged_tests"]

_IMPORT = re.compile(r"^import numpy as np[ \t]*$", re.MULTILINE)
_OWN_CALL = re.compile(r"^check\(\w+\)[ \t]*$", re.MULTILINE)
"""The call of the tests at the end of some versions: the judge makes it itself."""

_DATA = re.compile(r"^([ \t]*(?:inputs|results) = )(\[.*\])[ \t]*$", re.MULTILINE)
_LARGE = 10_000
"""Characters of a list from which on it is read as a text: the judge analyses what is written as
code, and a megabyte of it takes more than a box has."""

_LARGE_LIST = "def large_list(text):\n    return eval(text)\n\n\n"
_STAND_IN = """\
class np:
    class ndarray:
        pass

    float32 = float64 = float

    @staticmethod
    def allclose(out, exp, rtol=1e-05, atol=1e-08, equal_nan=False):
        if isinstance(exp, (list, tuple)) or isinstance(out, (list, tuple)):
            if not (isinstance(out, (list, tuple)) and isinstance(exp, (list, tuple))):
                return False
            pairs = zip(out, exp)
            return len(out) == len(exp) and all(
                np.allclose(one, other, rtol, atol, equal_nan) for one, other in pairs
            )
        if out == exp or (equal_nan and out != out and exp != exp):
            return True
        if abs(exp) == float("inf"):
            return False
        return bool(abs(out - exp) <= atol + rtol * abs(exp))

    class testing:
        @staticmethod
        def assert_allclose(out, exp, rtol=1e-07, atol=0):
            assert np.allclose(out, exp, rtol, atol, equal_nan=True)
"""


_FIXES = {
    # As published it hands over the two arguments in the wrong order; any root is right.
    "HumanEval/32": (
        re.compile(r"assert _poly\(\*candidate\(\*inp\), inp\) <= (\S+)"),
        r"out = candidate(*inp); assert abs(_poly(*inp, out)) <= \1 or "
        r"np.allclose(out, exp, rtol=1e-07, atol=\1)",
    ),
    # The answer to this input takes 2 GB, more than a box has.
    "MBPP/255": (
        re.compile(re.escape("[['Dog', 'Cat', 'CatBird', 'Bird', 'Fish'], 77], ")),
        "",
    ),
}
"""Problems whose published tests no program can pass here."""


def judged_tests(test: str, task: str) -> str:
    """The text of a problem's tests, without its import of NumPy and its own call of ``check``."""
    if task in _FIXES:
        pattern, replacement = _FIXES[task]
        test = pattern.sub(replacement, test)
    shorter = _DATA.sub(_as_text, test)
    test = test if shorter == test else _LARGE_LIST + shorter
    return _IMPORT.sub(lambda _: _STAND_IN, _OWN_CALL.sub("", test))


def _as_text(data: re.Match[str]) -> str:
    start, value = data.groups()
    return data[0] if len(value) < _LARGE else f"{start}large_list({value!r})"
