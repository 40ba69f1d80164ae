"""From tidy LaTeX to a sympy object, through the parser of ``math-verify``."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import (  # type: ignore[import-untyped]
    ConversionConfig,
    NormalizationConfig,
    _Latex2Sympy,
    normalize_latex,
)

__all__ = ["read"]

warnings.simplefilter("ignore")  # of the parser's dependencies, which nobody here can act upon

_NORMAL = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_CONVERSION = ConversionConfig(lowercase_symbols=False)
_MIXED = re.compile(r"(?<![\d.\w])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\\circ\s*")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")


class _Reader(_Latex2Sympy):  # type: ignore[misc]
    """The parser, but for its products.

    It takes any whole number before any positive fraction for a mixed number, whatever its
    configuration says, so that ``2(3)`` becomes 5. Here factors side by side are a product; mixed
    numbers are made plain before.
    """

    def convert_postfix_list(self, arr: Any, i: int = 0) -> Any:
        if i == len(arr) - 1:
            return super().convert_postfix_list(arr, i)
        first = self.convert_postfix(arr[i])
        if isinstance(first, list):  # the variable of a derivative
            return super().convert_postfix_list(arr, i)
        rest = self.convert_postfix_list(arr, i + 1)
        if getattr(first, "is_Matrix", False) or getattr(rest, "is_Matrix", False):
            return self.mat_mul_flat(first, rest)
        return self.mul_flat(first, rest)


@lru_cache(maxsize=256)
def read(text: str) -> Any:
    """The sympy object that ``text`` is, unevaluated; degrees within functions become radians.

    Raises whatever the parser raises for what it cannot read.
    """
    text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    text = _MIXED.sub(_sum, text)
    reader = _Reader(None, _IMAGINARY.search(text) is None, False, config=_CONVERSION)
    return reader.parse(normalize_latex(text, _NORMAL))


def _sum(match: re.Match[str]) -> str:
    """A mixed number as a sum; one with an improper fraction is a product."""
    whole, top, bottom = match.groups()
    return f"({whole}+{match[0][len(whole) :]})" if int(top) < int(bottom) else match[0]
